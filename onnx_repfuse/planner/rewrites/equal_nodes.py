"""Equal nodes are one: the same operator of the same tensors, with the same attributes.

Converters to half precision write one Cast for each consumer, and exporters compute a size anew wherever it is needed.
Branches behind two such nodes read different tensors, and would not merge. A Relu behind a Relu that others read, too,
equals that one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.constant_folding import why_not_constant
from onnx_repfuse.graph.edit_points import replace_aliases, replace_nodes, to_proto
from onnx_repfuse.graph.ranges import EXTREMES, changes_nothing
from onnx_repfuse.graph.scope import Const, optional_input
from onnx_repfuse.graph.zero_signs import tells_zeros_apart
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.planner.folds.replacements import add_fold
from onnx_repfuse.planner.weights.shared_weights import share_equal_weights
from onnx_repfuse.records.report import Kind

__all__ = ["merge_equal_nodes"]

# of two constants of different names; more are weights, which planning does not read
MAX_COMPARED_ELEMENTS = 1024


def merge_equal_nodes(plan: ScopePlan, is_kept: Callable[[gs.Node], bool], banned: frozenset[str]) -> bool:
    """Let the consumers of a node read the outputs of an equal one; whether there were any.

    Kept nodes and banned outputs stay, and so does what somebody outside of the scope reads. What a fold created for
    itself may be what the file, or another fold, computes for others, too: `ScopePlan.taken`. Two folds may compute one
    tensor: the consumers of one root read the other.
    """
    scope = plan.scope
    share_equal_weights(scope)
    known = _EqualNodes(plan)
    if known.all_read_other_tensors():
        return False
    replaced: dict[int, list[gs.Node]] = {}

    for node in _order_of_staying(plan, banned):
        equal, behind = known.first(node), known.repeated(node)
        first = equal if behind is None else behind
        if first is None or is_kept(node) or not _may_go(plan, node, banned):
            continue
        replaced[id(node)] = []
        for output, kept in zip(node.outputs, first.outputs, strict=True):
            if output.name:
                known.merged[output.name] = kept.name
                _note_merged(plan, node, first, (output.name, kept.name), behind)
    plan.merged.update(known.merged)
    replace_nodes(scope, replaced)
    replace_aliases(scope, known.merged)
    if replaced:
        scope.nodes = scope.order(scope.nodes)
    return bool(replaced)


def _note_merged(
    plan: ScopePlan, node: gs.Node, first: gs.Node, names: tuple[str, str], behind: gs.Node | None
) -> None:
    """Note as a fold that an output of a node is computed by an equal one.

    Args:
        plan: of the scope.
        node, first: the node, and the one that stays.
        names: of the output, and of what its consumers read from now on.
        behind: the node that `node` only repeats, see `_EqualNodes.repeated`.
    """
    output, kept = names
    if id(node) in plan.scope.original:
        absorbed = [*_original(plan, behind), node]
        plan.add(PlannedFold((output,), absorbed, [], frozenset((Kind.EQUAL,)), 0, 0, equal_to=first))
    elif not _is_inner(plan, node):
        fold = add_fold(plan, output, {Kind.EQUAL}, [node], [])
        fold.equal_to, fold.aliases = first, {output: kept}
        fold.absorbed = [*_original(plan, behind), *fold.absorbed]
    elif not _is_inner(plan, first):
        plan.taken.add(kept)


def _order_of_staying(plan: ScopePlan, banned: frozenset[str]) -> list[gs.Node]:
    """The nodes in their order: first those that must stay, last those that a fold created for itself."""
    return sorted(plan.scope.nodes, key=lambda node: (_may_go(plan, node, banned), _is_inner(plan, node)))


def _original(plan: ScopePlan, node: gs.Node | None) -> list[gs.Node]:
    """The nodes of the file that a node stands for."""
    if node is None:
        return []
    creator = plan.creator.get(id(node))
    return [node] if creator is None else creator.absorbed


def _is_inner(plan: ScopePlan, node: gs.Node) -> bool:
    """Whether a fold created it for itself: two folds may view one tensor, each for its own consumer."""
    names = {tensor.name for tensor in node.outputs}
    return id(node) in plan.creator and names.isdisjoint(plan.original_outputs)


def _may_go(plan: ScopePlan, node: gs.Node, banned: frozenset[str]) -> bool:
    names = [tensor.name for tensor in node.outputs if tensor.name]
    return banned.isdisjoint(names) and not any(map(plan.scope.is_seen, names))


class _EqualNodes:
    """The nodes that were passed, by what they compute.

    Attributes:
        merged: output of a node -> that of the equal one before it.
    """

    def __init__(self, plan: ScopePlan) -> None:
        self.plan, self.scope = plan, plan.scope
        self.merged: dict[str, str] = {}
        # Nearly all nodes differ in what they read. Only where they do not are attributes and constants compared.
        self._by_inputs: dict[Hashable, list[gs.Node]] = {}
        self._by_all: dict[Hashable, gs.Node] = {}

    def all_read_other_tensors(self) -> bool:
        """Whether no two nodes may be equal, as in most networks."""
        if any(self.repeated(node) for node in self.scope.nodes):
            return False
        keys = [self._key(node, self._tensor_or_type) for node in self.scope.nodes if _may_have_equal(node)]
        return len(set(keys)) == len(keys)

    def first(self, node: gs.Node) -> gs.Node | None:
        """The node equal to this one that was passed before; None if there is none."""
        if not _may_have_equal(node):
            return None
        if any(tensor.name and self.scope.producer.get(tensor.name) is not node for tensor in node.outputs):
            return None  # an invalid model, in which two nodes write one tensor
        inputs = self._key(node, self._tensor_or_type)
        alike = self._by_inputs.setdefault(inputs, [])
        alike.append(node)
        if len(alike) == 1:
            return None
        if len(alike) == 2:
            self._by_all[inputs, self._rest(alike[0])] = alike[0]
        if why_not_constant(self._proto(node)):
            return None  # random, with subgraphs, or of another domain
        first = self._by_all.setdefault((inputs, self._rest(node)), node)
        return None if first is node else first

    def repeated(self, node: gs.Node) -> gs.Node | None:
        """The node right before this one, which gives out what that one does, while others read that, too."""
        name = optional_input(node, 0)
        before = self.scope.producer.get(name)
        if (
            before is None
            or len(before.outputs) != 1
            or len(node.outputs) != 1
            or self.scope.is_private(name)
        ):
            return None
        if _is_inner(self.plan, node) or not changes_nothing(self.scope, before, node):
            return None
        if node.op in EXTREMES and tells_zeros_apart(self.scope, node.outputs[0].name):
            return None  # of -0 it may make 0
        return self.scope.producer.get(self.merged.get(name, name))

    def _key(self, node: gs.Node, key_of: Callable[[str], Hashable]) -> Hashable:
        # their number decides what some compute
        outputs = tuple(bool(tensor.name) for tensor in node.outputs)
        return node.op, outputs, tuple(key_of(tensor.name) for tensor in node.inputs)

    def _tensor_or_type(self, name: str) -> Hashable:
        const = self.scope.const(name)
        if const is None or not _may_be_compared(const):
            return self.merged.get(name, name)
        return const.data_type, const.shape

    def _rest(self, node: gs.Node) -> Hashable:
        """What `_tensor_or_type` leaves out: attributes, and the values of small constants."""
        attributes = (
            attribute.SerializeToString(deterministic=True) for attribute in self._proto(node).attribute
        )
        return tuple(sorted(attributes)), tuple(map(self._value, (tensor.name for tensor in node.inputs)))

    def _value(self, name: str) -> Hashable:
        const = self.scope.const(name)
        if const is None or not _may_be_compared(const):
            return None
        value = const.computed()
        return name if value is None else value.tobytes()

    def _proto(self, node: gs.Node) -> onnx.NodeProto:
        if id(node) not in self.scope.original:
            return to_proto(node)
        proto: onnx.NodeProto = self.scope.proto.node[self.scope.anchor[id(node)]]
        return proto


def _may_have_equal(node: gs.Node) -> bool:
    """The second of two Identity nodes is removed, not merged, also where it reads the first."""
    return bool(node.inputs) and node.op != "Identity"


def _may_be_compared(const: Const) -> bool:
    """Whether a constant is small, and no weight has to be read for its values."""
    is_text = const.data_type == onnx.TensorProto.STRING
    return const.effort <= MAX_COMPARED_ELEMENTS and not const.takes_kernel and not is_text
