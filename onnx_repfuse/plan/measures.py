"""Elements, positions and channels of what forms read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from onnx_repfuse.graph.lift import Context, Lifted
from onnx_repfuse.graph.views import Layout
from onnx_repfuse.plan.price import nearest_positions
from onnx_repfuse.plan.sources import Viewed

__all__ = ["Measures"]


@dataclass(eq=False)
class Measures:
    """Of one scope and round; `known` are the channels of tensors in the layouts they are read in."""

    context: Context
    lifts: dict[str, Lifted]
    known: dict[tuple[str, Layout], int] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)  # what the scope assumes

    def elements(self, name: Hashable) -> int:
        """Assumed elements of a tensor; where nothing is known, or none are left, a fixed number of positions."""
        if isinstance(name, Viewed):
            view = name.view
            inner = self.elements(name.inner)
            return max(1, inner * self.elements(view.output) // self.elements(view.operand))
        key = name if type(name) is str else str(name)
        if key not in self.sizes:
            self.sizes[key] = self.context.scope.elements(key)
        found = self.sizes[key]
        if found:
            return found
        lifted, frame = self.lifts.get(str(name)), self.context.frame(str(name))
        known = lifted.channels if lifted else frame.channels if frame else self._any_channels(str(name))
        return nearest_positions(self.lifts, self.context.scope.elements, str(name)) * known

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
