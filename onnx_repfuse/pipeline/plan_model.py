"""The plan of a whole model: its scopes with their folds, and what they change in the document."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import onnx

from onnx_repfuse.graph.channel_axis import ChannelLayout, channel_layouts
from onnx_repfuse.graph.cycles import check_acyclic
from onnx_repfuse.graph.edit_points import forget_unread_captures, scope_edit, used_names
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, ScopeKey
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.invalid_model import invalid_model_is_input_error
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.planner.plan_scope import plan_scope
from onnx_repfuse.records.report import Counts, Kind

__all__ = ["FoldKey", "ModelPlan", "make_plan"]

FoldKey = tuple[ScopeKey, str]  # the scope, and the output that names the fold


@dataclass(eq=False)
class ModelPlan:
    """All scopes of a document after planning.

    Attributes:
        before: nodes, multiply-adds and bytes of the original.
        frozen: graph inputs that are taken for the constants they are initialized with.
        channel_layouts: scope -> tensor -> its channel axis, in the original.
    """

    document: Document
    scopes: list[ScopePlan]
    before: Counts
    frozen: tuple[str, ...] = ()
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
        interface = _interface(self.document.model)
        edits = {planned.scope.key: scope_edit(planned.scope, used, interface) for planned in self.scopes}
        return {key: edit for key, edit in edits.items() if edit}


def _interface(model: onnx.ModelProto) -> set[str]:
    """The names that someone outside of the nodes may use: such an initializer stays, even if no node reads it."""
    names = {value.name for value in model.graph.output}
    if model.ir_version >= 4:  # before, every initializer is an input, by rule and not to be set by a user
        names |= {value.name for value in model.graph.input}
    for info in model.training_info:  # its algorithm reads the main graph's initializers
        names.update(name for node in info.algorithm.node for name in node.input)
        names.update(binding.key for binding in (*info.initialization_binding, *info.update_binding))
    return names


def _overridable(model: onnx.ModelProto) -> tuple[str, ...]:
    """The graph inputs with an initializer, which a caller may set or leave out (from IR version 4 on)."""
    if model.ir_version < 4:
        return ()
    initialized = {tensor.name for tensor in model.graph.initializer}
    return tuple(value.name for value in model.graph.input if value.name in initialized)


def make_plan(document: Document, options: Options, banned: Set[FoldKey] = frozenset()) -> ModelPlan:
    """Plan every scope of a document.

    Args:
        document: the model.
        options: what may be folded.
        banned: folds not to make: the outputs that name them stay computed as they are.

    Raises:
        InputError: the model is not valid.
    """
    with invalid_model_is_input_error(document):
        check_acyclic(document.model)
        freeze = options.freeze_initializers and Kind.FROZEN not in options.skip
        scopes = read_scopes(document, freeze_initializers=freeze)
        before = count(scopes, None, document.nbytes)
        plan = ModelPlan(document, [], before, _overridable(document.model) if freeze else ())
        for scope in scopes:
            layouts = plan.channel_layouts[scope.key] = channel_layouts(scope)
            banned_here = frozenset(output for key, output in banned if key == scope.key)
            plan.scopes.append(plan_scope(scope, options, banned_here, layouts))
        forget_unread_captures(scopes)
        return plan
