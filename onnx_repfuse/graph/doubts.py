"""Sizes that onnx's shape inference gets wrong, or that ONNX Runtime computes otherwise: nothing is proved by them.

* A pool with `ceil_mode`: inference counts a last window that begins in the padding, ONNX Runtime does not.
* Resize and Upsample: `floor(size * scale)` hangs on the precision of the product; 10 * 0.7f is 6 or 7.
* Squeeze and Unsqueeze with negative axes before opset 11, which inference takes for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.graph.constants import Const
from onnx_repfuse.graph.scope import ONNX_DOMAINS, Shape

__all__ = ["without_doubts"]

_POOLS = ("MaxPool", "AveragePool", "LpPool")
_RULED = frozenset((*_POOLS, "Resize", "Upsample", "Squeeze", "Unsqueeze"))
_ALL = [-1]  # axes: not even the rank is certain
Types = Mapping[str, tuple[int, Shape | None]]


def without_doubts(
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
    doubts = {i: found for i, node in ruled if (found := _doubt(node, types, constants, opset))}
    if not doubts:
        return None
    result = onnx.GraphProto()
    result.CopyFrom(scope)
    del result.node[:]
    for i, node in enumerate(scope.node):
        doubt = doubts.get(i, [])
        if doubt is _ALL:
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


def _doubt(node: onnx.NodeProto, types: Types, constants: Mapping[str, Const], opset: int) -> list[int]:
    """The axes of its outputs whose sizes are in doubt."""
    if node.domain not in ONNX_DOMAINS or not node.input or not node.output:
        return []
    shape, result = (types.get(name, (0, None))[1] for name in (node.input[0], node.output[0]))
    if shape is None or result is None:
        return []
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return _ALL if opset < 11 and min(given.get("axes", ()), default=0) < 0 else []
    pool = node.op_type in _POOLS
    found = _pool(given, shape) if pool else _resize(node, given, shape, constants)
    return [axis for axis in found if result[axis] is not None]


def _pool(given: Mapping[str, Any], shape: Shape) -> list[int]:
    if not given.get("ceil_mode"):
        return []
    rank = len(shape) - 2
    space = list(range(2, len(shape)))
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
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
    node: onnx.NodeProto, given: Mapping[str, Any], shape: Shape, constants: Mapping[str, Const]
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
        const = constants.get(node.input[place]) if len(node.input) > place else None
        if const is None:
            return every
        scales = const.read().ravel().tolist()
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
