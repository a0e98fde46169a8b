"""The plan of a whole model: its scopes with their folds, and what they change in the document."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx

from onnx_repfuse.graph.channel_axis import ChannelLayout, channel_layouts
from onnx_repfuse.graph.constant_ifs import ConstantIf, has_if, without_constant_ifs
from onnx_repfuse.graph.edit_points import forget_unread_captures, scope_edit, used_names
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.graph.scope import Const, Scope, node_name
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import INPUTS_ARE_OPTIONAL, Edit, NewTensor, ScopeKey
from onnx_repfuse.modelfile.node_order import check_acyclic
from onnx_repfuse.modelfile.opset import at_opset
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.invalid_model import invalid_model_is_input_error
from onnx_repfuse.pipeline.kept_names import check_keep, matches
from onnx_repfuse.planner.cover_scope import is_kept
from onnx_repfuse.planner.flush.flushing import Flushing, Scanned
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.planner.plan_scope import plan_scope
from onnx_repfuse.planner.rewrites.avoided_operators import creators_of_avoided
from onnx_repfuse.records.report import Counts, Kind

__all__ = [
    "BRANCHES",
    "FLUSH",
    "FoldKey",
    "ModelPlan",
    "garbage_left",
    "initialized_inputs",
    "make_plan",
]

FoldKey = tuple[ScopeKey, str]  # the scope, and the output that names the fold
FLUSH: FoldKey = ((), "")  # bans all flushing of weights; no output has this name
BRANCHES: FoldKey = (("",), "")  # keeps every If; no scope has this key


@dataclass(eq=False)
class ModelPlan:
    """All scopes of a document after planning.

    Attributes:
        before: nodes, multiply-adds and bytes of the original.
        inlined: the Ifs that were replaced by the branch they always take; `document` is without them.
        frozen: graph inputs that are taken for the constants they are initialized with, and are inputs no more.
        channel_layouts: scope -> tensor -> its channel axis, in the original.
        flushing: the weights in which small elements become zero; None where that is not wanted.
    """

    document: Document
    scopes: list[ScopePlan]
    before: Counts
    inlined: tuple[ConstantIf, ...] = ()
    frozen: tuple[str, ...] = ()
    channel_layouts: dict[ScopeKey, dict[str, ChannelLayout]] = field(default_factory=dict)
    flushing: Flushing | None = None

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
        if not self.is_change:
            return {}
        used = used_names(planned.scope for planned in self.scopes)
        interface = _interface(self.document.model) - set(self.frozen)
        edits = {planned.scope.key: scope_edit(planned.scope, used, interface) for planned in self.scopes}
        edits[()].removed_inputs = set(self.frozen)
        edits[()].rewritten = {
            name: NewTensor(name, const.data_type, const.shape, const.read)
            for name, const in self._rewritten().items()
        }
        return {key: edit for key, edit in edits.items() if edit}

    @property
    def is_change(self) -> bool:
        """Whether the result differs from the original."""
        return bool(self.document.is_converted or self.folds or self.frozen or self._rewritten())

    @property
    def raised_ir_version(self) -> int:
        """The IR version that the result gets because older ones have no initializers that are no inputs; 0 if none."""
        is_old = self.document.model.ir_version < INPUTS_ARE_OPTIONAL
        return INPUTS_ARE_OPTIONAL if self.frozen and is_old else 0

    def _rewritten(self) -> dict[str, Const]:
        return {} if self.flushing is None else self.flushing.rewritten()


def _interface(model: onnx.ModelProto) -> set[str]:
    """The names that someone outside of the nodes may use: such an initializer stays, even if no node reads it."""
    names = {value.name for value in model.graph.output}
    # before, every initializer is an input, by rule and not to be set by a user
    if model.ir_version >= INPUTS_ARE_OPTIONAL:
        names |= {value.name for value in model.graph.input}
    for info in model.training_info:  # its algorithm reads the main graph's initializers
        names.update(name for node in info.algorithm.node for name in node.input)
        names.update(binding.key for binding in (*info.initialization_binding, *info.update_binding))
    return names


def initialized_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """The graph inputs with an initializer: from IR version 4 on, a caller may set them or leave them out."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    return tuple(value.name for value in model.graph.input if value.name in initialized)


