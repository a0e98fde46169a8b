"""Elements, positions and channels of what forms read.

Positions of tensors where shape inference gave up, behind an If say, or where what it assumed does not agree.

An operator that works position by position reads as many as it writes, whatever their number: what its operands and
its output are priced by must agree. If not, an operator would cost less inside what reads it than by itself, and every
round would write it anew as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

from onnx_repfuse.graph.views import Layout
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.view_sources import Viewed

__all__ = ["UNKNOWN_POSITIONS", "Measures", "agreed_elements"]

UNKNOWN_POSITIONS = 1 << 12
Key = tuple[str, Layout]


@dataclass(eq=False)
class Measures:
    """Of one scope and round; `known` are the channels of tensors in the layouts they are read in."""

    context: Context
    lifts: dict[str, LinearOp]
    known: dict[tuple[str, Layout], int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # what `elements` said

    @cached_property
    def agreed(self) -> dict[str, int]:
        """Elements, where what the scope assumes does not suffice."""
        return agreed_elements(self.lifts, self.context.scope.elements)

    def elements(self, name: Hashable) -> int:
        """Assumed elements of a tensor; where nothing is known, or none are left, a fixed number of positions."""
        if isinstance(name, Viewed):
            view = name.view
            inner = self.elements(name.inner)
            return max(1, inner * self.elements(view.output) // self.elements(view.operand))
        key = name if type(name) is str else str(name)
        found = self.sizes.get(key)
        if found is None:
            found = self.sizes[key] = self._elements(key)
        return found

    def _elements(self, name: str) -> int:
        found = self.agreed.get(name) or self.context.scope.elements(name)
        if found:
            return found
        lifted, frame = self.lifts.get(name), self.context.channel_layout(name)
        channels = lifted.channels if lifted else frame.channels if frame else self._any_channels(name)
        return UNKNOWN_POSITIONS * channels

    def size(self, name: Hashable, rank: int) -> tuple[int, ...] | None:
        """Proved positions per axis of a source."""
        return self.context.size(name.view.output if isinstance(name, Viewed) else str(name), rank)

    def channels(self, source: Hashable, layout: Layout) -> int:
        """Of a source in a layout: one tensor may be read along two axes."""
        if isinstance(source, Viewed):
            return self.channels(source.inner, source.view.before)
        return self.known[str(source), layout]

    def _any_channels(self, name: str) -> int:
        return next((count for (one, _), count in self.known.items() if one == name), 1)

    def is_matrix(self, source: Hashable) -> bool:
        """Whether it is known to be two-dimensional."""
        return (source.view.dims if isinstance(source, Viewed) else self.context.rank(str(source))) == 2


def agreed_elements(lifts: dict[str, LinearOp], elements: Callable[[str], int | None]) -> dict[str, int]:
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


def _is_pointwise(lifted: LinearOp) -> bool:
    """It is known to write a position for each that it reads."""
    if lifted.view is not None or lifted.needs_equal_shapes:
        return False
    return all(term.kernel.geometry.is_pointwise for term in lifted.terms)
