"""Positions of tensors where shape inference gave up, behind an If say, or where what it assumed does not agree.

An operator that works position by position reads as many as it writes, whatever their number: what its operands and
its output are priced by must agree. If not, an operator would cost less inside what reads it than by itself, and every
round would write it anew as it stands.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx_repfuse.graph.lift import Lifted
from onnx_repfuse.graph.views import Layout

__all__ = ["UNKNOWN_POSITIONS", "agreed_elements"]

UNKNOWN_POSITIONS = 1 << 12

Key = tuple[str, Layout]


def agreed_elements(lifts: dict[str, Lifted], elements: Callable[[str], int | None]) -> dict[str, int]:
    """Elements of the tensors that lifted operators read or make, where they are unknown or do not agree.

    Args:
        lifts: in topological order.
        elements: of a tensor, where known.
    """
    if all(map(elements, lifts)):
        return {}  # sizes that disagree leave what is made of them unknown
    leader: dict[Key, Key] = {}

    def find(key: Key) -> Key:
        above = leader.setdefault(key, key)
        while above != key:
            leader[key] = leader[above]
            key, above = above, leader[above]
        return key

    channels: dict[Key, int] = {}
    for lifted in lifts.values():
        output = lifted.output, lifted.layout
        channels[output] = lifted.channels
        for operand in lifted.operands:
            read = operand.name, operand.layout
            channels.setdefault(read, operand.channels)
            if _is_pointwise(lifted):
                leader[find(read)] = find(output)
    known: dict[Key, list[int]] = {}
    for key, count in channels.items():
        found = elements(key[0])
        if found:
            known.setdefault(find(key), []).append(max(1, found // count))
    positions = {key: found[0] for key, found in known.items()}
    for lifted in lifts.values():  # else those of what it is made of, so that neighbours are priced alike
        below = [find((operand.name, operand.layout)) for operand in lifted.operands]
        first = next((positions[key] for key in below if key in positions), UNKNOWN_POSITIONS)
        positions.setdefault(find((lifted.output, lifted.layout)), first)
    result: dict[str, int] = {}
    for key, count in channels.items():
        group = find(key)
        if not elements(key[0]) or len(set(known.get(group, ()))) > 1:
            result.setdefault(key[0], positions.get(group, UNKNOWN_POSITIONS) * count)
    return result


def _is_pointwise(lifted: Lifted) -> bool:
    """It is known to write a position for each that it reads."""
    if lifted.view is not None or lifted.same_shape:
        return False
    return all(term.kernel.geometry.is_pointwise for term in lifted.terms)
