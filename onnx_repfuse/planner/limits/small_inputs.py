"""No fold goes wrong where a tensor is smaller than the window that reads it.

    AveragePool 2x2 of one position      ONNX Runtime cuts the window, and divides by what is left of it
    AveragePool 3x3 of two positions     it writes nothing, and the model goes on
    x[..., 1:] of one position           likewise
    Conv 3x3 of two positions            it does not run

So a convolution in place of a pool or a Slice may not run where these do. Convolutions composed run where all of them
run, and nowhere else (docs/algebra.md). So a fold that takes in a pool or Slice is followed from small sizes of what it
reads: wherever all of its nodes run, each window must fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dim, Extent, Product, value
from onnx_repfuse.graph.operators.facts import SpaceMapSort
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.windows import any_window
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.limits.space_sizes import positions_behind
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection

__all__ = ["too_small_for"]

Axis = tuple[str, int]  # a tensor, and an axis of it
_WINDOWS = frozenset(("AveragePool", "Slice"))
LARGEST = 1 << 12  # size that is tried


class _DoesNotRunError(Exception):
    """The original does not run at these sizes."""


def too_small_for(cover: Cover, selection: Selection) -> gs.Node | None:
    """The pool or Slice that a selection takes in, of which it is not proved that its input is never too small."""
    convolves = any(step.op == "Conv" and step.layout[0] == 1 for step in selection.lowered.steps)
    if not convolves or _WINDOWS.isdisjoint(node.op for node in selection.nodes):
        return None
    place = {id(node): number for number, node in enumerate(selection.nodes)}
    operators = sorted(selection.operators, key=lambda one: place[id(one.node)])
    small = _SmallInputs(cover.context, operators, _stay_views(selection), _is_convolved_behind(selection))
    return next(filter(None, map(small.too_small, small.bases())), None)


def _stay_views(selection: Selection) -> frozenset[int]:
    """The ids of the nodes that are written again, before or behind other operators."""
    return frozenset(id(step.view.node) for step in selection.lowered.steps if step.view is not None)


def _is_convolved_behind(selection: Selection) -> frozenset[int]:
    """The ids of the nodes that are written again in front of a convolution."""
    before: list[set[int]] = []  # of each step, the views that it depends on
    found: set[int] = set()
    for step in selection.lowered.steps:
        own = {id(step.view.node)} if step.view is not None else set()
        for source in step.inputs:
            own |= before[source] if isinstance(source, int) else set()
        before.append(own)
        if step.op == "Conv":
            found |= own
    return frozenset(found)


@dataclass(eq=False)
class _SmallInputs:
    """The operators that a fold takes in, in topological order.

    Attributes:
        stay: ids of the nodes that are views, and written again.
        convolved: those of them in front of a convolution.
    """

    context: Context
    operators: Sequence[LinearOp]
    stay: frozenset[int]
    convolved: frozenset[int]

    def bases(self) -> list[Axis | None]:
        """The sizes that are not known and on which those of the operands depend; None stands for known ones."""
        made: set[Axis] = set()
        found: dict[Axis | None, None] = {None: None}
        for lifted, number, axis in self.axes():
            key = lifted.operands[number].name, axis
            if key not in made:
                found[_base(self.dim(*key), key)] = None
            behind = self.behind(lifted, number, axis, 1)
            if behind is not None:
                made.add((lifted.output, behind[0]))
        return list(found)

    def dim(self, name: str, axis: int) -> Dim | None:
        """The size of an axis of a tensor."""
        dims = dims_of(self.context.scope, name)
        return None if dims is None or axis >= len(dims) else dims[axis]

    def too_small(self, base: Axis | None) -> gs.Node | None:
        """The first window that does not fit at the smallest size of a base at which all nodes run.

        Of a larger one, no tensor has fewer positions: if the windows fit at one size, they fit at all larger ones.
        """
        for positions in range(1, 2 if base is None else LARGEST):
            with suppress(_DoesNotRunError):
                return self.at(base, positions)
        return None if base is None else next(one.node for one in self.operators if one.node.op in _WINDOWS)

    def at(self, base: Axis | None, positions: int) -> gs.Node | None:
        """The first window that does not fit where a base has so many positions. Raises _DoesNotRunError."""
        sizes: dict[Axis, int] = {}
        small: gs.Node | None = None
        for lifted, number, axis in self.axes():
            size = self.size((lifted.operands[number].name, axis), base, positions, sizes)
            behind = None if size is None else self.behind(lifted, number, axis, size)
            if size is None or behind is None:
                continue
            if small is None and self.is_too_few(lifted, axis, size):
                small = lifted.node
            if behind[1] < 0:
                raise _DoesNotRunError
            # an operand of one position broadcasts
            key = lifted.output, behind[0]
            sizes[key] = max(sizes.get(key, behind[1]), behind[1]) if behind[1] else 0
        return small

    def axes(self) -> Iterator[tuple[LinearOp, int, int]]:
        """Every spatial axis of every operand: the operator, the number of the operand, and the axis."""
        for lifted in self.operators:
            for number, operand in enumerate(lifted.operands):
                for axis in range(2, operand.layout[1] + 2):
                    yield lifted, number, axis

    def size(self, key: Axis, base: Axis | None, positions: int, sizes: dict[Axis, int]) -> int | None:
        """The size of an axis of an operand, if it is known or depends on a base; below 1, raises _DoesNotRunError."""
        if key in sizes:
            return sizes[key]
        dim = self.dim(*key)
        if _base(dim, key) != base and not isinstance(dim, int):
            return None
        size = positions if dim is None or isinstance(dim, Product) else value(dim, lambda _: positions)
        if size < 1:
            raise _DoesNotRunError
        return size

    def is_too_few(self, lifted: LinearOp, axis: int, size: int) -> bool:
        """Whether an operator is not the convolution that it was read as, for so many positions of an axis."""
        if lifted.node.op not in _WINDOWS or id(lifted.node) in self.stay - self.convolved:
            return False  # what stays itself is cut as it was
        if lifted.view is not None and lifted.node.op == "Slice":
            return self.cropped(lifted, axis, size) == 0
        sampling = self.sampling(lifted)
        if sampling is None or axis - 2 >= len(sampling):
            return False
        stride, slack = sampling[axis - 2]
        # a pool that stays in front of a convolution must not be empty
        return size + slack <= (-stride if id(lifted.node) in self.stay else -1)

    def behind(self, lifted: LinearOp, operand: int, axis: int, positions: int) -> tuple[int, int] | None:
        """Where an axis of an operand is in the output, and how many positions it has there; below 0, it does not run.

        None where that is not known.
        """
        view = lifted.view
        if view is not None and view.sort is SpaceMapSort.PERMUTES and view.before == view.after:
            return permutation(view.node, view.dims).index(axis), positions
        if view is not None and view.node.op == "Slice":
            cropped = self.cropped(lifted, axis, positions)
            return None if cropped is None else (axis, cropped)
        sampling = self.sampling(lifted, operand)
        if sampling is None or axis - 2 >= len(sampling):
            return None
        return axis, _positions_written(lifted, positions, *sampling[axis - 2])

    def cropped(self, lifted: LinearOp, axis: int, positions: int) -> int | None:
        """The positions of an axis that a Slice leaves of so many; None where it does not tell."""
        rank = lifted.operands[0].layout[1]
        left = positions_behind(self.context, lifted.node, (positions,) * rank)
        return None if left is None or axis - 2 >= rank else left[axis - 2]

    def sampling(self, lifted: LinearOp, operand: int = 0) -> list[tuple[int, int]] | None:
        """Stride and slack along each axis of an operand; None of a view but a pool's, and where they are not known."""
        if lifted.node.op == "AveragePool":
            window = any_window(self.context.scope, lifted.node, rounds_up=True)
            return None if window is None else list(zip(window.strides, window.slack, strict=True))
        terms = [term for term in lifted.terms if term.source == operand]
        if lifted.view is not None or not terms:
            return None
        geometry = terms[0].kernel.geometry
        return list(zip(geometry.strides, geometry.slack, strict=True))


def _positions_written(lifted: LinearOp, positions: int, stride: int, slack: int) -> int:
    """How many positions an operator writes along an axis; below 0 where ONNX Runtime does not run it."""
    op = lifted.node.op
    if op == "AveragePool":
        # ONNX Runtime divides towards zero, and takes no empty tensor
        return max(-1, int((positions + slack) / stride) + 1) if positions else -1
    scatters = any(term.kernel.geometry.transposed for term in lifted.terms)
    written = stride * (positions - 1) + slack if scatters else (positions + slack) // stride + 1
    if op in ("Conv", "ConvTranspose"):
        return written if written > 0 else -1
    return max(written, 0)


def _base(dim: Dim | None, key: Axis) -> Axis | None:
    """The axis whose size another one's follows from: by default its own; None if it is a number."""
    if isinstance(dim, int):
        return None
    return (dim.tensor, dim.axis) if isinstance(dim, Extent) else key
