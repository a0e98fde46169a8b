"""Shapes of what a Loop or a Scan hands to its body, proved by induction.

Runtimes do not hold a body to the shapes that it declares for its inputs: a Loop may hand it a tensor of another rank
in every iteration. So a carried tensor starts with the proved shape of its initial value. The body is inferred with
that; where what it hands on may have another size or rank, the shape is widened, and the body inferred again, until
nothing changes. Then the shape holds in the first iteration, and in each iteration if it did in the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from onnx_repfuse.graph.enforced import attribute_of
from onnx_repfuse.graph.scope import Scope, Shape

__all__ = ["carried_tensors", "first_shapes", "widened"]

SCAN_WITHOUT_BATCH = 9  # the opset from which a Scan has no batch axis of its own


def carried_tensors(node: onnx.NodeProto, body: onnx.GraphProto, opset: int) -> dict[str, tuple[str, str]]:
    """Input of the body -> the tensor around it that the first iteration gets, and the output that the next one gets.

    https://onnx.ai/onnx/operators/onnx__Loop.html: (M, cond, *initial) -> body (i, cond, *carried) -> (cond, *carried,
    ...). https://onnx.ai/onnx/operators/onnx__Scan.html: (*initial, *scanned) -> body -> (*carried, ...).
    """
    inputs, outputs = [value.name for value in body.input], [value.name for value in body.output]
    if node.op_type == "Loop":
        return dict(zip(inputs[2:], zip(node.input[2:], outputs[1:], strict=False), strict=False))
    if node.op_type == "Scan" and opset >= SCAN_WITHOUT_BATCH:
        count = _scan_states(node)
        return dict(zip(inputs, zip(node.input[:count], outputs, strict=False), strict=False))
    return {}


def first_shapes(
    node: onnx.NodeProto, body: onnx.GraphProto, outer: Scope, opset: int
) -> dict[str, Shape | None]:
    """The shapes that the inputs of a body have in the first iteration, as far as the scope around proves them."""
    carried = carried_tensors(node, body, opset)
    shapes = {name: outer.shape(initial) for name, (initial, _) in carried.items()}
    if node.op_type == "Scan" and opset >= SCAN_WITHOUT_BATCH:
        count = _scan_states(node)
        axes = attribute_of(node, "scan_input_axes").ints or [0] * (len(node.input) - count)
        slices = zip(body.input[count:], node.input[count:], axes, strict=False)
        shapes.update((value.name, _without_axis(outer.shape(name), axis)) for value, name, axis in slices)
    return shapes


def widened(
    shapes: Mapping[str, Shape | None],
    carried: Mapping[str, tuple[str, str]],
    shape_of: Callable[[str], Shape | None],
) -> dict[str, Shape | None]:
    """`shapes`, without what the outputs of an iteration do not keep; `shape_of` gives the shape of an output."""
    result = dict(shapes)
    for name, (_, output) in carried.items():
        result[name] = _common(shapes[name], shape_of(output))
    return result


def _common(one: Shape | None, other: Shape | None) -> Shape | None:
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple([size if size == second else None for size, second in zip(one, other, strict=True)])


def _without_axis(shape: Shape | None, axis: int) -> Shape | None:
    if not shape or not -len(shape) <= axis < len(shape):
        return None
    place = axis % len(shape)
    return (*shape[:place], *shape[place + 1 :])


def _scan_states(node: onnx.NodeProto) -> int:
    return max(0, len(node.input) - attribute_of(node, "num_scan_inputs").i)
