"""What a model gains before it is fused: another opset, another simplifier. Tried, and left out where it fails.

Level 1 fuses the model after what the options name. Level 2 is for whoever wants the fastest result: it converts the
model to the lowest opset that pays, and lets the simplifier run that gives the faster result. Everything is proved
against the original; what cannot be converted or simplified, or is not proved, is left out and noted, so that level 2
gives whatever level 1 gives. A simplifier may gain something once more on the result: a second run then uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_repfuse.errors import ConversionError, InputError, UsageError, VerificationError
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.peers import PEERS, PeerError, installed, run_peer
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
Go = Callable[[Document, Options], Report]


@dataclass(frozen=True)
class _Way:
    """One way to a result: fuse this document, which a simplifier wrote, with these options.

    Attributes:
        cost: predicted.
    """

    document: Document
    options: Options
    by: Simplified
    cost: int


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
        go: fuses, or plans, a document with given options.
        folder: an empty folder for simplified models, removed in the end.

    Raises:
        UsageError: `Options.simplify` names what is not installed.
    """
    check_peer(options)
    level = _Level(document, options, go)
    peers = _peers(options)
    if not peers:
        report = level.as_it_is()
        if peers is not None:
            level.notes.append(
                f"no other simplifier is installed to run first: pip install {' or '.join(PEERS)}"
            )
    else:
        with ExitStack() as stack:
            place = Path(stack.enter_context(folder()))
            report = level.fastest(peers, place, stack) or level.as_it_is()
    return replace(report, notes=(*report.notes, *level.notes), simplified=tuple(level.tried))


def _peers(options: Options) -> tuple[str, ...] | None:
    """The simplifiers to try; None if none is asked for."""
    name = options.simplify or ("auto" if options.level == 2 else None)
    if name is None:
        return None
    return installed() if name == "auto" else (name,)


@dataclass
class _Level:
    """What was given, and what was tried so far."""

    document: Document
    options: Options
    go: Go
    tried: list[Simplified] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_it_is(self) -> Report:
        """Fuse the original, with the opset that the level asks for, or without it where that fails."""
        try:
            chosen = _with_paying_opset(self.document, self.options)
            if chosen is not self.options:
                return self.go(self.document, chosen)
        except (ConversionError, VerificationError) as error:
            if self.options.opset is not None:
                raise
            self.notes.append(f"opset {PAYING_OPSET} would pay, but the model was not converted: {error}")
        return self.go(self.document, self.options)

    def fastest(self, peers: tuple[str, ...], folder: Path, stack: ExitStack) -> Report | None:
        """Fuse the simplified model that is predicted to be the fastest and is proved; None if there is none."""
        ways = sorted(self._ways(peers, folder, stack), key=lambda way: way.cost)
        for number, way in enumerate(ways):
            try:
                report = self.go(way.document, way.options)
            except (InputError, VerificationError) as error:
                self._reject(way.by, str(error))
                continue
            self.tried.append(way.by)
            for slower in ways[number + 1 :]:
                self._reject(slower.by, f"the result is predicted to be faster with {way.by.peer}")
            return report
        return None

    def _ways(self, peers: tuple[str, ...], folder: Path, stack: ExitStack) -> list[_Way]:
        """What each simplifier makes of the model, as far as the result is predicted to be faster for it."""
        before, fused = self._predicted_without()
        kept = self._kept(self.document)
        ways = []
        for peer in peers:
            try:
                result = run_peer(self.document, peer, folder)
            except PeerError as error:
                self._reject(Simplified(peer, error.version, True, None), str(error))
                continue
            stack.callback(result.document.close)
            by = Simplified(peer, result.version, True, None)
            try:
                by = replace(by, counts=count(read_scopes(result.document), None, result.document.nbytes))
                options = _with_paying_opset(result.document, self.options)
                plan = make_plan(result.document, options)
            except (InputError, UsageError) as error:  # of usage: it removed what the user wants to keep
                self._reject(by, f"it wrote what cannot be planned: {error}")
                continue
            cost = _predicted(plan, options)
            created = [op for op in sorted(options.avoid) if _count(plan, op) > plan.before.ops.get(op, 0)]
            if created:
                self._reject(by, f"it wrote {created[0]}, which is to be avoided")
            elif not kept <= self._kept(result.document):
                self._reject(by, "it changed nodes that are to be kept")
            elif _in_fused_patterns(plan) < fused:
                # A factor moved out of a GELU into the next Conv, say: prices of one node each do not show it.
                self._reject(by, "it broke a pattern that runtimes fuse")
            elif cost > before * (1 - LEAST_GAIN):
                ratio = cost / max(before, 1)
                self._reject(by, f"the result is predicted to take {ratio:.3f} of the time with it")
            else:
                ways.append(_Way(result.document, options, by, cost))
        return ways

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
