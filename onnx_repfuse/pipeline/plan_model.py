"""A document planned: its scopes with their folds, and what that changes in it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from onnx_repfuse.graph.channel_axis import ChannelLayout, channel_layouts
from onnx_repfuse.graph.edit_points import scope_edit, used_names
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, ScopeKey
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.invalid_model import blaming
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.planner.plan_scope import plan_scope
from onnx_repfuse.records.report import Counts

__all__ = ["FoldKey", "ModelPlan", "make_plan"]

FoldKey = tuple[ScopeKey, str]


@dataclass(eq=False)
class ModelPlan:
    """All scopes after planning, and what was counted before."""

    document: Document
    scopes: list[ScopePlan]
    before: Counts
    channel_layouts: dict[ScopeKey, dict[str, ChannelLayout]] = field(default_factory=dict)

    @property
    def folds(self) -> list[tuple[ScopePlan, PlannedFold]]:
        """Every fold with its scope."""
        return [(planned, fold) for planned in self.scopes for fold in planned.folds]

    @property
    def keys(self) -> list[FoldKey]:
        """What names each fold, in the order of `folds`."""
        return [(planned.scope.key, fold.name) for planned, fold in self.folds]

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
            edit = scope_edit(scope, used, interface)
            if edit:
                result[scope.key] = edit
        return result


def make_plan(document: Document, options: Options, banned: Set[FoldKey] = frozenset()) -> ModelPlan:
    """Plan every scope of a document; `banned` names tensors that must stay computed as they are.

    Raises:
        InputError: the model is not valid.
    """
    with blaming(document):
        scopes = read_scopes(document, freeze_initializers=options.freeze_initializers)
        before = count(scopes, None, document.nbytes)
        known = {scope.key: channel_layouts(scope) for scope in scopes}
        planned = [
            plan_scope(
                scope, options, frozenset(root for key, root in banned if key == scope.key), known[scope.key]
            )
            for scope in scopes
        ]
        return ModelPlan(document, planned, before, known)
