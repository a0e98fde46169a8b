"""Operators that the user's target cannot run, or is slow with, written as others: a Sum as Adds, a HardSwish as
HardSigmoid and Mul.

A rule writes one operator as others that compute the same, but for rounding. Where one of these is to be avoided, too,
its own rule is asked; where there is none, the node stays. `cover` does the same for BatchNormalization and Gemm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.avoided import rises
from onnx_repfuse.planner.rewrites.avoided_rules import KINDS, LATE_RULES, RULES, Op, Rewriting, Rule
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["avoided_refusals", "creators_of_avoided", "rewrite_avoided"]

# In half precision, two roundings instead of one may show.
_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_OF_COVER = ("BatchNormalization", "Gemm")


def rewrite_avoided(
    plan: ScopePlan,
    avoided: Set[str],
    is_free: IsFree,
    is_slow: Callable[[gs.Node], bool] = lambda node: False,
    rules: Mapping[str, Rule] = RULES,
) -> bool:
    """Write nodes of avoided operators, and slow ones, as others where there is a way; whether there were any.

    Args:
        plan: of the scope; folds are added.
        avoided: operators.
        is_free: whether a node may be replaced.
        is_slow: whether a node of an operator that is not avoided should be replaced.
        rules: for the operators to be written otherwise.
    """
    scope = plan.scope
    replacements = Replacements(plan)
    for node in scope.nodes:
        if node.op not in rules or not is_free(node) or not (node.op in avoided or is_slow(node)):
            continue
        rewriting = _begin(scope, node)
        written = None if rewriting is None else _expanded(rewriting, avoided | {node.op}, rules)
        if rewriting is None or written is None:
            continue
        kind = KINDS.get(node.op, Kind.AFFINE)
        replacements.fold(rewriting.output, {kind}, [node], _created(rewriting, written))
    return replacements.write()


def avoided_refusals(
    scope: Scope, avoided: Set[str], is_kept: Callable[[gs.Node], bool]
) -> Iterator[Refusal]:
    """The nodes that the target cannot run and that stay, but those that the user keeps."""
    for node in scope.nodes:
        if node.op in avoided and id(node) in scope.original and not is_kept(node):
            why = _why_it_stays(scope, node)
            message = f"{node.op} '{node_name(node)}' stays although it is to be avoided: {why}."
            yield Refusal(Reason.AVOIDED, message, (node_name(node),), scope.label)


def _why_it_stays(scope: Scope, node: gs.Node) -> str:
    if node.op not in RULES and node.op not in LATE_RULES and node.op not in _OF_COVER:
        return "no rule writes it as other operators"
    if scope.data_type(node.outputs[0].name) not in _TYPES:
        return "in half precision, the roundings of several operators may show, or its type is not known"
    return "what it would become is to be avoided, too, or the file does not say enough of it"


def creators_of_avoided(plan: ScopePlan, avoided: Set[str]) -> set[str]:
    """The names of the folds by which a scope got more nodes of an avoided operator than they took away.

    Where each took away as many, but two took the same, all that wrote the operator are named.
    """
    if not avoided:
        return set()
    left = {id(node) for node in plan.scope.nodes}
    before = [node.op_type for node in plan.scope.proto.node]
    rising = {op for op in avoided if rises(op, (node.op for node in plan.scope.nodes), before)}

    def is_creator(fold: PlannedFold) -> bool:
        absorbed = [node.op for node in fold.absorbed]
        created = [node.op for node in fold.created if id(node) in left]
        return not rising.isdisjoint(created) or any(rises(op, created, absorbed) for op in avoided)

    return {fold.name for fold in plan.folds if is_creator(fold)}


def _begin(scope: Scope, node: gs.Node) -> Rewriting | None:
    data_type = scope.data_type(node.outputs[0].name)
    if any(scope.is_used(tensor.name) for tensor in node.outputs[1:]):
        return None
    if data_type not in _TYPES or scope.opset < NUMPY_BROADCAST_SINCE:
        return None
    return Rewriting(scope, node, data_type)


def _expanded(rewriting: Rewriting, avoided: Set[str], rules: Mapping[str, Rule]) -> list[Op] | None:
    """Operators, none of them avoided, that compute the node's output; None if there is no way."""
    node = rewriting.node
    pending = [Op(node.op, tuple(t.name for t in node.inputs), rewriting.output, dict(node.attrs))]
    result: list[Op] = []
    seen: set[str] = set()
    while pending:
        one = pending.pop(0)
        if one.op not in avoided:
            result.append(one)
            continue
        if one.op in seen or one.op not in rules:  # a rule that comes back to its operator leads nowhere
            return None
        seen.add(one.op)
        parts = rules[one.op](rewriting, one)
        if parts is None:
            return None
        pending = [*parts, *pending]
    return result


def _created(rewriting: Rewriting, written: Iterable[Op]) -> list[gs.Node]:
    scope, output = rewriting.scope, rewriting.output
    scope.add_constants(rewriting.constants)
    for name, shape in rewriting.inner.items():
        scope.declare_like(name, output)
        scope.types[name] = (rewriting.data_type, shape)
        assumed = scope.assumed.get(output)
        if assumed is not None and shape is not None and len(assumed) == len(shape):
            scope.assumed[name] = tuple(
                1 if size == 1 else other for size, other in zip(shape, assumed, strict=True)
            )
    return [
        new_node(one.op, scope.fresh(f"{output}_{one.op.lower()}"), one.attrs, one.inputs, [one.output])
        for one in written
    ]
