"""Factors and shifts behind a normalization go into its scale and bias.

    (LayerNormalization(x) * g + b) * f + t  =  LayerNormalization(x) * (g*f) + (b*f + t)

Likewise behind InstanceNormalization, GroupNormalization where its scale has a value per channel (opset 21), and
RMSNormalization, which takes no shift. Whatever is normalized over, scale and bias are applied last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, optional_input
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.batchnorm_arithmetic import most_that_cancels
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.rewrites.affine_nodes import factor_and_shift_of
from onnx_repfuse.planner.weights.rounding import check_underflow, rounded
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["fold_behind_norms"]

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


def fold_behind_norms(plan: ScopePlan, context: Context, is_free: Callable[[gs.Node], bool]) -> bool:
    """Fold what stands behind normalizations into their parameters; whether there was anything.

    Args:
        plan: of the scope, which is changed.
        context: the scope and its layouts.
        is_free: whether a node may be replaced.
    """
    scope, replacements = context.scope, Replacements(plan)
    for node in scope.nodes:
        behind = _only_reader(scope, node) if node.op in (*_PER_CHANNEL, *_TRAILING) else None
        if behind is None or id(node) in replacements.nodes or not (is_free(node) and is_free(behind)):
            continue
        if not context.protected.isdisjoint((id(node), id(behind))):
            continue
        created = _folded(context, node, behind)
        if created is not None:
            replacements.fold(behind.outputs[0].name, {Kind.AFFINE}, [node, behind], [created])
            replacements.nodes[id(node)] = []
    return replacements.write()


def _only_reader(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The node that alone reads the first output of a node, whose others nobody reads."""
    name, *others = (tensor.name for tensor in node.outputs)
    if any(scope.is_used(other) for other in others if other) or not scope.is_private(name):
        return None
    return scope.consumers[name][0]


def _folded(context: Context, node: gs.Node, behind: gs.Node) -> gs.Node | None:
    """The normalization with other parameters; None if it stays."""
    scope, output = context.scope, str(behind.outputs[0].name)
    before = _parameters(scope, node)
    affine = None if before is None else factor_and_shift_of(context, behind, str(node.outputs[0].name))
    if before is None or affine is None:
        return None
    factor, shift = (_aligned(context, node, value, before.scale.shape) for value in affine)
    if factor is None or shift is None:
        return None
    data_type = scope.data_type(node.inputs[SCALE].name) or 0
    after = before.then(factor, shift)
    takes_bias = bool(optional_input(node, BIAS)) or bool(after.bias.any())
    if not _is_exact(before, factor, shift, data_type) or (takes_bias and node.op == "RMSNormalization"):
        return None
    names = [_parameter(scope, f"{output}_scale", after.scale, data_type)]
    names += [_parameter(scope, f"{output}_bias", after.bias, data_type)] if takes_bias else []
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


def _is_exact(before: _Parameters, factor: Array, shift: Array, data_type: int) -> bool:
    """Whether the new parameters are finite, and no rounding between was wanted: `(y + 2**23) - 2**23` rounds y."""
    after, limits = before.then(factor, shift), FLOAT_FORMATS[data_type]
    largest = max(float(np.abs(value).max(initial=0.0)) for value in after)
    if not all(np.isfinite(value).all() for value in after) or largest > limits.largest:
        return False
    terms = np.abs(before.bias * factor) + np.abs(shift)
    if (terms > most_that_cancels(limits.epsilon) * np.abs(after.scale)).any() and shift.any():
        return False
    try:
        check_underflow(after.scale.reshape(-1, 1), data_type)
    except Inexact:
        return False
    return True


def _parameter(scope: Scope, stem: str, values: Array, data_type: int) -> str:
    return scope.new_constant(stem, Const(values.shape, data_type, lambda: rounded(values, data_type)))
