"""What may change in a model, said by position and name, before a byte of it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile.dtypes import numpy_dtype, pack, stored_size, type_name
from onnx_repfuse.modelfile.protobuf_wire import shown

__all__ = ["Edit", "NewTensor"]


@dataclass(frozen=True)
class NewTensor:
    """A tensor whose elements are computed when they are written, and forgotten after.

    Attributes:
        name: its name in the graph.
        data_type: its `onnx.TensorProto.DataType`.
        shape: its shape.
        value: called once; must return exactly that shape and dtype.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray[Any, Any]]

    @property
    def nbytes(self) -> int:
        """The stored size, known before the value."""
        size = stored_size(self.data_type, self.shape)
        if size is None:
            raise OutputError(f"new tensor {shown(self.name)}: {type_name(self.data_type)} has no fixed size")
        return size

    def data(self) -> memoryview:
        """Compute the value; its bytes as `raw_data` stores them."""
        array = self.value()
        dtype = numpy_dtype(self.data_type)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != tuple(self.shape):
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise OutputError(
                f"new tensor {shown(self.name)} should be {dtype} {self.shape}, but its value is {got}"
            )
        return pack(self.data_type, array)


@dataclass
class Edit:
    """The changes of one scope. Positions are those of the input.

    Attributes:
        removed_nodes: positions of nodes to leave out.
        inserted: position -> nodes to write before the node that stood there; `len(nodes)` means at the end.
        rewired: position -> {old input name: new input name}; readers in the node's subgraphs follow.
        removed_initializers: names; the graph inputs of these names go, too.
        new_tensors: initializers; in a function, which has none, Constant nodes at its front.
        removed_values: names that no longer exist: their value_info and quantization_annotation go.
    """

    removed_nodes: set[int] = field(default_factory=set)
    inserted: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    rewired: dict[int, dict[str, str]] = field(default_factory=dict)
    removed_initializers: set[str] = field(default_factory=set)
    new_tensors: list[NewTensor] = field(default_factory=list)
    removed_values: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return any(
            (
                self.removed_nodes,
                any(self.inserted.values()),
                any(self.rewired.values()),
                self.removed_initializers,
                self.new_tensors,
                self.removed_values,
            )
        )
