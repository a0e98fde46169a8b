"""The result of planning a scope: folds, and refusals where nothing was folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import decode, new_node
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.modelfile.node_order import in_order
from onnx_repfuse.planner.search.candidates import Way, reported_kind
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["PlannedFold", "ScopePlan"]

CHANGES = frozenset((Kind.CONSTANT, Kind.EQUAL, Kind.NO_OP))


@dataclass(eq=False)
class PlannedFold:
    """Original nodes, and the nodes that compute the same tensors instead.

    Attributes:
        outputs: the tensors that are computed otherwise; their names survive. Today there is one.
        absorbed: original nodes that went, in topological order.
        created: nodes that came. Some of them may have become unnecessary through later folds.
        roles: kinds of what was absorbed.
        macs_before, macs_after: multiply-adds.
        groups: operators of several absorbed nodes each.
        aliases: output -> the tensor its consumers read now, where no node computes the output any more.
        equal_to: the node that computes the same as the absorbed one, whose output is read instead.
    """

    outputs: tuple[str, ...]
    absorbed: list[gs.Node]
    created: list[gs.Node]
    roles: frozenset[Kind]
    macs_before: int
    macs_after: int
    groups: tuple[LinearOp, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    equal_to: gs.Node | None = None

    @property
    def name(self) -> str:
        """The output by which reports, messages and bans call the fold."""
        return self.outputs[0]

    @property
    def kind(self) -> Kind:
        """The one kind it is reported as."""
        return reported_kind(self.roles)

    @property
    def is_initializer(self) -> bool:
        """Whether its output is an initializer now, which no node computes."""
        return self.roles == {Kind.CONSTANT}

    @property
    def is_no_op(self) -> bool:
        """Whether it only removes nodes that gave out what they read."""
        return self.kind is Kind.NO_OP

    @property
    def is_change(self) -> bool:
        """Whether it is a change of the model, but no fold: it combines no operators."""
        return self.kind in CHANGES


def _computes_another(one: PlannedFold, fold: PlannedFold) -> bool:
    """Whether a fold computes a tensor that the one it was joined with does not, by nodes that are still there."""
    if one.name in fold.outputs:
        return False
    left = {id(node) for node in fold.created}
    return any(one.name == t.name for node in one.created if id(node) in left for t in node.outputs)


@dataclass(eq=False)
class ScopePlan:
    """A scope after planning: its nodes are the new ones.

    Attributes:
        aliases: a tensor that no node computes any more -> the fold that let its consumers read another one.
        merged: output of a node that went -> the same output of a node equal to it.
        taken: tensors of the file that are also read in place of what a fold had created for itself.
        renamed: a tensor that a fold computed -> the name it got later.
        creator: id() of a node that came -> its fold.
        refused: ways to compute a tensor that were found to be no good, and why, in a clause.
        shaped: tensors that stay because their shape is asked for.
        endless: outputs that were written again and again, as sizes contradict each other: plan once more without.
        sides: id() of a fold -> the nodes of its proof, before and after, as far as they were asked for.
    """

    scope: Scope
    folds: list[PlannedFold] = field(default_factory=list)
    aliases: dict[str, PlannedFold] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    creator: dict[int, PlannedFold] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: dict[tuple[str, Way], str] = field(default_factory=dict)
    shaped: frozenset[str] = frozenset()
    endless: set[str] = field(default_factory=set)
    sides: dict[int, tuple[Sequence[onnx.NodeProto], Sequence[onnx.NodeProto]]] = field(default_factory=dict)

    def add(self, fold: PlannedFold, joined: Iterable[PlannedFold] = ()) -> None:
        """Note a fold, in place of those it was joined with; two folds may have been joined with the same one.

        A fold whose output is another tensor that is still computed stays beside it: both share nodes.
        """
        gone = [one for one in joined if not _computes_another(one, fold)]
        if gone:
            self.folds = [other for other in self.folds if other not in gone]
        self.folds.append(fold)
        self.creator.update((id(node), fold) for node in fold.created)

    def stand_in(self, name: str) -> str:
        """The tensor that consumers read in place of one that no node computes any more, through chains of those."""
        while name in self.aliases or name in self.renamed or name in self.merged:
            fold = self.aliases.get(name)
            other = self.renamed.get(name) or self.merged.get(name, "")
            name = other if fold is None else fold.aliases[name]
        return name

    @cached_property
    def _position(self) -> dict[int, int]:
        """id() of a node -> its place; asked only after planning, when the nodes no longer change."""
        return {id(node): position for position, node in enumerate(self.scope.nodes)}

    def nodes_before(self, fold: PlannedFold) -> list[onnx.NodeProto]:
        """The original nodes a fold stands for, in topological order, as they are in the file.

        An absorbed node may read a tensor that another fold has turned into an alias. In the file that tensor is
        computed, so the nodes which computed it belong to this side, too. So do those of a fold that shares new nodes
        with this one, and a node of the file that computes what it had computed for itself. What two equal nodes
        computed is one tensor on both sides.
        """
        borrowed = self._borrowed(fold)
        shared = [self.creator[id(node)] for node in borrowed if id(node) in self.creator]
        absorbed = [node for other in (fold, *shared) for node in other.absorbed]
        nodes = [*absorbed, *(node for node in borrowed if id(node) not in self.creator)]
        return self._as_in_file(fold, nodes)

    def _as_in_file(self, fold: PlannedFold, absorbed: Iterable[gs.Node]) -> list[onnx.NodeProto]:
        """Nodes as they are in the file, with those that computed what other folds have turned into aliases."""
        anchor, nodes = self.scope.anchor, self.scope.proto.node
        positions = {anchor[id(node)] for node in absorbed}
        pending = [nodes[position] for position in positions]
        while pending:
            for name in self._reading_merged(pending.pop()).input:
                below = self.aliases.get(name)
                if below is None:
                    continue
                fresh = {anchor[id(node)] for node in below.absorbed} - positions
                positions |= fresh
                pending.extend(nodes[position] for position in fresh)
        # a node may stand before the one that now computes its input in place of an equal one
        read = [self._reading_merged(nodes[position]) for position in sorted(positions)]
        return in_order(read if fold.equal_to is None else self._writing_merged(read, fold.outputs))

    def _reading_merged(self, proto: onnx.NodeProto) -> onnx.NodeProto:
        """A node as it is in the file, but reading one of several equal tensors."""
        if self.merged.keys().isdisjoint(proto.input):
            return proto
        result = onnx.NodeProto()
        result.CopyFrom(proto)
        result.input[:] = [self._one_of_equals(name) for name in proto.input]
        return result

    def _writing_merged(self, protos: Iterable[onnx.NodeProto], own: Sequence[str]) -> list[onnx.NodeProto]:
        """Nodes of which one of several equal ones writes the tensor that is left; `own` are not renamed.

        What a node was found equal to may have been found equal to another one since.
        """
        result: dict[tuple[str, ...], onnx.NodeProto] = {}
        for proto in protos:
            names = tuple(name if name in own else self._one_of_equals(name) for name in proto.output)
            renamed = onnx.NodeProto()
            renamed.CopyFrom(proto)
            renamed.output[:] = names
            result.setdefault(names, renamed)
        return list(result.values())

    def _one_of_equals(self, name: str) -> str:
        while name in self.merged:
            name = self.merged[name]
        return name

    def _present(self, fold: PlannedFold) -> list[gs.Node]:
        """The nodes it created that are still there."""
        return [node for node in fold.created if id(node) in self._position]

    def _borrowed(self, fold: PlannedFold) -> list[gs.Node]:
        """Nodes of others that compute what this one reads and the nodes before did not: neither side is given that.

        Two consumers of a tensor may both have absorbed it: then both read the new tensors it was made of. And what one
        created for itself may have been taken from elsewhere, see `taken`.
        """
        present = self._present(fold)
        taken = {self.stand_in(name) for name in self.taken}
        own, borrowed = {id(node) for node in present}, []
        pending = list(present)
        while pending:
            for tensor in pending.pop().inputs:
                node = self.scope.producer.get(tensor.name)
                if node is None or id(node) in own:
                    continue
                is_new = id(node) in self.creator and tensor.name not in self.original_outputs
                if is_new or tensor.name in taken:
                    own.add(id(node))
                    borrowed.append(node)
                    pending.append(node)
        return borrowed

    @cached_property
    def original_producer(self) -> dict[str, gs.Node]:
        """Tensor -> the node that computes it in the file, as it is there; aliases rename the tensors of a scope."""
        return {tensor.name: node for node in decode(self.scope.proto.node) for tensor in node.outputs}

    @cached_property
    def original_outputs(self) -> set[str]:
        """The tensors that the file's nodes compute."""
        return {name for node in self.scope.proto.node for name in node.output}

    def is_of_file(self, name: str) -> bool:
        """Whether somebody read a tensor when the scope was loaded, as an output of the model or of a scope above."""
        return name in self.scope.used_before or self.scope.is_seen(name)

    def is_left(self, fold: PlannedFold) -> bool:
        """Whether the result shows it: an initializer may have been folded into others, and nobody reads it."""
        return not fold.is_initializer or self.scope.is_used(fold.name)

    def can_be_judged(self, fold: PlannedFold) -> bool:
        """Whether anything of it is left that could be compared."""
        return fold.is_initializer or bool(self.nodes_after(fold))

    def nodes_after(self, fold: PlannedFold) -> list[gs.Node]:
        """The new nodes that are still there, in topological order; an Identity for each alias if there are none.

        Empty where neither says anything that `nodes_before` could be compared with.
        """
        present = self._present(fold)
        if present:
            present += self._borrowed(fold)
            return sorted(present, key=lambda node: self._position[id(node)])
        if fold.equal_to is not None:
            outputs = [self._one_of_equals(name) for name in fold.outputs]
            pairs = zip(outputs, fold.outputs, strict=True)
            creator = self.creator.get(id(fold.equal_to))
            return [
                *decode(self._as_in_file(fold, [fold.equal_to] if creator is None else creator.absorbed)),
                *(new_node("Identity", "", {}, [kept], [name]) for kept, name in pairs),
            ]
        before = self.nodes_before(fold)
        read = {name for node in before for name in node.input} - {
            name for node in before for name in node.output
        }
        return [
            new_node("Identity", "", {}, [source], [output])
            for output, source in fold.aliases.items()
            if source in read
        ]
