"""A fold to be judged, and what can be read off it: its sources, its reach, its rounding unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["FoldCase", "Source", "reach"]


@dataclass(frozen=True)
class Source:
    """A tensor the fold reads.

    Attributes:
        name: as in both models.
        dtype: numpy's.
        dims: sizes, None where the fold does not care.
        channel: the axis of the channels.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    channel: int

    @property
    def space(self) -> tuple[int, ...]:
        """The free axes other than the first."""
        return tuple(axis for axis in range(1, len(self.dims)) if self.dims[axis] is None)

    def shape(self, rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """A full shape, with sizes for the free axes in turn (cycled)."""
        dims = [0 if dim is None else dim for dim in self.dims]
        if dims and self.dims[0] is None:
            dims[0] = rows
        for i, axis in enumerate(self.space):
            dims[axis] = sizes[i % len(sizes)]
        return tuple(dims)


@dataclass(frozen=True)
class FoldCase:
    """One fold as two small models with the same inputs and the same outputs.

    Attributes:
        before: the original nodes. Graph inputs are the sources, with element type, rank and channels
            declared, batch and space symbolic; constants are initializers.
        after: the nodes that replace them.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the fold computes; today there is one."""
        return tuple(value.name for value in self.before.graph.output)

    @property
    def output(self) -> str:
        """The tensor by which verdicts and messages call the fold."""
        return self.outputs[0]

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The inputs of `before`."""
        convolves = any(node.op_type in ("Conv", "ConvTranspose") for node in self.before.graph.node)
        constant = {tensor.name for tensor in self.before.graph.initializer}
        return tuple(
            _source(value, convolves) for value in self.before.graph.input if value.name not in constant
        )

    @cached_property
    def precision(self) -> int:
        """The coarsest float type among sources and weights, as a TensorProto.DataType."""
        types = {value.type.tensor_type.elem_type for value in self.before.graph.input}
        for model in (self.before, self.after):
            types |= {tensor.data_type for tensor in model.graph.initializer}
        floats = [kind for kind in types if kind in FLOAT_FORMATS]
        return max(floats, key=lambda kind: FLOAT_FORMATS[kind].epsilon, default=onnx.TensorProto.FLOAT)

    @property
    def unit(self) -> float:
        """The unit roundoff of `precision`."""
        return FLOAT_FORMATS[self.precision].unit_roundoff

    @property
    def smallest(self) -> float:
        """The smallest positive value of `precision`."""
        return FLOAT_FORMATS[self.precision].smallest

    @property
    def largest(self) -> float:
        """The largest finite value of `precision`."""
        return FLOAT_FORMATS[self.precision].largest

    @cached_property
    def is_per_position(self) -> bool:
        """No operator of either model mixes positions."""
        mixing = {
            "Conv",
            "ConvTranspose",
            "AveragePool",
            "GlobalAveragePool",
            "Pad",
            "ReduceMean",
            "ReduceSum",
            "Resize",
        }
        nodes = (*self.before.graph.node, *self.after.graph.node)
        return not any(node.op_type in mixing for node in nodes)

    @cached_property
    def weights(self) -> int:
        """Number of elements of all float constants of both models: what one position costs."""
        return sum(
            int(np.prod(tensor.dims, dtype=np.int64))
            for model in (self.before, self.after)
            for tensor in model.graph.initializer
            if tensor.data_type in FLOAT_FORMATS
        )

    @cached_property
    def depth(self) -> int:
        """Channels one output sums at most."""
        deepest = 1
        for model in (self.before, self.after):
            shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
            for node in model.graph.node:
                shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
                if node.op_type == "Conv" and len(shape) > 1:
                    deepest = max(deepest, shape[1])
                elif node.op_type in ("ConvTranspose", "MatMul", "Gemm") and len(shape) > 1:
                    deepest = (
                        max(deepest, *shape[:2]) if node.op_type != "MatMul" else max(deepest, shape[-2])
                    )
        return deepest


def reach(case: FoldCase) -> tuple[tuple[int, ...], int]:
    """(kernel extent per spatial axis, largest stride) over all windows of both models."""
    extents: list[int] = []
    stride = 1
    for model in (case.before, case.after):
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        product = 1
        for node in model.graph.node:
            given = {a.name: list(a.ints) for a in node.attribute if a.type == onnx.AttributeProto.INTS}
            kernel = given.get("kernel_shape")
            if kernel is None and node.op_type in ("Conv", "ConvTranspose"):
                kernel = list(shapes.get(node.input[1], ())[2:])
            if not kernel:
                continue
            dilations = given.get("dilations") or [1] * len(kernel)
            for axis, (size, step) in enumerate(zip(kernel, dilations, strict=False)):
                extent = (size - 1) * step + 1
                if axis < len(extents):
                    extents[axis] = max(extents[axis], extent)
                else:
                    extents.append(extent)
            product = max([product, *given.get("strides", [])])
        stride = max(stride, product)
    return tuple(extents), stride


def _source(value: onnx.ValueInfoProto, convolves: bool) -> Source:
    tensor = value.type.tensor_type
    dims: tuple[int | None, ...] = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
    )
    fixed = [axis for axis in range(1, len(dims)) if dims[axis] is not None]
    usual = 1 if convolves or len(dims) > 3 else len(dims) - 1
    channel = fixed[0] if len(fixed) == 1 else usual
    return Source(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims, channel)
