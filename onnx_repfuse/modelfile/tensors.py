"""Every tensor of a model, wherever it hides, and whether what it claims can be true.

A claim is checked against the bytes that are there before anything is allocated, so a shape of petabytes costs nothing.
Repeated fields are copied as slices (`node.input[:]`), which takes less than half the time of walking them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_repfuse.errors import InputError, quoted
from onnx_repfuse.modelfile.dtypes import bits, numpy_dtype, stored_size, type_name, unpack
from onnx_repfuse.modelfile.node_order import inner_graphs

__all__ = [
    "all_tensors",
    "check_elements",
    "check_size",
    "count_elements",
    "external_entries",
    "inline_array",
    "read_names",
]
__all__ += ["label_of"]

Labelled = tuple[str, onnx.TensorProto]  # how errors call the tensor, and the tensor
MAX_RANK = 64  # numpy's limit
_TYPED_FIELD = {  # where a type's elements are, if not in `raw_data`; of all others in `int32_data`
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
    "STRING": "string_data",
}
_WITHOUT_TENSOR = {  # the types of nearly all attributes
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.STRINGS,
}


def all_tensors(model: onnx.ModelProto) -> Iterator[Labelled]:
    """Each tensor with a label for errors.

    Raises:
        InputError: a name on the way is not UTF-8, which proto2 does not check.
    """
    yield from _graph(model.graph)
    for function in model.functions:
        _check_utf8(function.name, function.domain, *function.input, *function.output)
        yield from _nodes(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute(attribute)
    for info in model.training_info:  # rare: models exported with their training graph
        yield from _graph(info.initialization)
        yield from _graph(info.algorithm)


def read_names(model: onnx.ModelProto) -> set[str]:
    """The names that any node reads, or any graph puts out."""
    graphs = [model.graph]
    for info in model.training_info:
        graphs += [info.initialization, info.algorithm]
    names: set[str] = set()
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        while nodes:
            node = nodes.pop()
            names.update(node.input)
            graphs += [inner for _, inner in inner_graphs(node)]
        if graphs:
            graph = graphs.pop()
            names.update(value.name for value in graph.output)
            nodes += graph.node
    return names


def _graph(graph: onnx.GraphProto) -> Iterator[Labelled]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_utf8(value.name)
    for tensor in graph.initializer:
        name = tensor.name
        _check_utf8(name)
        yield f"tensor {quoted(name)}", tensor
    for sparse in graph.sparse_initializer:
        yield from _sparse(sparse)
    yield from _nodes(graph.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[Labelled]:
    for node in nodes:
        _check_utf8(node.name, node.op_type, node.domain, *node.input[:], *node.output[:])
        for attribute in node.attribute:
            if attribute.type in _WITHOUT_TENSOR:
                _check_utf8(attribute.name)
            else:
                yield from _attribute(attribute, node)


def _attribute(attribute: onnx.AttributeProto, node: onnx.NodeProto | None = None) -> Iterator[Labelled]:
    _check_utf8(attribute.name)
    if attribute.HasField("t"):
        yield _label(attribute.t, attribute, node), attribute.t
    if attribute.HasField("g"):
        yield from _graph(attribute.g)
    if attribute.HasField("sparse_tensor"):
        yield from _sparse(attribute.sparse_tensor)
    for tensor in attribute.tensors:
        yield _label(tensor, attribute, node), tensor
    for graph in attribute.graphs:
        yield from _graph(graph)
    for sparse in attribute.sparse_tensors:
        yield from _sparse(sparse)


def _sparse(sparse: onnx.SparseTensorProto) -> Iterator[Labelled]:
    _check_utf8(sparse.values.name)
    yield f"sparse tensor {quoted(sparse.values.name)}", sparse.values
    yield f"the indices of sparse tensor {quoted(sparse.values.name)}", sparse.indices


def _label(tensor: onnx.TensorProto, attribute: onnx.AttributeProto, node: onnx.NodeProto | None) -> str:
    _check_utf8(tensor.name)
    if node is None:
        return f"attribute {quoted(attribute.name)}"
    return (
        f"attribute {quoted(attribute.name)} of {node.op_type} {quoted(node.name or ', '.join(node.output))}"
    )


def _check_utf8(*names: str) -> None:
    # Python's protobuf returns bytes in the place of text that is not UTF-8. Nobody downstream expects that.
    if bytes in map(type, names):
        wrong = next(name for name in names if isinstance(name, bytes))
        raise InputError(f"a name in the model is not UTF-8 text: {wrong[:60]!r}")


def label_of(tensor: onnx.TensorProto) -> str:
    """How errors call a tensor of which only itself is known."""
    return f"tensor {quoted(tensor.name)}" if tensor.name else "an unnamed tensor"


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """The `external_data` of a tensor as a dict."""
    _check_utf8(*(text for entry in tensor.external_data for text in (entry.key, entry.value)))
    return {entry.key: entry.value for entry in tensor.external_data}


def count_elements(label: str, tensor: onnx.TensorProto) -> int:
    """The number of elements that the shape claims. Raises InputError for a shape that cannot be."""
    dims = tensor.dims[:]
    if len(dims) > MAX_RANK:
        raise InputError(f"{label} has {len(dims)} dimensions; {MAX_RANK} are the most there can be")
    if dims and min(dims) < 0:
        raise InputError(f"{label} has a negative dimension: {dims}")
    return prod(dims)


def check_elements(label: str, tensor: onnx.TensorProto) -> None:
    """Raise InputError if a tensor whose data is inline claims another number of elements than are there."""
    count = count_elements(label, tensor)
    if tensor.HasField("segment") or tensor.data_type == onnx.TensorProto.UNDEFINED:
        return  # no runtime reads these: passed on as they are, and refused by `inline_array`
    if tensor.HasField("raw_data"):
        check_size(label, tensor, len(tensor.raw_data), stored_size(tensor.data_type, [count]))
        return
    width = bits(tensor.data_type)
    name = type_name(tensor.data_type)
    if width is None and name != "STRING":
        return  # of a later ONNX: nobody knows how many there should be
    if name.startswith("COMPLEX"):
        count *= 2  # the real and the imaginary part are two values
    elif width in (2, 4):
        count = (count * width + 7) // 8  # a value of `int32_data` holds one byte of packed elements
    held = len(getattr(tensor, _TYPED_FIELD.get(name, "int32_data")))
    if held != count:
        raise InputError(
            f"{label} claims {name} {list(tensor.dims)}, which is {count} values, but holds {held}"
        )


def check_size(label: str, tensor: onnx.TensorProto, held: int, size: int | None) -> None:
    """Refuse a payload of another size than the shape asks for."""
    if size is not None and held != size:
        claim = f"{type_name(tensor.data_type)} {list(tensor.dims)}"
        raise InputError(f"{label} claims {claim}, which is {size} bytes, but holds {held}")


def inline_array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """The elements of a tensor that holds its data itself; `check_elements` has to have passed it."""
    if tensor.HasField("segment"):
        raise InputError(f"{label_of(tensor)} is one segment of a tensor: not supported")
    if tensor.data_type == onnx.TensorProto.STRING:
        return np.array(list(tensor.string_data), dtype=object).reshape(tuple(tensor.dims))
    dtype = numpy_dtype(tensor.data_type)
    if tensor.HasField("raw_data"):
        return unpack(tensor.data_type, tensor.dims[:], tensor.raw_data)
    if dtype.kind == "c":  # real and imaginary parts, which onnx before 1.19 does not read
        parts = getattr(tensor, _TYPED_FIELD[type_name(tensor.data_type)])
        pairs = np.array(parts, f"f{dtype.itemsize // 2}")
        return np.asarray(pairs.view(dtype).reshape(tensor.dims[:]))
    try:
        # Older versions of onnx return float32 for bfloat16 and the float8 types.
        array = np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError) as error:
        raise InputError(f"{label_of(tensor)} cannot be read: {error}") from error
    return array if array.dtype == dtype else array.astype(dtype)
