"""Elements and channels of the tensors that forms read: what prices are computed from.

An operator that works position by position writes as many positions as it reads, however many these are. So what its
operands and its output are priced by must agree, also where shape inference gave up, as it does behind an If, or where
what it assumed contradicts itself. Otherwise an operator would cost less inside its consumer than by itself, and every
round would write it anew as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from onnx_repfuse.algebra.affine_form import Form, Shifted
from onnx_repfuse.algebra.laws import Multiple, Size
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dim
from onnx_repfuse.graph.multiples import multiples
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.views import Layout
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.forms.view_sources import Viewed

__all__ = ["UNKNOWN_POSITIONS", "Sizes"]

UNKNOWN_POSITIONS = 1 << 12  # assumed where nothing is known, e.g. 64 x 64 pixels
Key = tuple[str, Layout]  # a tensor in one of the layouts it is read in


@dataclass(eq=False)
class Sizes:
    """Of one scope in one round.

    Attributes:
        operand_channels: channels of tensors, in each layout they are read in.
        may_gemm: whether Gemm may be written.
    """

    context: Context
    lifts: dict[str, LinearOp]
    operand_channels: dict[Key, int] = field(default_factory=dict)
    may_gemm: bool = True
    _elements: dict[str, int] = field(default_factory=dict)  # answers of `elements`

    @cached_property
    def _agreed(self) -> dict[str, int]:
        return _agreed_elements(self.lifts, self.context.scope.assumed)

    def elements(self, source: Hashable) -> int:
        """Assumed elements of a source, at least 1."""
        if type(source) is str:  # asked of every term
            count = self._elements.get(source)
            if count is None:
                count = self._elements[source] = self._assumed(source)
            return count
        if isinstance(source, Shifted):
            return self.elements(source.source)
        if isinstance(source, Viewed):
            view, form = source.view, source.inner
            if isinstance(form, Form):
                return max(1, self.elements(view.output) * form.channels // view.channels)
            inner = self.elements(source.inner)
            return max(1, inner * self.elements(view.output) // self.elements(view.operand))
        return self.elements(str(source))

    def _assumed(self, name: str) -> int:
        count = self._agreed.get(name) or self.context.scope.elements(name)
        return count or UNKNOWN_POSITIONS * self._any_channels(name)

    def _any_channels(self, name: str) -> int:
        """Channels of a tensor in whatever layout is known."""
        if name in self.lifts:
            return self.lifts[name].channels
        layout = self.context.channel_layout(name)
        if layout is not None:
            return layout.channels
        return next((count for (tensor, _), count in self.operand_channels.items() if tensor == name), 1)

    def positions(self, source: Hashable, rank: int) -> Size | None:
        """Positions per spatial axis of a source, where they, or multiples that they are of, are proved."""
        source = source.source if isinstance(source, Shifted) else source
        name = source.view.output if isinstance(source, Viewed) else str(source)
        known = self.context.size(name, rank)
        dims = dims_of(self.context.scope, name) or () if known is None and self._multiples else ()
        if len(dims) != rank + 2:
            return known
        return tuple(
            dim if isinstance(dim, int) else Multiple(self._multiples.get(dim, 1)) for dim in dims[2:]
        )

    @cached_property
    def _multiples(self) -> dict[Dim, int]:
        return multiples(self.context.scope)

    def channels(self, source: Hashable, layout: Layout) -> int:
        """Channels of a source in a layout: one tensor may be read along two axes."""
        if isinstance(source, Shifted):
            return self.channels(source.source, layout)
        if isinstance(source, Viewed):
            inner, view = source.inner, source.view
            below = inner.channels if isinstance(inner, Form) else self.channels(inner, view.before)
            return view.behind(below)
        return self.operand_channels[str(source), layout]

    def is_matrix(self, source: Hashable) -> bool:
        """Whether it is known to have two dims, so that a Gemm can read it; no runtime has Gemm below opset 7."""
        if self.context.scope.opset < NUMPY_BROADCAST_SINCE or not self.may_gemm:
            return False
        source = source.source if isinstance(source, Shifted) else source
        return (source.view.dims if isinstance(source, Viewed) else self.context.rank(str(source))) == 2


def _agreed_elements(lifts: dict[str, LinearOp], assumed: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Elements of the tensors that lifted operators read or make, where those assumed are none or do not agree.

    Args:
        lifts: in topological order.
        assumed: the shapes that inference assumed.
    """
    if all(_keeps_channels(assumed, key, count) for key, count in _read_or_made(lifts.values())):
        return {}  # sizes that disagree leave what is computed from them unknown
    channels, leader = _pointwise_groups(lifts.values())
    known = _known_positions(channels, leader, assumed)
    # the most, as which tensor comes first depends on nothing that matters
    positions = {key: max(counts) for key, counts in known.items()}
    # a group of unknown positions takes those of what it is computed from, so that neighbours are priced alike
    for lifted in lifts.values():
        below = [_find(leader, (operand.name, operand.layout)) for operand in lifted.operands]
        first = next((positions[key] for key in below if key in positions), UNKNOWN_POSITIONS)
        positions.setdefault(_find(leader, (lifted.output, lifted.layout)), first)
    result: dict[str, int] = {}
    for key, count in channels.items():
        group = _find(leader, key)
        disagree = len(set(known.get(group, ()))) > 1
        if disagree or not _keeps_channels(assumed, key, count):
            result.setdefault(key[0], positions.get(group, UNKNOWN_POSITIONS) * count)
    return result


