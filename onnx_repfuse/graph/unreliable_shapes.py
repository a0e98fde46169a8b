"""Sizes that onnx's shape inference gets wrong, or that ONNX Runtime computes otherwise: nothing is proved by them.

* A pool with `ceil_mode`: inference counts a last window that begins in the padding, ONNX Runtime does not. One with
  `auto_pad` and dilations: the one pads for the dilated window, the other does not.
* ConvTranspose with `auto_pad` and `output_padding`, or told to write fewer positions than it reads.
* Resize and Upsample: `floor(size * scale)` hangs on the precision of the product; 10 * 0.7f is 6 or 7.
* Squeeze and Unsqueeze with negative axes before opset 11, which inference takes for others; Squeeze with no axes at
  all, which are none for the one and all for the other.
* A Slice backwards to the greatest number, which is the front for ONNX Runtime; an Einsum that broadcasts.
* A size cast to a type that may not hold it.

Found by comparing both, operator by operator, with onnx 1.23 and onnxruntime 1.32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.graph.constant_folding import END_OF_AXIS, MALFORMED
from onnx_repfuse.graph.scope import MAX_SHAPE_ELEMENTS, ONNX_DOMAINS, Const, Shape
from onnx_repfuse.modelfile.dtypes import HOLDING_SIZES

__all__ = ["without_unreliable_shapes"]

_POOLS = ("MaxPool", "AveragePool", "LpPool")
_RULED = frozenset(
    (*_POOLS, "Cast", "ConvTranspose", "Einsum", "Resize", "Slice", "Squeeze", "Unsqueeze", "Upsample")
)
_ALL = [-1]  # axes: not even the rank is certain
_VALUE = [-2]  # the sizes are, the value is not
Types = Mapping[str, tuple[int, Shape | None]]


def without_unreliable_shapes(
    scope: onnx.GraphProto, types: Types, constants: Mapping[str, Const], opset: int
) -> onnx.GraphProto | None:
    """A scope of whose types all that is in doubt cannot be inferred; None if nothing is.

    Args:
        scope: what `types` were inferred of.
        types: data types and shapes.
        constants: what decides sizes.
        opset: version of the ONNX operator set in force.
    """
    ruled = [(i, node) for i, node in enumerate(scope.node) if node.op_type in _RULED]
    doubts = {i: found for i, node in ruled if (found := _doubted(node, types, constants, opset))}
    if not doubts:
        return None
    result = onnx.GraphProto()
    result.CopyFrom(scope)
    del result.node[:]
    for i, node in enumerate(scope.node):
        doubt = doubts.get(i, [])
        if doubt is _ALL:
            continue
        if doubt is _VALUE:
            data_type, shape = types[node.output[0]]
            result.input.append(onnx.helper.make_tensor_value_info(node.output[0], data_type, shape))
            continue
        copy = result.node.add()
        copy.CopyFrom(node)
        for place, name in enumerate(node.output[:] if doubt else ()):
            if name:
                copy.output[place] = f"{name}, of a size in doubt"
                _blur(result, name, types.get(name, (0, None)), doubt)
    return result


def _blur(graph: onnx.GraphProto, name: str, known: tuple[int, Shape | None], axes: Sequence[int]) -> None:
    """Lengthen a tensor along some axes by another one of which nothing is known but the rank."""
    data_type, shape = known
    unknown = f"{name}, of any size"
    rank = len(shape or ())
    graph.input.append(onnx.helper.make_tensor_value_info(unknown, data_type, [None] * rank))
    read = f"{name}, of a size in doubt"
    for axis in axes:
        longer = name if axis == axes[-1] else f"{name}, of any size along {axis}"
        graph.node.append(onnx.helper.make_node("Concat", [read, unknown], [longer], axis=axis))
        read = longer


def _doubted(node: onnx.NodeProto, types: Types, constants: Mapping[str, Const], opset: int) -> list[int]:
    """`_doubt`, and all there is of a node that makes no sense."""
    try:
        return _doubt(node, types, constants, opset)
    except MALFORMED:
        return _ALL


def _doubt(node: onnx.NodeProto, types: Types, constants: Mapping[str, Const], opset: int) -> list[int]:
    """The axes of its outputs whose sizes are in doubt; or `_ALL`, or `_VALUE`."""
    if node.domain not in ONNX_DOMAINS or not node.input or not node.output:
        return []
    shape, result = (types.get(name, (0, None))[1] for name in (node.input[0], node.output[0]))
    if shape is None or result is None:
        return []
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    inputs = [None if (const := constants.get(name)) is None else _values(const) for name in node.input]
    found: list[int] = []
    if node.op_type in ("Squeeze", "Unsqueeze"):
        empty = node.op_type == "Squeeze" and inputs[1:] == [[]]
        return _ALL if empty or (opset < 11 and min(given.get("axes", ()), default=0) < 0) else []
    if node.op_type == "Cast":
        return _VALUE if len(shape) < 2 and given.get("to") not in HOLDING_SIZES else []
    if node.op_type == "ConvTranspose":
        told = given.get("output_shape", ())
        if any(size is not None and one < size for one, size in zip(told, shape[2:], strict=False)):
            return _ALL
        found = _space(shape) if _is_same(given) and any(given.get("output_padding", ())) else []
    elif node.op_type == "Einsum":
        found = list(range(len(result)))
    elif node.op_type == "Slice":
        ends, steps = inputs[2:3], inputs[4:5]
        backwards = steps and steps[0] and min(steps[0]) < 0
        found = list(range(len(result))) if backwards and ends[0] and max(ends[0]) >= END_OF_AXIS else []
    elif node.op_type in _POOLS:
        found = _pool(given, shape)
    else:
        found = _resize(node, given, shape, inputs)
    return [axis for axis in found if result[axis] is not None]


def _values(const: Const) -> list[Any] | None:
    """The elements of a constant that may tell sizes."""
    value = const.computed() if const.size <= MAX_SHAPE_ELEMENTS else None
    return None if value is None else value.ravel().tolist()


def _is_same(given: Mapping[str, Any]) -> bool:
    return given.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")


def _space(shape: Shape) -> list[int]:
    return list(range(2, len(shape)))


def _pool(given: Mapping[str, Any], shape: Shape) -> list[int]:
    rank, space = len(shape) - 2, _space(shape)
    if _is_same(given) and max(given.get("dilations", ()), default=1) > 1:
        return space
    if not given.get("ceil_mode"):
        return []
    if _is_same(given):
        return space
    ones = [1] * rank
    kernel, strides = given.get("kernel_shape", ones), given.get("strides", ones)
    dilations, pads = given.get("dilations", ones), given.get("pads", [0] * 2 * rank)
    if any(len(one) != rank for one in (kernel, strides, dilations)) or len(pads) != 2 * rank:
        return space
    doubted = []
    for axis, size in enumerate(shape[2:]):
        if size is not None:
            more = size + pads[axis] + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1
            begins = -(-more // strides[axis]) * strides[axis]  # of the last window
            if more < 0 or (more % strides[axis] and begins >= size + pads[axis]):
                doubted.append(axis + 2)
    return doubted


def _resize(
    node: onnx.NodeProto, given: Mapping[str, Any], shape: Shape, inputs: Sequence[list[Any] | None]
) -> list[int]:
    every = list(range(len(shape)))
    odd = given.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    if odd or given.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return every
    if len(node.input) > 3 and node.input[3]:
        return []  # told sizes
    scales = given.get("scales")
    if scales is None:
        place = 1 if len(node.input) == 2 else 2
        scales = inputs[place] if len(inputs) > place else None
        if scales is None:
            return every
    axes = given.get("axes") or every
    if len(axes) != len(scales) or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return every
    return sorted(
        {axis % len(shape) for axis, scale in zip(axes, scales, strict=True) if _hangs(shape[axis], scale)}
    )


def _hangs(size: int | None, scale: float) -> bool:
    """Whether `floor(size * scale)` hangs on the precision of the product."""
    narrow = np.float32(scale)
    return size is not None and floor(np.float32(size) * narrow) != floor(size * float(narrow))
