"""A document planned: its scopes with their folds, and what that changes in it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from onnx_repfuse.collector import uncollected
from onnx_repfuse.graph.counting import count
from onnx_repfuse.graph.document import Document, ScopeKey
from onnx_repfuse.graph.edit import Edit
from onnx_repfuse.graph.frames import Frame, frames
from onnx_repfuse.graph.rewrite import difference, used_names
from onnx_repfuse.graph.skeleton import read_scopes
from onnx_repfuse.malformed import blaming
from onnx_repfuse.options import Options
from onnx_repfuse.plan.made import Made, Planned
from onnx_repfuse.plan.rounds import plan_scope
from onnx_repfuse.report.record import Counts

__all__ = ["FoldKey", "Plan", "make_plan"]

FoldKey = tuple[ScopeKey, str]


@dataclass(eq=False)
class Plan:
    """All scopes after planning, and what was counted before."""

    document: Document
    scopes: list[Planned]
    before: Counts
    frames: dict[ScopeKey, dict[str, Frame]] = field(default_factory=dict)

    @property
    def folds(self) -> list[tuple[Planned, Made]]:
        """Every fold with its scope."""
        return [(planned, made) for planned in self.scopes for made in planned.folds]

    @property
    def keys(self) -> list[FoldKey]:
        """What names each fold, in the order of `folds`."""
        return [(planned.scope.key, made.root) for planned, made in self.folds]

    def edits(self) -> dict[ScopeKey, Edit]:
        """What to change in the document."""
        if not self.folds:
            return {}
        used = used_names(planned.scope for planned in self.scopes)
        model = self.document.model
        interface = {i.name for i in model.graph.input} if model.ir_version >= 4 else set()
        interface |= {o.name for o in model.graph.output}
        for info in model.training_info:
            interface.update(name for node in info.algorithm.node for name in node.input)
            interface.update(binding.key for binding in (*info.initialization_binding, *info.update_binding))
        result = {}
        for planned in self.scopes:
            scope = planned.scope
            edit = difference(scope, used, interface)
            if edit:
                result[scope.key] = edit
        return result


def make_plan(document: Document, options: Options, banned: Set[FoldKey] = frozenset()) -> Plan:
    """Plan every scope of a document; `banned` names tensors that must stay computed as they are.

    Raises:
        InputError: the model is not valid.
    """
    with blaming(document), uncollected():
        scopes = read_scopes(document, freeze_initializers=options.freeze_initializers)
        before = count(scopes, None, document.nbytes)
        known = {scope.key: frames(scope) for scope in scopes}
        planned = [
            plan_scope(
                scope, options, frozenset(root for key, root in banned if key == scope.key), known[scope.key]
            )
            for scope in scopes
        ]
        return Plan(document, planned, before, known)
