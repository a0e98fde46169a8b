"""load -> lift -> plan -> fold -> splice -> prove -> save, one model.

A fold that does not pass its proof is banned and the model is planned again without it: planning is cheap and
deterministic, and nothing has to be undone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.collector import uncollected
from onnx_repfuse.errors import Inexact, OutputError, VerificationError
from onnx_repfuse.graph.cases import before_and_after
from onnx_repfuse.graph.counting import count
from onnx_repfuse.graph.document import Document, ScopeKey
from onnx_repfuse.graph.edit import Edit
from onnx_repfuse.graph.frames import Frame, frames
from onnx_repfuse.graph.rewrite import difference, used_names
from onnx_repfuse.graph.save import save
from onnx_repfuse.graph.scope import Scope, inner_graphs, node_name
from onnx_repfuse.graph.skeleton import read_scopes
from onnx_repfuse.options import Options
from onnx_repfuse.plan.rounds import Made, Planned, originals, plan_scope
from onnx_repfuse.reasons import Reason
from onnx_repfuse.report.record import Counts, Fold, NodeRef, Refusal, Report
from onnx_repfuse.verify.verdict import FoldVerdict, Status, Verification

if TYPE_CHECKING:
    from onnx_repfuse.verify.probes import FoldCase

__all__ = ["Run", "describe", "make_plan", "run"]

Progress = Callable[[str, int, int], None]
ATTEMPTS = 32


def _quiet(stage: str, done: int, total: int) -> None:
    return None


@dataclass(eq=False)
class Plan:
    """All scopes after planning, and what was counted before."""

    document: Document
    scopes: list[Planned]
    before: Counts
    protos: dict[ScopeKey, onnx.GraphProto | onnx.FunctionProto]
    frames: dict[ScopeKey, dict[str, Frame]] = field(default_factory=dict)

    @property
    def folds(self) -> list[tuple[Planned, Made]]:
        """Every fold with its scope."""
        return [(planned, made) for planned in self.scopes for made in planned.folds]

    def edits(self) -> dict[ScopeKey, Edit]:
        """What to change in the document."""
        if not self.folds:
            return {}
        used = used_names(planned.scope for planned in self.scopes)
        model = self.document.model
        interface = {i.name for i in model.graph.input} if model.ir_version >= 4 else set()
        interface |= {o.name for o in model.graph.output}
        result = {}
        for planned in self.scopes:
            scope = planned.scope
            edit = difference(scope, self.protos[scope.key], used, interface)
            if edit:
                result[scope.key] = edit
        return result


@dataclass(eq=False)
class Run:
    """The outcome of `run`."""

    report: Report
    path: Path | None


def make_plan(
    document: Document, options: Options, banned: frozenset[tuple[ScopeKey, str]] = frozenset()
) -> Plan:
    """Plan every scope of a document."""
    with uncollected():
        return _make_plan(document, options, banned)


def _make_plan(document: Document, options: Options, banned: frozenset[tuple[ScopeKey, str]]) -> Plan:
    scopes = read_scopes(document, freeze_initializers=options.freeze_initializers)
    before = count(document, scopes, None, document.nbytes)
    protos = dict(_protos(document.model))
    known = {scope.key: frames(scope) for scope in scopes}
    planned = [
        plan_scope(scope, options, frozenset(root for key, root in banned if key == scope.key))
        for scope in scopes
    ]
    return Plan(document, planned, before, protos, known)


def _protos(model: onnx.ModelProto) -> Iterator[tuple[ScopeKey, onnx.GraphProto | onnx.FunctionProto]]:
    def visit(
        proto: onnx.GraphProto | onnx.FunctionProto, key: ScopeKey
    ) -> Iterator[tuple[ScopeKey, onnx.GraphProto | onnx.FunctionProto]]:
        yield key, proto
        for position, node in enumerate(proto.node):
            for tail, inner in inner_graphs(node):
                yield from visit(inner, (*key, position, *tail))

    yield from visit(model.graph, ())
    for number, function in enumerate(model.functions):
        yield from visit(function, ("function", number))


def run(
    document: Document,
    output: Path | None,
    options: Options,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Run:
    """Fuse a document and write it to `output` (None: to a temporary file that is only verified).

    Raises:
        InputError, OutputError: as they say.
        VerificationError: nothing was written; its `report` attribute tells the figures.
    """
    tell = progress or _quiet
    seconds: dict[str, float] = {}
    banned: set[tuple[ScopeKey, str]] = set()
    undone: list[Refusal] = []
    verdicts: list[FoldVerdict] = []
    with _workspace(output) as folder:
        for _ in range(ATTEMPTS):
            with _timed(seconds, "plan"):
                tell("planning", 0, 1)
                plan = make_plan(document, options, frozenset(banned))
            if options.check:
                with _timed(seconds, "probe"):
                    failed, verdicts = _probe(plan, tell)
                if failed:
                    _ban(failed, banned, undone)
                    continue
            target = folder / (output.name if output else "model.onnx")
            with _timed(seconds, "write"):
                tell("writing", 0, 1)
                try:
                    nbytes = save(document, plan.edits(), target, external=options.external)
                except Inexact as reason:
                    _ban(_overflowing(plan, reason), banned, undone)
                    continue
            verification = None
            if options.check:
                with _timed(seconds, "verify"):
                    tell("proving", 0, 1)
                    verification = _verify(document, target, options, tuple(verdicts), bool(plan.folds))
            break
        else:
            raise OutputError("no set of folds passed verification")
        report = describe(plan, options, nbytes, undone, verification, seconds, name, str(output or ""))
        if verification is not None and plan.folds and verification.status is Status.FAILED:
            error = VerificationError(_why(verification))
            error.report = report  # type: ignore[attr-defined]
            raise error
        if output is not None:
            with _timed(seconds, "write"):
                _publish(document, plan, target, output, options)
    return Run(report, output)


def _publish(document: Document, plan: Plan, target: Path, output: Path, options: Options) -> None:
    """Write the verified bytes to their place, whole or not at all."""
    data = [p for p in target.parent.iterdir() if p != target]
    if data or document.path is None:  # external data: let the writer name and order the files
        save(document, plan.edits(), output, external=options.external)
        return
    os.replace(target, output)


@contextmanager
def _workspace(output: Path | None) -> Iterator[Path]:
    """A temporary folder on the output's file system."""
    parent = output.parent if output is not None else None
    if parent is not None and not parent.is_dir():
        raise OutputError(f"there is no folder '{parent}' to write to")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".repfuse-", dir=parent))
    except OSError as error:
        raise OutputError(f"cannot write to '{parent}': {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


Failure = tuple[ScopeKey, Made, Reason, str]


def _probe(plan: Plan, tell: Progress) -> tuple[list[Failure], list[FoldVerdict]]:
    """Each fold, before and after, through the runtime."""
    from onnx_repfuse.verify.probes import probe

    failed: list[Failure] = []
    verdicts: list[FoldVerdict] = []
    folds = plan.folds
    for number, (planned, made) in enumerate(folds):
        tell("probing", number, len(folds))
        scope = planned.scope
        if not made.created:
            continue
        try:
            verdict = probe(_fold_case(plan, planned, made, sized=False))
            if verdict.status is Status.FAILED:
                verdict = probe(_fold_case(plan, planned, made, sized=True))
        except Inexact as reason:
            failed.append((scope.key, made, reason.reason, reason.detail))
            continue
        verdicts.append(verdict)
        if verdict.status is Status.FAILED:
            failed.append((scope.key, made, Reason.VERIFICATION, verdict.message))
    return failed, verdicts


def _fold_case(plan: Plan, planned: Planned, made: Made, *, sized: bool) -> FoldCase:
    """A fold for the prober: at any size, or at the sizes the file proves, for which alone it may be exact."""
    from onnx_repfuse.verify.probes import FoldCase

    scope = planned.scope
    proto = plan.protos[scope.key]
    created = {id(node) for node in made.created}
    before, after = before_and_after(
        scope,
        plan.frames[scope.key],
        made.root,
        originals(planned, made, proto),
        [node for node in scope.nodes if id(node) in created],
        plan.document.model.ir_version,
        made.groups,
        sized=sized,
    )
    return FoldCase(made.root, before, after)


def _ban(failed: list[Failure], banned: set[tuple[ScopeKey, str]], undone: list[Refusal]) -> None:
    for key, made, reason, message in failed:
        banned.add((key, made.root))
        names = tuple(node_name(node) for node in made.absorbed)
        undone.append(Refusal(reason, f"the fold of '{made.root}' was undone: {message}", names))


def _overflowing(plan: Plan, reason: Inexact) -> list[Failure]:
    """The folds whose weights cannot be written."""
    failed: list[Failure] = []
    for planned, made in plan.folds:
        for name in {t.name for node in made.created for t in node.inputs}:
            const = planned.scope.created.get(name)
            if const is None:
                continue
            try:
                const.read()
            except Inexact as found:
                failed.append((planned.scope.key, made, found.reason, found.detail))
                break
    if not failed:
        raise OutputError(f"a folded weight cannot be written: {reason.detail}")
    return failed


def _verify(
    document: Document, target: Path, options: Options, verdicts: tuple[FoldVerdict, ...], changed: bool
) -> Verification:
    from dataclasses import replace

    from onnx_repfuse.feeding import feed_spec
    from onnx_repfuse.verify.outputs import verify_outputs

    if not changed:
        return Verification(notes=("nothing was folded: the output is the input, byte for byte",))
    constant = {i.name for i in document.model.graph.initializer}
    inputs = [i.name for i in document.model.graph.input if i.name not in constant]
    feeds = feed_spec(options.input_shapes, options.input_data, inputs)
    original: Path | onnx.ModelProto
    if document.path is not None:
        original = document.path
    else:
        original = target.parent / "original.onnx"
        save(document, {}, original)
    found = verify_outputs(original, target, feeds=feeds, rtol=options.rtol, atol=options.atol)
    if document.path is None:
        Path(original).unlink()
    return replace(found, folds=verdicts)


def _why(verification: Verification) -> str:
    bad = next((v for v in verification.outputs if v.status is Status.FAILED), None)
    detail = bad.message if bad is not None else "; ".join(verification.notes) or "nothing could be compared"
    return f"verification failed, nothing was written: {detail}"


def describe(
    plan: Plan,
    options: Options,
    nbytes: int,
    undone: list[Refusal],
    verification: Verification | None,
    seconds: dict[str, float],
    name: str,
    output: str,
) -> Report:
    """The report of a run or of a dry run."""
    scopes = [planned.scope for planned in plan.scopes]
    after = count(plan.document, scopes, used_names(scopes), nbytes)
    folds = tuple(_fold(planned, made) for planned, made in plan.folds)
    refused = (*undone, *(r for planned in plan.scopes for r in planned.refusals))
    notes = tuple(note for planned in plan.scopes for note in planned.notes)
    return Report(name, output, plan.before, after, folds, refused, verification, seconds, None, notes)


def _fold(planned: Planned, made: Made) -> Fold:
    scope = planned.scope
    inner = {t.name for node in made.created for t in node.outputs}
    read = dict.fromkeys(
        t.name
        for node in made.created
        for t in node.inputs
        if t.name not in inner and t.name not in scope.constants
    )
    roles = sorted(made.roles, key=lambda kind: kind.value)
    return Fold(
        made.root,
        made.kind,
        tuple(roles) or (made.kind,),
        tuple(_ref(scope, node) for node in made.absorbed),
        tuple(_ref(scope, node) for node in made.created),
        tuple(read),
        scope.label,
        made.macs_before,
        made.macs_after,
    )


def _ref(scope: Scope, node: gs.Node) -> NodeRef:
    inputs = tuple(t.name for t in node.inputs if t.name and t.name not in scope.constants)
    return NodeRef(
        node_name(node), node.op, inputs, tuple(t.name for t in node.outputs if t.name), _label(scope, node)
    )


def _label(scope: Scope, node: gs.Node) -> str:
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"):
        return ""
    const = scope.constants.get(node.inputs[1].name) if len(node.inputs) > 1 else None
    parts = []
    kernel = node.attrs.get("kernel_shape") or (const.shape[2:] if const is not None else ())
    if kernel:
        parts.append("x".join(map(str, kernel)))
    if const is not None and len(const.shape) >= 2:
        groups = node.attrs.get("group", 1)
        out, into = const.shape[0], const.shape[1]
        if node.op == "Conv":
            into *= groups
        elif node.op == "ConvTranspose":
            out, into = into * groups, out
        elif not node.attrs.get("transB", 0):
            out, into = into, out
        parts.append(f"{into}->{out}")
        if groups != 1:
            parts.append(f"groups {groups}")
    for key, label in (("strides", "stride"), ("dilations", "dilation")):
        value = node.attrs.get(key)
        if value and any(v != 1 for v in value):
            parts.append(f"{label} {value[0] if len(set(value)) == 1 else value}")
    return ", ".join(parts)
