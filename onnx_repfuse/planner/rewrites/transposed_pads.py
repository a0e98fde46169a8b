"""A Transpose goes in front of a Pad of space, behind which a Conv or pool then takes the pads.

Conv(Transpose(Pad(x)))  ->  Conv(Pad(Transpose(x)))        of an image whose channels come last, as Keras pads it
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.graph.windows import has_window
from onnx_repfuse.lift import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["transpose_before_pads"]


def transpose_before_pads(plan: ScopePlan, context: Context, is_free: IsFree) -> bool:
    """Write every such pair the other way round; whether there was any.

    Args:
        plan: of the scope, which is changed.
        context: the scope and its layouts.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for transpose in scope.nodes:
        pad = scope.producer.get(transpose.inputs[0].name) if transpose.op == "Transpose" else None
        if pad is None or pad.op != "Pad" or not (is_free(pad) and is_free(transpose)):
            continue
        pads = _pads_behind(context, pad, transpose)
        if pads is not None:
            created = _written(scope, pad, transpose, pads)
            replacements.fold(transpose.outputs[0].name, {Kind.COMMUTE}, [pad, transpose], created)
            replacements.nodes[id(pad)] = []
    return replacements.write()


def _pads_behind(context: Context, pad: gs.Node, transpose: gs.Node) -> list[int] | None:
    """The pads of a Pad behind a Transpose, all begins, then all ends; None where no windows alone read it then."""
    scope, name = context.scope, transpose.outputs[0].name
    rank = context.rank(name)
    windows = [] if scope.is_seen(name) else scope.consumers.get(name, [])
    if rank is None or not windows or not scope.is_private(pad.outputs[0].name):
        return None
    if any(not has_window(node) or node.inputs[0].name != name for node in windows):
        return None
    amounts, order = read_pads(context, pad, rank), permutation(transpose, rank)
    if isinstance(amounts, Declined) or pad.attrs.get("mode", "constant") != "constant":
        return None
    begin, end = ([side[axis] for axis in order] for side in (amounts.begin, amounts.end))
    pads_space_alone = not any((*begin[:2], *end[:2])) and min(*begin, *end) >= 0
    return begin + end if amounts.value == 0 and pads_space_alone else None


def _written(scope: Scope, pad: gs.Node, transpose: gs.Node, pads: list[int]) -> list[gs.Node]:
    """The Transpose, and then the Pad."""
    source, output = str(pad.inputs[0].name), str(transpose.outputs[0].name)
    name = scope.fresh(f"{output}_unpadded")
    shape = scope.shape(source)
    order = permutation(transpose, len(pads) // 2)
    turned = None if shape is None else tuple(shape[axis] for axis in order)
    scope.types[name] = scope.data_type(source) or 0, turned
    attributes: dict[str, Any] = {"mode": "constant"}
    inputs = [name]
    if operator(pad).uses_attributes(scope.opset):
        attributes["pads"] = pads
    else:
        values = np.array(pads, np.int64)
        const = Const(values.shape, onnx.TensorProto.INT64, partial(_same, values))
        inputs.append(scope.new_constant(f"{output}_pads", const))
        value = optional_input(pad, 2)
        inputs += [value] if value else []
    return [
        new_node("Transpose", scope.fresh(f"{transpose.name}_first"), transpose.attrs, [source], [name]),
        new_node("Pad", scope.fresh(f"{pad.name}_behind"), attributes, inputs, [output]),
    ]


def _same(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return values
