"""From a solved cover to what is done: the candidates that are needed, from the tensors that must exist downwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.forms.view_sources import tensors_read
from onnx_repfuse.planner.pricing.steps import Lowered
from onnx_repfuse.planner.search.candidates import Candidate
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.report import Kind

__all__ = ["Selection", "chooses_any", "select", "selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """A candidate that was selected, and what it replaces.

    Attributes:
        lifted: the operator whose output is computed as the candidate says.
        candidate, lowered: the choice, and its steps.
        roles: kinds of what it absorbs.
        operators: those it absorbs, `lifted` among them.
        nodes: their nodes, in topological order.
        macs: id() of a node -> its multiply-adds, where it has any.
    """

    lifted: LinearOp
    candidate: Candidate
    lowered: Lowered
    roles: frozenset[Kind]
    operators: tuple[LinearOp, ...]
    nodes: tuple[gs.Node, ...]
    macs: dict[int, int]

    @property
    def output(self) -> str:
        """The tensor that is computed otherwise."""
        return self.lifted.output

    @property
    def groups(self) -> tuple[LinearOp, ...]:
        """The operators that were lifted from several nodes each."""
        return tuple(operator for operator in self.operators if operator.inner_nodes)


def select(cover: Cover) -> list[Selection]:
    """The candidates chosen for tensors that are needed, each with the nodes it replaces."""
    names = _chosen(cover)
    swallowed = {choice.swallowed for name in names if (choice := cover.entries[name].choice) is not None}
    position = {id(node): place for place, node in enumerate(cover.context.scope.nodes)}
    return [selection(cover, name, position) for name in names if name not in swallowed]


def chooses_any(cover: Cover) -> bool:
    """Whether anything is computed otherwise than it is."""
    return bool(_chosen(cover))


def _chosen(cover: Cover) -> list[str]:
    """The needed tensors for which a candidate was chosen."""
    result: list[str] = []
    seen: set[str] = set()
    for root in _roots(cover):
        pending = [root]
        while pending:
            name = pending.pop()
            if name in seen or name not in cover.entries:
                continue
            seen.add(name)
            if cover.entries[name].choice is not None:
                result.append(name)
            pending.extend(sorted(source for source in cover.reads(name) if cover.regions.is_private(source)))
    return result


def _roots(cover: Cover) -> Iterator[str]:
    """The tensors that must exist: those that no consumer may look through."""
    # of a private tensor, only its consumer's operands: a Sum of thousands is not searched for each of them
    operands = {operand.name for name in cover.entries for operand in cover.lifts[name].operands}
    for name in cover.lifts:
        if name not in cover.entries or name in cover.absorbed:
            continue
        if name not in operands or not cover.regions.is_private(name):
            yield name


def selection(cover: Cover, name: str, position: dict[int, int]) -> Selection:
    """What is chosen for a tensor, given the place of each node by its id()."""
    candidate, lifted = cover.entries[name].choice, cover.lifts[name]
    assert candidate is not None
    lowered = cover.lower(lifted, candidate)
    assert lowered is not None
    absorbed = _absorbed(cover, name, candidate)
    operators = tuple(cover.lifts[tensor] for tensor in absorbed)
    nodes = [node for operator in operators for node in (*operator.inner_nodes, operator.node)]
    macs = {id(cover.lifts[tensor].node): cover.entries[tensor].node.macs for tensor in absorbed}
    return Selection(
        lifted,
        candidate,
        lowered,
        cover.roles_of(lifted, candidate),
        operators,
        tuple(sorted(nodes, key=lambda node: position[id(node)])),
        {node: count for node, count in macs.items() if count},
    )


def _absorbed(cover: Cover, root: str, candidate: Candidate) -> list[str]:
    """The tensors from `root` down to the candidate's sources which nobody else reads.

    A form may need less than its nodes read, where channels are sliced away again: what others read stays.
    """
    sources = set(tensors_read(candidate.form))
    result: dict[str, None] = {}
    pending = [root]
    while pending:
        name = pending.pop()
        if name in result:
            continue
        result[name] = None
        for operand in cover.lifts[name].operands:
            inner = operand.name
            if inner in cover.lifts and inner not in sources and _goes_with(cover, inner, candidate):
                pending.append(inner)
    return list(result)


def _goes_with(cover: Cover, name: str, candidate: Candidate) -> bool:
    """Whether nobody needs a tensor any more when the candidate no longer reads it."""
    return name == candidate.swallowed or name in cover.absorbed or cover.regions.is_private(name)