def _read_or_made(lifts: Iterable[LinearOp]) -> Iterator[tuple[Key, int]]:
    """Every tensor that operators read or make, with its channels."""
    for lifted in lifts:
        yield (lifted.output, lifted.layout), lifted.channels
        for operand in lifted.operands:
            yield (operand.name, operand.layout), operand.channels


def _keeps_channels(assumed: Mapping[str, tuple[int, ...]], key: Key, channels: int) -> bool:
    """Whether a shape is assumed, has elements, and has the channels that the operators say.

    An input of which the file says nothing but its rank is assumed to have 224 channels, and a Conv knows better. Then
    its elements are no multiple of the channels, and an operator would cost less when it is written anew.
    """
    name, (axis, rank) = key
    shape = assumed.get(name)
    if not shape or 0 in shape:
        return False
    return (axis == -1 or len(shape) == rank + 2) and shape[axis] == channels


def _known_positions(
    channels: dict[Key, int], leader: dict[Key, Key], assumed: Mapping[str, tuple[int, ...]]
) -> dict[Key, list[int]]:
    """Representative of a group -> the positions of those of its tensors of which a shape is assumed."""
    known: dict[Key, list[int]] = {}
    for key, count in channels.items():
        name, (axis, rank) = key
        shape = assumed.get(name)
        if not shape or 0 in shape:
            continue
        fits = axis == -1 or len(shape) == rank + 2
        found = prod(shape) // (shape[axis] if fits else count)
        known.setdefault(_find(leader, key), []).append(max(1, found))
    return known


def _pointwise_groups(lifts: Iterable[LinearOp]) -> tuple[dict[Key, int], dict[Key, Key]]:
    """Channels of all tensors, and the tensors of equally many positions as a union-find forest."""
    channels: dict[Key, int] = {}
    leader: dict[Key, Key] = {}
    for lifted in lifts:
        output = lifted.output, lifted.layout
        channels[output] = lifted.channels
        for operand in lifted.operands:
            read = operand.name, operand.layout
            channels.setdefault(read, operand.channels)
            if _is_pointwise(lifted):
                leader[_find(leader, read)] = _find(leader, output)
    return channels, leader


def _find(leader: dict[Key, Key], key: Key) -> Key:
    """The representative of a tensor's group; paths are halved on the way."""
    above = leader.setdefault(key, key)
    while above != key:
        leader[key] = leader[above]
        key, above = above, leader[above]
    return key


def _is_pointwise(lifted: LinearOp) -> bool:
    """It is known to write a position for each that it reads."""
    if lifted.view is not None or lifted.needs_equal_shapes:
        return False
    return all(term.kernel.geometry.is_pointwise for term in lifted.terms)
