"""Positions of tensors where shape inference gave up, behind an If say, or where what it assumed does not agree.

An operator that works position by position reads as many as it writes, whatever their number: what its operands and
its output are priced by must agree. If not, an operator would cost less inside what reads it than by itself, and every
round would write it anew as it stands.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx_repfuse.graph.lift import Lifted

__all__ = ["UNKNOWN_POSITIONS", "agreed_positions"]

UNKNOWN_POSITIONS = 1 << 12


def agreed_positions(lifts: dict[str, Lifted], elements: Callable[[str], int | None]) -> dict[str, int]:
    """Positions of all tensors that lifted operators read or make; none where the sizes of all are known.

    Args:
        lifts: in topological order.
        elements: of a tensor, where known.
    """
    if all(map(elements, lifts)):
        return {}
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        above = leader.setdefault(name, name)
        while above != name:
            leader[name] = leader[above]
            name, above = above, leader[above]
        return name

    for lifted in lifts.values():
        for operand in lifted.operands:
            first, second = find(operand.name), find(lifted.output)
            if _is_pointwise(lifted):
                leader[first] = second
    positions: dict[str, int] = {}
    for lifted in lifts.values():
        tensors = [(operand.name, operand.channels) for operand in lifted.operands]
        for name, channels in (*tensors, (lifted.output, lifted.channels)):
            found = elements(name)
            if found:
                positions.setdefault(find(name), max(1, found // channels))
    for lifted in lifts.values():  # else those of what it is made of, so that neighbours are priced alike
        read = [find(operand.name) for operand in lifted.operands]
        below = next((positions[name] for name in read if name in positions), UNKNOWN_POSITIONS)
        positions.setdefault(find(lifted.output), below)
    return {name: positions.get(find(name), UNKNOWN_POSITIONS) for name in leader}


def _is_pointwise(lifted: Lifted) -> bool:
    """It is known to write a position for each that it reads."""
    if lifted.view is not None or lifted.same_shape:
        return False
    return all(term.kernel.geometry.is_pointwise for term in lifted.terms)
