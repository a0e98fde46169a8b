"""Factors and shifts behind a normalization go into its scale and bias.

    (LayerNormalization(x) * g + b) * f + t  =  LayerNormalization(x) * (g*f) + (b*f + t)

Likewise behind InstanceNormalization, GroupNormalization where its scale has a value per channel (opset 21), and
RMSNormalization, which takes no shift. Whatever is normalized over, scale and bias are applied last; but runtimes
multiply the scale of an InstanceNormalization by the mean first, and divide it by the deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, optional_input
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.batchnorm_arithmetic import ROUNDS_BETWEEN, most_that_cancels
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.refusals import norm_refusal
from onnx_repfuse.planner.rewrites.affine_nodes import factor_and_shift_of
from onnx_repfuse.planner.weights.rounding import check_underflow, rounded
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["fold_behind_norms", "norm_refusals"]

Array = NDArray[np.float64]
SCALE, BIAS = 1, 2  # the inputs of a normalization
_PER_CHANNEL = ("GroupNormalization", "InstanceNormalization")
_TRAILING = ("LayerNormalization", "RMSNormalization")  # their scale is aligned with the last axes


class _Parameters(NamedTuple):
    """Scale and bias of a normalization, of one shape, in float64."""

    scale: Array
    bias: Array

    def then(self, factor: Array, shift: Array) -> _Parameters:
        return _Parameters(self.scale * factor, self.bias * factor + shift)


class _Pair(NamedTuple):
    """A normalization and the operator behind it; its parameters before, and what the operator does to them."""

    node: gs.Node
    behind: gs.Node
    before: _Parameters
    factor: Array
    shift: Array

    @property
    def after(self) -> _Parameters:
        return self.before.then(self.factor, self.shift)


def fold_behind_norms(plan: ScopePlan, context: Context, is_free: IsFree) -> bool:
    """Fold what stands behind normalizations into their parameters; whether there was anything.

    Args:
        plan: of the scope, which is changed.
        context: the scope and its layouts.
        is_free: whether a node may be replaced.
    """
    replacements = Replacements(plan)
    for pair in _pairs(context, is_free):
        if id(pair.node) in replacements.nodes or _why_not(context.scope, pair) is not None:
            continue
        created = _folded(context.scope, pair)
        replacements.fold(pair.behind.outputs[0].name, {Kind.AFFINE}, [pair.node, pair.behind], [created])
        replacements.nodes[id(pair.node)] = []
    return replacements.write()


def norm_refusals(context: Context, is_free: IsFree) -> Iterator[Refusal]:
    """What stands behind normalizations and would not be the same in their parameters."""
    for pair in _pairs(context, is_free):
        reason = _why_not(context.scope, pair)
        if reason is not None:
            why = ROUNDS_BETWEEN if reason is Reason.PRECISION else reason.prose
            yield norm_refusal(context.scope, pair.behind, pair.node, reason, why)


def _pairs(context: Context, is_free: IsFree) -> Iterator[_Pair]:
    """The normalizations with an operator behind them whose values have a place in their parameters."""
    for node in context.scope.nodes:
        behind = _only_reader(context.scope, node) if node.op in (*_PER_CHANNEL, *_TRAILING) else None
        if behind is None or not (is_free(node) and is_free(behind)):
            continue
        pair = _pair(context, node, behind)
        if pair is not None and context.protected.isdisjoint((id(node), id(behind))):
            yield pair


def _only_reader(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The node that alone reads the first output of a node, whose others nobody reads."""
    name, *others = (tensor.name for tensor in node.outputs)
    return None if any(map(scope.is_used, filter(None, others))) else scope.only_consumer(name)


def _pair(context: Context, node: gs.Node, behind: gs.Node) -> _Pair | None:
    """A normalization and what is behind it; None if that has no place in its parameters."""
    before = _parameters(context.scope, node)
    affine = None if before is None else factor_and_shift_of(context, behind, str(node.outputs[0].name))
    if before is None or affine is None:
        return None
    factor, shift = (_aligned(context, node, value, before.scale.shape) for value in affine)
    if factor is None or shift is None or (node.op == "RMSNormalization" and shift.any()):
        return None
    return _Pair(node, behind, before, factor, shift)


