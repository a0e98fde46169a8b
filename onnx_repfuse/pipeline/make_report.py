"""The report of a plan: its folds, changes and nodes as plain records, named and labelled for a reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.edit_points import used_names
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.branches import NAMES
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import INPUTS_ARE_OPTIONAL
from onnx_repfuse.modelfile.opset import opset_of
from onnx_repfuse.pipeline.graph_maps import graph_maps
from onnx_repfuse.pipeline.plan_model import ModelPlan, initialized_inputs
from onnx_repfuse.pipeline.range_ratios import RangeRatios
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.report import Change, Fold, Kind, NodeRef, Refusal, Report, Vanished
from onnx_repfuse.records.verdict import Verification

__all__ = ["make_report"]


def make_report(
    plan: ModelPlan,
    *,
    name: str = "",
    output: str = "",
    nbytes: int = 0,
    undone: Sequence[Refusal] = (),
    verification: Verification | None = None,
    seconds: dict[str, float] | None = None,
    ratios: RangeRatios | None = None,
) -> Report:
    """The report of a run, or of a dry run.

    Args:
        plan: the last plan.
        name, output: the files.
        nbytes: of the result.
        undone: folds that failed their proof.
        verification: how the result compares; None: it was not checked.
        seconds: stage -> time.
        ratios: how far the channels of weights differ; None in a dry run, which reads no weights.
    """
    scopes = [planned.scope for planned in plan.scopes]
    after = count(scopes, used_names(scopes), nbytes)
    folds = tuple(_fold(planned, fold, ratios) for planned, fold in plan.folds if not fold.is_change)
    changes = [
        _changed(planned, fold) for planned, fold in plan.folds if fold.is_change and planned.is_left(fold)
    ]
    refusals, notes = list(undone), []
    for scope_plan in plan.scopes:
        refusals += scope_plan.refusals
        notes += scope_plan.notes
    notes += _conversion(plan.document)
    if plan.raised_ir_version:
        notes.append(
            f"the IR version is {plan.raised_ir_version} now: before, every initializer had to be a graph input"
        )
    planned = (name, output, plan.before, after, folds, tuple(refusals))
    return Report(
        *planned,
        verification=verification,
        seconds=seconds or {},
        notes=tuple(notes),
        changes=(*_inlined(plan), *changes, *_frozen(plan), *_flushed(plan)),
        vanished=tuple(_vanished(plan)),
        overridable=_overridable(plan),
        maps=graph_maps(plan),
    )


def _conversion(document: Document) -> Iterator[str]:
    before, after = opset_of(document.unconverted.model), opset_of(document.model)
    if before != after:
        yield f"converted from opset {before} to {after} by the version converter of onnx {onnx.__version__}"


def _fold(planned: ScopePlan, fold: PlannedFold, ratios: RangeRatios | None) -> Fold:
    scope = planned.scope
    # A later fold of this scope may have absorbed some of the created nodes; they are listed here nevertheless.
    absorbed = tuple(_with_ratio(_original_ref(scope, node), node, ratios) for node in fold.absorbed)
    created = tuple(_with_ratio(_ref(scope, node), node, ratios) for node in fold.created)
    computed = {name for ref in created for name in ref.outputs}
    read = dict.fromkeys(name for ref in created for name in ref.inputs)  # in order, each once
    read.update(dict.fromkeys(planned.stand_in(name) for name in fold.aliases))
    return Fold(
        fold.name,
        fold.kind,
        tuple(sorted(fold.roles, key=lambda kind: kind.value)) or (fold.kind,),
        absorbed,
        created,
        tuple(name for name in read if name not in computed),
        scope.label,
        fold.macs_before,
        fold.macs_after,
    )


def _changed(planned: ScopePlan, fold: PlannedFold) -> Change:
    """What is no fold, with the sentence that proves it."""
    gone = [node for node in fold.absorbed if node is not fold.equal_to]
    nodes = [_original_ref(planned.scope, node) for node in gone]
    titles = ", ".join(f"{node.op} '{node.name}'" for node in nodes)
    claim = _of_initializer if fold.is_initializer else _of_no_op if fold.equal_to is None else _of_equal
    names = tuple(node.name for node in nodes)
    return Change(fold.kind, names, claim(planned, fold, titles), planned.scope.label)


def _of_initializer(planned: ScopePlan, fold: PlannedFold, titles: str) -> str:
    verb = "computes" if len(fold.absorbed) == 1 else "compute"
    computed = {tensor.name for node in fold.absorbed for tensor in node.outputs}
    read = {tensor.name for node in fold.absorbed for tensor in node.inputs if tensor.name} - computed
    what = "constants" if read <= planned.scope.constants.keys() else "constants and proved sizes"
    return f"{titles} {verb} '{fold.name}' from {what} alone: it is an initializer now"


def _of_equal(planned: ScopePlan, fold: PlannedFold, titles: str) -> str:
    assert fold.equal_to is not None
    first = _original_ref(planned.scope, fold.equal_to)
    source = planned.stand_in(fold.name)
    what = f"computes the same as {first.op} '{first.name}'"
    return f"{titles} {what}: '{fold.name}' equals '{source}', which is read instead"


def _of_no_op(planned: ScopePlan, fold: PlannedFold, titles: str) -> str:
    """Of a removed no-op, or one whose output is read outside of the scope: then an Identity is in its place."""
    source = planned.stand_in(fold.name)
    instead = "which is read instead"
    if source == fold.name and fold.created:
        source, instead = fold.created[0].inputs[0].name, "of which it is now an Identity"
    verb = "gives out what it reads" if len(fold.absorbed) == 1 else "give out what they read"
    return f"{titles} {verb}: '{fold.name}' equals '{source}', {instead}"


def _inlined(plan: ModelPlan) -> Iterator[Change]:
    for one in plan.inlined:
        claim = (
            f"the condition of If '{one.name}' is always {str(one.taken).lower()}: "
            f"its {NAMES[one.taken]} is in its place"
        )
        yield Change(Kind.CONSTANT, (one.name,), claim, one.scope)


def _frozen(plan: ModelPlan) -> Iterator[Change]:
    """The inputs that callers could set, with the nodes that read them, subgraphs included."""
    consumers: dict[str, list[str]] = {name: [] for name in plan.frozen}
    for planned in plan.scopes if plan.frozen else ():
        for proto in planned.scope.proto.node:
            for name in consumers.keys() & set(proto.input):
                consumers[name].append(proto.name or proto.output[0])
    for name, nodes in consumers.items():
        claim = f"'{name}' is no graph input any more: its initializer is its value, and no caller sets it"
        yield Change(Kind.FROZEN, tuple(nodes), claim)


def _overridable(plan: ModelPlan) -> tuple[str, ...]:
    """The inputs of the result that have an initializer, which callers may set."""
    model = plan.document.model
    if plan.frozen or model.ir_version < INPUTS_ARE_OPTIONAL:
        return ()
    return initialized_inputs(model)


def _flushed(plan: ModelPlan) -> list[Change]:
    return [] if plan.flushing is None else plan.flushing.changes()


def _vanished(plan: ModelPlan) -> Iterator[Vanished]:
    """The tensors that nodes of the original compute and that the result does not have, by scope."""
    original = plan.document.original.model.graph
    for planned in plan.scopes if plan.folds or plan.document.is_converted else ():
        scope = planned.scope
        present = {tensor.name for node in scope.nodes for tensor in node.outputs} | {
            *filter(scope.is_used, scope.created)
        }
        nodes = scope.proto.node if scope.key else original.node
        gone = [name for node in nodes for name in node.output if name and name not in present]
        if gone:
            yield Vanished(scope.label, tuple(gone))


def _with_ratio(ref: NodeRef, node: gs.Node, ratios: RangeRatios | None) -> NodeRef:
    return ref if ratios is None else replace(ref, range_ratio=ratios.of(node))


def _ref(scope: Scope, node: gs.Node) -> NodeRef:
    """A node as it is now."""
    return _named(scope, node, [t.name for t in node.inputs], [t.name for t in node.outputs])


def _original_ref(scope: Scope, node: gs.Node) -> NodeRef:
    """A node of the input as it was there: later steps of the plan may have renamed what it reads."""
    proto: onnx.NodeProto = scope.proto.node[scope.anchor[id(node)]]
    return _named(scope, node, proto.input, proto.output)


def _named(scope: Scope, node: gs.Node, inputs: Sequence[str], outputs: Sequence[str]) -> NodeRef:
    read = tuple(name for name in inputs if name and name not in scope.constants)
    written = tuple(filter(None, outputs))
    # As `node_name`, but of these outputs: consumers of a node that went read another tensor, which its own share.
    title = str(node.name) or next(iter(written), str(node.op))
    return NodeRef(title, node.op, read, written, _label(scope, node))


def _label(scope: Scope, node: gs.Node) -> str:
    """The sizes of a convolution, matrix product or pooling: `3x3, 64->128, groups 2, stride 2`; '' for others."""
    facts = operator(node)
    if facts.weight is None and not facts.has_window:
        return ""
    # Without kernel_shape, which is optional, the weight has the kernel: (M, C, kH, kW) -> kH x kW.
    weight = scope.constants.get(node.inputs[1].name) if len(node.inputs) > 1 else None
    shape = () if weight is None else weight.shape
    parts = ["x".join(map(str, node.attrs.get("kernel_shape") or shape[2:]))]
    if facts.weight is not None and len(shape) >= 2:
        channels_in, channels_out = facts.weight(node, shape)
        parts.append(f"{channels_in}->{channels_out}")
        groups = node.attrs.get("group", 1)
        parts.append(f"groups {groups}" if groups != 1 else "")
    parts.append(_steps("stride", node.attrs.get("strides", ())))
    parts.append(_steps("dilation", node.attrs.get("dilations", ())))
    return ", ".join(part for part in parts if part)


def _steps(label: str, values: Sequence[int]) -> str:
    """`stride 2`, or `stride [2, 1]` where the axes differ; '' if all are 1."""
    if set(values) <= {1}:
        return ""
    return f"{label} {values[0] if len(set(values)) == 1 else values}"
