"""Folds that are alike, and what they save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx_repfuse.records.report import Fold, NodeRef

__all__ = ["FoldGroup", "group_folds"]

_Shape = tuple[tuple[int, ...], tuple[int, ...], str]


@dataclass(frozen=True)
class FoldGroup:
    """Folds of one kind whose blocks have the same operators, wired alike; sizes and names differ.

    Attributes:
        members: (place in the report, fold), those that save most first.
    """

    members: tuple[tuple[int, Fold], ...]

    @property
    def macs(self) -> int:
        """Multiply-adds that all of them save."""
        return sum(fold.macs_before - fold.macs_after for _, fold in self.members)

    @property
    def nodes(self) -> int:
        """Nodes that all of them save."""
        return sum(len(fold.absorbed) - len(fold.created) for _, fold in self.members)

    @property
    def title(self) -> str:
        """Operators before and after, as `2 Conv + Add -> Conv`."""
        fold = self.members[0][1]
        return f"{_operators(fold.absorbed)} -> {_operators(fold.created)}"


def group_folds(folds: Sequence[Fold]) -> list[FoldGroup]:
    """The groups, those that save most first: in multiply-adds, then in nodes, then in the order of the network."""
    known: dict[object, int] = {}
    grouped: dict[_Shape, list[tuple[int, Fold]]] = {}
    for number, fold in enumerate(folds):
        shape = (_shape(fold.absorbed, known), _shape(fold.created, known), str(fold.kind))
        grouped.setdefault(shape, []).append((number, fold))
    groups = [
        FoldGroup(tuple(sorted(members, key=lambda member: member[1].macs_after - member[1].macs_before)))
        for members in grouped.values()
    ]
    return sorted(groups, key=lambda group: (-group.macs, -group.nodes, group.members[0][0]))


def _shape(nodes: Sequence[NodeRef], known: dict[object, int]) -> tuple[int, ...]:
    """Numbers of the nodes, the same for blocks that differ in names, sizes and the order of their branches only.

    A node's number stands for its operator and for the numbers of what it reads.
    """
    made: dict[str, int] = {}
    numbers = []
    for node in nodes:
        key = (node.op, tuple(sorted(made.get(name, -1) for name in node.inputs)))
        number = known.setdefault(key, len(known))
        made.update(dict.fromkeys(node.outputs, number))
        numbers.append(number)
    return tuple(sorted(numbers))


def _operators(nodes: Sequence[NodeRef]) -> str:
    counts = Counter(node.op for node in nodes)
    return " + ".join(f"{count} {op}" if count > 1 else op for op, count in counts.most_common()) or "nothing"
