"""Elements, positions and channels of what forms read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from onnx_repfuse.algebra.lazily import cached_property
from onnx_repfuse.graph.lift import Context, Lifted
from onnx_repfuse.graph.views import Layout
from onnx_repfuse.plan.positions import UNKNOWN_POSITIONS, agreed_elements
from onnx_repfuse.plan.sources import Viewed

__all__ = ["Measures"]


@dataclass(eq=False)
class Measures:
    """Of one scope and round; `known` are the channels of tensors in the layouts they are read in."""

    context: Context
    lifts: dict[str, Lifted]
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
        lifted, frame = self.lifts.get(name), self.context.frame(name)
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
