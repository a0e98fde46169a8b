"""Sizes that onnx's shape inference gets wrong, or that ONNX Runtime computes otherwise: nothing is proved by them.

* A pool with `ceil_mode`: inference counts a last window that begins in the padding, ONNX Runtime does not. One with
  `auto_pad` and dilations: the one pads for the dilated window, the other does not.
* A pool with `auto_pad` and `pads`: inference follows the second, ONNX Runtime the first. PRelu with a slope that has
  more axes than its input, which ONNX Runtime broadcasts, too. STFT, whose `onesided` inference does not count.
* ConvTranspose with `auto_pad` and `output_padding`, or told to write fewer positions than it reads.
* Resize and Upsample: `floor(size * scale)` depends on the precision of the product; 10 * 0.7f is 6 or 7.
* Squeeze and Unsqueeze with negative axes before opset 11, which inference takes for others; Squeeze with no axes at
  all, which are none for the one and all for the other.
* A Slice backwards to the greatest number, which is the front for ONNX Runtime; an Einsum that broadcasts.
* A size cast to a type that may not hold it.

Found by comparing both, operator by operator, with onnx 1.23 and onnxruntime 1.32 (`python -m tests.operator_facts`).
Each rule is `doubts` of the operator's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from onnx_repfuse.graph.operators import operator_of_proto
from onnx_repfuse.graph.operators.facts import MALFORMED, Doubt, SizeCase
from onnx_repfuse.graph.scope import MAX_SHAPE_ELEMENTS, Const, Shape, shape_in

__all__ = ["without_unreliable_shapes"]

Types = Mapping[str, tuple[int, Shape | None]]


def without_unreliable_shapes(
    scope: onnx.GraphProto, types: Types, constants: Mapping[str, Const], opset: int
) -> onnx.GraphProto | None:
    """A copy of a scope from which none of the doubtful sizes can be inferred; None if there are none.

    Args:
        scope: what `types` were inferred from.
        types: data types and shapes.
        constants: those that decide sizes.
        opset: version of the ONNX operator set in force.
    """
    doubts = [_doubt(node, types, constants, opset) for node in scope.node]
    if not any(doubts):
        return None
    result = onnx.GraphProto()
    result.CopyFrom(scope)
    del result.node[:]
    for node, doubt in zip(scope.node, doubts, strict=True):
        if doubt is Doubt.SHAPE:
            continue  # nothing is inferred of a tensor that no node makes
        if doubt is Doubt.VALUE:
            # an input has a shape and no value that data propagation could follow
            data_type, shape = types[node.output[0]]
            result.input.append(onnx.helper.make_tensor_value_info(node.output[0], data_type, shape))
            continue
        copy = result.node.add()
        copy.CopyFrom(node)
        if doubt:
            _blur_outputs(result, copy, types, doubt)
    return result


def _blur_outputs(graph: onnx.GraphProto, node: onnx.NodeProto, types: Types, axes: Sequence[int]) -> None:
    for place, name in enumerate(node.output[:]):
        if name:
            node.output[place] = f"{name}, of a size in doubt"
            _blur(graph, name, types.get(name, (0, None)), axes)


def _blur(graph: onnx.GraphProto, name: str, inferred: tuple[int, Shape | None], axes: Sequence[int]) -> None:
    """Lengthen a tensor along some axes by another one of which nothing is known but the rank."""
    # inference then knows rank, data type and the other sizes, as before
    data_type, shape = inferred
    unknown = f"{name}, of any size"
    rank = len(shape or ())
    graph.input.append(onnx.helper.make_tensor_value_info(unknown, data_type, [None] * rank))
    read = f"{name}, of a size in doubt"
    for axis in axes:
        longer = name if axis == axes[-1] else f"{name}, of any size along {axis}"
        graph.node.append(onnx.helper.make_node("Concat", [read, unknown], [longer], axis=axis))
        read = longer


def _doubt(
    node: onnx.NodeProto, types: Types, constants: Mapping[str, Const], opset: int
) -> Sequence[int] | Doubt:
    """The axes of a node's outputs whose sizes are in doubt, or more than axes; () if nothing is."""
    rule = operator_of_proto(node).doubts
    if rule is None:
        return ()
    shape, result = _inferred_shape(types, node.input), _inferred_shape(types, node.output)
    if result is None:
        return ()  # nothing was inferred that could be wrong
    if shape is None:
        return Doubt.SHAPE
    try:
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
        inputs = [_values(constants.get(name)) for name in node.input]
        shapes = [_shape_of(name, types, constants) for name in node.input]
        doubt = rule(SizeCase(node.input, attrs, shape, result, shapes, inputs, opset))
        return doubt if isinstance(doubt, Doubt) else [axis for axis in doubt if result[axis] is not None]
    except MALFORMED:
        return Doubt.SHAPE  # the attributes make no sense


def _shape_of(name: str, types: Types, constants: Mapping[str, Const]) -> Shape | None:
    const = constants.get(name)
    return shape_in(types, name) if const is None else const.shape


def _inferred_shape(types: Types, names: Sequence[str]) -> Shape | None:
    """Of the first of these tensors."""
    return shape_in(types, names[0]) if names else None


def _values(const: Const | None) -> list[Any] | None:
    """The elements of a constant that may decide a shape."""
    if const is None or const.size > MAX_SHAPE_ELEMENTS:
        return None
    value = const.computed()
    return None if value is None else value.ravel().tolist()