def make_plan(
    document: Document,
    options: Options,
    banned: Set[FoldKey] = frozenset(),
    scanned: Scanned | None = None,
) -> ModelPlan:
    """Plan every scope of a document.

    Args:
        document: the model.
        options: what may be folded.
        banned: folds not to make: the outputs that name them stay computed as they are; with `FLUSH`, no weight is
            flushed.
        scanned: what earlier plans of this document found out about its weights, to be continued.

    Raises:
        InputError: the model is not valid, or cannot be converted to `Options.opset`.
        UsageError: a glob of `Options.keep` matches no node.
    """
    with invalid_model_is_input_error(document), garbage_left():
        check_acyclic(document.model)
        freeze = options.freeze_initializers and Kind.FROZEN not in options.skip
        document, scopes, inlined = _read(document, options, banned, freeze)
        before = count(_as_in_the_file(document, scopes), None, document.given.nbytes)
        frozen = initialized_inputs(document.model) if freeze else ()
        plan = ModelPlan(document, [], before, inlined, frozen)
        if options.allows(Kind.FLUSH) and FLUSH not in banned:
            plan.flushing = _flushing(scopes[0], options, {} if scanned is None else scanned)
            document.release()
        for scope in scopes:
            _plan_scope(plan, scope, options, banned)
        unwanted: set[FoldKey] = set()  # folds that write an operator to be avoided, or that come and go
        for planned in plan.scopes:
            outputs = planned.endless.union(creators_of_avoided(planned, options.avoid))
            unwanted.update((planned.scope.key, name) for name in outputs)
        if not unwanted <= banned:  # fewer folds, so that this ends
            return make_plan(document, options, unwanted | banned, scanned)
        forget_unread_captures(scopes)
        if plan.flushing is not None:
            plan.flushing.flush_created()
        return plan


def _read(
    document: Document, options: Options, banned: Set[FoldKey], freeze: bool
) -> tuple[Document, list[Scope], tuple[ConstantIf, ...]]:
    """The document to plan, its scopes, and the Ifs that were replaced by a branch. Raises as `make_plan`."""
    replaced: list[ConstantIf] = []
    scopes: list[Scope] | None = None
    if options.allows(Kind.CONSTANT) and BRANCHES not in banned and has_if(document.model.graph):
        if options.keep:  # what stands in a branch that is never taken has a name, too
            check_keep(options.keep, _node_names(read_scopes(document)))
        inlined = without_constant_ifs(
            document, freeze_initializers=freeze, is_kept=lambda node: matches(options.keep, _name(node))
        )
        document, replaced, scopes = inlined.document, inlined.replaced, inlined.scopes
    converted = at_opset(document, options.opset)
    if scopes is None or converted is not document:
        scopes = read_scopes(converted, freeze_initializers=freeze)
    if options.keep and not replaced:
        check_keep(options.keep, _node_names(scopes))
    return converted, scopes, tuple(replaced)


def _plan_scope(plan: ModelPlan, scope: Scope, options: Options, banned: Set[FoldKey]) -> None:
    """Plan one scope, and add it to the plan of the model."""
    layouts = plan.channel_layouts[scope.key] = channel_layouts(scope)
    banned_here = frozenset(output for key, output in banned if key == scope.key)
    is_main = not scope.key
    flushing = plan.flushing if is_main else None
    plan.scopes.append(plan_scope(scope, options, banned_here, layouts, flushing))


def _node_names(scopes: list[Scope]) -> Iterator[str]:
    """Names of the file's nodes, those that compute constants included; of one without, its first output's."""
    for scope in scopes:
        for node in scope.proto.node:
            yield _name(node)
        yield from map(node_name, scope.nodes)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(filter(None, node.output), node.op_type)


@contextmanager
def garbage_left() -> Iterator[None]:
    """Without a search for garbage cycles: planning makes many small objects that stay, and hardly a cycle.

    The first search behind it looks at all objects of the plan, unless they are gone by then.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _as_in_the_file(document: Document, scopes: list[Scope]) -> list[Scope]:
    """The scopes of the original, before it was converted or simplified."""
    return read_scopes(document.original) if document.is_converted else scopes


def _flushing(scope: Scope, options: Options, scanned: Scanned) -> Flushing:
    """The flushing of the main graph's weights, those of the file looked at."""
    flushing = Flushing(scope, options.check, is_kept(options), scanned)
    flushing.flush_file()
    return flushing