def _folded(scope: Scope, pair: _Pair) -> gs.Node:
    """The normalization with other parameters."""
    node, output, after = pair.node, str(pair.behind.outputs[0].name), pair.after
    data_type = scope.data_type(node.inputs[SCALE].name) or 0
    names = [_parameter(scope, f"{output}_scale", after.scale, data_type)]
    if optional_input(node, BIAS) or after.bias.any():
        names.append(_parameter(scope, f"{output}_bias", after.bias, data_type))
    fresh = scope.fresh(f"{output}_normalized")
    return new_node(node.op, fresh, node.attrs, [node.inputs[0].name, *names], [output])


def _parameters(scope: Scope, node: gs.Node) -> _Parameters | None:
    """Scale and bias of a normalization; None unless they are small constants of one shape."""
    constants = [scope.const(name) for place in (SCALE, BIAS) if (name := optional_input(node, place))]
    known = [const for const in constants if const is not None and not _is_too_large(const)]
    if not known or len(known) < len(constants):
        return None
    values = [np.asarray(const.read(), np.float64) for const in known]
    found = _Parameters(values[0], values[1] if len(values) > 1 else np.zeros_like(values[0]))
    return found if found.scale.shape == found.bias.shape else None


def _is_too_large(const: Const) -> bool:
    return const.size > MAX_FOLDED_ELEMENTS or const.data_type not in FLOAT_FORMATS


def _aligned(context: Context, node: gs.Node, value: Array, shape: tuple[int, ...]) -> Array | None:
    """A value beside the output as one beside the scale; None if it varies along other axes."""
    if node.op in _PER_CHANNEL:
        rank = context.rank(node.inputs[0].name)
        varying = [axis - value.ndim for axis, size in enumerate(value.shape) if size != 1]
        if (
            rank is None
            or value.ndim > rank
            or not set(varying) <= {1 - rank}
            or value.size not in (1, *shape)
        ):
            return None
        return value.ravel()
    # of the shape of the axes that are normalized over, which are the last ones
    fits = zip(value.shape[::-1], shape[::-1], strict=False)
    return value if value.ndim <= len(shape) and all(size in (1, own) for size, own in fits) else None


def _why_not(scope: Scope, pair: _Pair) -> Reason | None:
    """Why the parameters would not be what both nodes compute; `(y + 2**23) - 2**23` rounds y, which is wanted."""
    before, after = pair.before, pair.after
    data_type = scope.data_type(pair.node.inputs[SCALE].name) or 0
    limits = FLOAT_FORMATS[data_type]
    if not all(np.isfinite(value).all() for value in (pair.factor, pair.shift, *before)):
        return Reason.NON_FINITE
    if _most(after.bias) > limits.largest or _most(after.scale) > _largest_scale(pair, limits.largest):
        return Reason.OVERFLOW
    terms = np.abs(before.bias * pair.factor) + np.abs(pair.shift)
    if (terms > most_that_cancels(limits.epsilon) * np.abs(after.scale)).any() and pair.shift.any():
        return Reason.PRECISION
    try:
        check_underflow(after.scale.reshape(-1, 1), data_type)
    except Inexact as error:
        return error.reason
    return None


def _largest_scale(pair: _Pair, largest: float) -> float:
    """How large a scale may become.

    ONNX Runtime computes InstanceNormalization as `x * (scale/deviation) + (bias - mean * (scale/deviation))`. So a
    scale near the largest number gives infinities and NaN where the result would be finite. That leaves room for the
    mean and the deviation, unless the file leaves less.
    """
    if pair.node.op in _TRAILING:
        return largest
    return max(float(np.sqrt(largest)), _most(pair.before.scale))


def _most(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))


def _parameter(scope: Scope, stem: str, values: Array, data_type: int) -> str:
    return scope.new_constant(stem, Const(values.shape, data_type, lambda: rounded(values, data_type)))
