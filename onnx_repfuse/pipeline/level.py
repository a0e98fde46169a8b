"""What a model gains before it is fused: another opset, another simplifier. Tried, and left out where it fails.

Level 1 fuses the model after what the options name. Level 2 is for whoever wants the fastest result: it converts the
model to the lowest opset that pays, and lets the simplifier run that gives the faster result. Everything is proved
against the original; what cannot be converted or simplified, or is not proved, is left out and noted, so that level 2
gives whatever level 1 gives. A simplifier may gain something once more on the result: then all is done once more, so
that a second run finds nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

from onnx_repfuse.errors import ConversionError, Inexact, InputError, UsageError, VerificationError
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.peers import PEERS, PeerError, installed, run_peer
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.plan_model import ModelPlan, make_plan
from onnx_repfuse.planner.cover_scope import is_kept
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.predict import predicted_cost
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Report, Simplified

__all__ = ["at_level", "check_peer"]

# Decomposed activations are the only thing that an older opset keeps from being folded.
PAYING_OPSET = OPERATORS["HardSwish"].since
# Of the predicted time. A simplifier that gains less is not used: that little is not worth another tool.
LEAST_GAIN = 0.01
MAX_ROUNDS = 4  # of a simplifier and a fusion behind it
# Fuses or plans a document with these options; a path is where the result goes in place of the user's output, if any.
Go = Callable[[Document, Options, "Path | None"], Report]
Reject = Callable[[Simplified, str], None]


@dataclass(frozen=True)
class _Way:
    """One way to a result: fuse this document with these options.

    Attributes:
        by: the simplifier that wrote the document; None for the original.
        cost: predicted.
        made_from: the fused model that it simplified, where that is not the user's.
    """

    document: Document
    options: Options
    by: Simplified | None
    cost: int
    made_from: Path | None = None


def check_peer(options: Options) -> None:
    """Raise UsageError if the options name a simplifier that is not installed."""
    name = options.simplify
    if name in PEERS and name not in installed():
        raise UsageError(f"--simplify {name}: it is not installed; pip install {name}")


def at_level(
    document: Document, options: Options, go: Go, folder: Callable[[], AbstractContextManager[Path | str]]
) -> Report:
    """What `go` reports of the fastest of the ways that the options allow, or of the next where it fails.

    Args:
        document: the model.
        options: the user's; an opset or a simplifier that they name wins.
        go: fuses, or plans, a document.
        folder: an empty folder for simplified models, removed in the end.

    Raises:
        UsageError: `Options.simplify` names what is not installed.
    """
    check_peer(options)
    level = _Level(document, options, go)
    peers = _peers(options)
    if not peers:
        report = level.as_it_is(())
        if peers is not None:
            level.notes.append(
                f"no other simplifier is installed to run first: pip install {' or '.join(PEERS)}"
            )
    else:
        with ExitStack() as stack:
            level.place, level.stack = Path(stack.enter_context(folder())), stack
            report = level.fastest(peers) or level.as_it_is(peers)
    return replace(report, notes=(*report.notes, *level.notes), simplified=tuple(level.tried))


def _peers(options: Options) -> tuple[str, ...] | None:
    """The simplifiers to try; None if none is asked for."""
    name = options.simplify or ("auto" if options.level == 2 else None)
    if name is None:
        return None
    return installed() if name == "auto" else (name,)


@dataclass
class _Level:
    """What was given, and what was tried so far.

    Attributes:
        place: for simplified models, and for results on the way.
        stack: closes them.
    """

    document: Document
    options: Options
    go: Go
    tried: list[Simplified] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    place: Path = Path()
    stack: ExitStack = field(default_factory=ExitStack)

    def as_it_is(self, peers: tuple[str, ...]) -> Report:
        """Fuse the original, with the opset that the level asks for, or without it where that fails."""
        try:
            chosen = _with_paying_opset(self.document, self.options)
            if chosen is not self.options:
                return self._rounds(self._original(chosen), peers)
        except (ConversionError, VerificationError) as error:
            if self.options.opset is not None:
                raise
            self.notes.append(f"opset {PAYING_OPSET} would pay, but the model was not converted: {error}")
        return self._rounds(self._original(self.options), peers)

    def _original(self, options: Options) -> _Way:
        return _Way(self.document, options, None, 0)

    def fastest(self, peers: tuple[str, ...]) -> Report | None:
        """Fuse the simplified model that is predicted to be the fastest and is proved; None if there is none."""
        before, fused = self._predicted_without()
        ways = sorted(self._ways(self.document, peers, before, fused, self._reject), key=lambda way: way.cost)
        for number, way in enumerate(ways):
            assert way.by is not None
            try:
                report = self._rounds(way, peers)
            except (InputError, VerificationError) as error:
                self._reject(way.by, str(error))
                continue
            for slower in ways[number + 1 :]:
                assert slower.by is not None
                self._reject(slower.by, f"the result is predicted to be faster with {way.by.peer}")
            return report
        return None

    def _rounds(self, first: _Way, peers: tuple[str, ...]) -> Report:
        """Fuse a document; then what simplifiers make of the result, as long as that is predicted to be faster."""
        rounds = [first, *self._later(first, peers)] if peers else [first]
        while True:
            try:
                report = self._report_of(rounds)
            except (InputError, VerificationError):
                if len(rounds) == 1:
                    raise
                rounds.pop()  # what the others gain is gained all the same
                continue
            self.tried += [way.by for way in rounds if way.by is not None]
            return report

    def _later(self, way: _Way, peers: tuple[str, ...]) -> Iterator[_Way]:
        """The rounds behind one, by planning: nothing is proved here."""
        for _ in range(1, MAX_ROUNDS):
            plan = make_plan(way.document, way.options)
            path = self._folder() / "model.onnx"
            try:
                save(plan.document, plan.edits(), path, external=way.options.external)
            except Inexact:  # a fold that overflows; whoever fuses it finds another plan
                return
            made = Document.open(path)
            self.stack.callback(made.close)
            made.original, made.given = self.document.original, self.document.given
            cost, fused = _predicted(plan, way.options), _in_fused_patterns(plan)
            ways = list(self._ways(made, peers, cost, fused, lambda by, why: None))
            if not ways:
                return
            way = replace(min(ways, key=lambda one: one.cost), made_from=path)
            yield way

    def _report_of(self, rounds: Sequence[_Way]) -> Report:
        """Fuse, or plan, round by round; each but the last is written beside the output.

        Raises:
            InputError, VerificationError: one of them does not run, or is not proved equal to the original; or folds
                of one were undone, so that the next one is of another model.
        """
        reports = []
        for way, then in zip(rounds, [*rounds[1:], None], strict=True):
            if then is None or then.made_from is None:
                reports.append(self.go(way.document, way.options, None))
                break
            proved = self._folder() / then.made_from.name
            reports.append(self.go(way.document, way.options, proved))
            if proved.exists() and proved.read_bytes() != then.made_from.read_bytes():
                raise VerificationError("folds were undone")
        return reduce(_joined, reports)

    def _ways(
        self, document: Document, peers: tuple[str, ...], before: int, fused: int, reject: Reject
    ) -> Iterator[_Way]:
        """What each simplifier makes of a model, as far as the result is predicted to be faster for it.

        Args:
            document: the model.
            peers: the simplifiers.
            before: the cost of the result without them.
            fused: its nodes in patterns that runtimes fuse.
            reject: is told why one is not used.
        """
        kept = self._kept(document)
        for peer in peers:
            try:
                result = run_peer(document, peer, self._folder())
            except PeerError as error:
                reject(Simplified(peer, error.version, True, None), str(error))
                continue
            self.stack.callback(result.document.close)
            result.document.original = document.original
            by = Simplified(peer, result.version, True, None)
            try:
                by = replace(by, counts=count(read_scopes(result.document), None, result.document.nbytes))
                options = _with_paying_opset(result.document, self.options)
                plan = make_plan(result.document, options)
            except (InputError, UsageError) as error:  # of usage: it removed what the user wants to keep
                reject(by, f"it wrote what cannot be planned: {error}")
                continue
            cost = _predicted(plan, options)
            created = [op for op in sorted(options.avoid) if _count(plan, op) > plan.before.ops.get(op, 0)]
            if created:
                reject(by, f"it wrote {created[0]}, which is to be avoided")
            elif not kept <= self._kept(result.document):
                reject(by, "it changed nodes that are to be kept")
            elif _in_fused_patterns(plan) < fused:
                # A factor moved out of a GELU into the next Conv, say: prices of one node each do not show it.
                reject(by, "it broke a pattern that runtimes fuse")
            elif cost > before * (1 - LEAST_GAIN):
                ratio = cost / max(before, 1)
                reject(by, f"the result is predicted to take {ratio:.3f} of the time with it")
            else:
                yield _Way(result.document, options, by, cost)

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))

    def _predicted_without(self) -> tuple[int, int]:
        """The cost of the result without a simplifier, and its nodes in patterns that runtimes fuse."""
        try:
            options = _with_paying_opset(self.document, self.options)
            plan = make_plan(self.document, options)
        except ConversionError:  # `as_it_is` says so
            options = replace(self.options, opset=None)
            plan = make_plan(self.document, options)
        return _predicted(plan, options), _in_fused_patterns(plan)

    def _kept(self, document: Document) -> set[tuple[str, str]]:
        """Name and operator of the nodes that the user wants to keep."""
        if not self.options.keep:
            return set()
        stays = is_kept(self.options)
        nodes = (node for scope in read_scopes(document) for node in scope.nodes if stays(node))
        return {(node_name(node), node.op) for node in nodes}

    def _reject(self, by: Simplified, why: str) -> None:
        self.tried.append(replace(by, used=False, message=why))


def _with_paying_opset(document: Document, options: Options) -> Options:
    """The options, at level 2 with an opset by which the model gains, if there is one. Raises ConversionError."""
    if options.level < 2 or options.opset is not None or not _pays(make_plan(document, options)):
        return options
    chosen = replace(options, opset=PAYING_OPSET)
    make_plan(document, chosen)
    return chosen


def _pays(plan: ModelPlan) -> bool:
    """Whether the plan of the model as it is refuses something that its opset has no operator for."""
    return any(refusal.reason is Reason.OPSET for scope in plan.scopes for refusal in scope.refusals)


def _count(plan: ModelPlan, op: str) -> int:
    return sum(node.op == op for planned in plan.scopes for node in planned.scope.nodes)


def _in_fused_patterns(plan: ModelPlan) -> int:
    return sum(len(protected_nodes(planned.scope)) for planned in plan.scopes)


def _predicted(plan: ModelPlan, options: Options) -> int:
    return sum(predicted_cost(planned.scope, options.cost) for planned in plan.scopes)


def _joined(first: Report, then: Report) -> Report:
    """The report of two rounds: as of the last, with the folds, changes and verdicts of both.

    Those of the last come first, since the maps of all nodes count them so.
    """
    verification = then.verification
    if first.verification is not None and verification is not None:
        verification = replace(
            verification,
            folds=(*verification.folds, *first.verification.folds),
            changes=(*verification.changes, *first.verification.changes),
        )
    stages = first.seconds.keys() | then.seconds.keys()
    return replace(
        then,
        folds=(*then.folds, *first.folds),
        changes=(*then.changes, *first.changes),
        verification=verification,
        seconds={stage: first.seconds.get(stage, 0.0) + then.seconds.get(stage, 0.0) for stage in stages},
        notes=tuple(dict.fromkeys((*first.notes, *then.notes))),
    )
