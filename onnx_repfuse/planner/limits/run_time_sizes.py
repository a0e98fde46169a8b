"""Whether a fold takes more multiply-adds than what it replaces at some size that is known only at run time.

Prices are computed from one assumed size. At another one, the order of two tensors' sizes may be the other one:

    Conv1x1(GlobalAveragePool(x))     the Conv has one position; before the pool, it has all that x has
    Conv3x3(Conv1x1(x)), stride 2     the 1x1 has four times the positions, but of an x of one position as many

So before a fold is made, its nodes and their replacement are followed from its sources, at many sizes, through the
arithmetic of Conv, pool, Pad and Resize. What that arithmetic does not tell is left to the assumed size.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.facts import SpaceMapSort
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Shape, optional_input
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.limits.run_time_lists import RunTimeLists
from onnx_repfuse.planner.limits.space_sizes import positions_behind
from onnx_repfuse.planner.pricing.steps import Step
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection

__all__ = ["may_rise"]

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 64, 1024)  # along every axis that is not proved
_RESIZES = (SpaceMapSort.REPEATS, SpaceMapSort.INTERPOLATES)
SCALES = (1.0, 0.5, 2.0)  # of a Resize of which nothing is known, and of a second image


class _Positions(NamedTuple):
    """The positions of a tensor of one image: along each spatial axis, if that is known, and in total."""

    space: tuple[int, ...] | None
    total: int


class _UnknownSizesError(Exception):
    """The sizes of a tensor do not follow from those of the sources, or no tensor can have them."""


def may_rise(cover: Cover, selection: Selection) -> bool:
    """Whether there is a size at which a selection takes more multiply-adds than the nodes it absorbs."""
    if not selection.lowered.macs or _is_static(cover, selection):
        return False  # else the price is right
    place = {id(node): number for number, node in enumerate(selection.nodes)}
    operators = sorted(selection.operators, key=lambda one: place[id(one.node)])
    return any(after > before for before, after in _multiply_adds(cover, selection, operators))


def _is_static(cover: Cover, selection: Selection) -> bool:
    """Whether all sizes but the batch's are proved."""
    names = [selection.output, *(operand.name for one in selection.operators for operand in one.operands)]
    shapes = [cover.context.scope.shape(name) for name in names]
    return all(shape is not None and None not in shape[1:] for shape in shapes)


def _multiply_adds(
    cover: Cover, selection: Selection, operators: list[LinearOp]
) -> Iterator[tuple[int, int]]:
    """Multiply-adds before and after, at all sizes at which both are known."""
    kept = frozenset(id(step.view.node) for step in selection.lowered.steps if step.view is not None)
    for size in SIZES:
        for scale in SCALES:
            trial = _Trial(cover.context, size, scale, kept=kept)
            with suppress(_UnknownSizesError):
                yield sum(map(trial.before, operators)), trial.after(selection.lowered.steps)
            if not trial.is_one_of_several:
                break


@dataclass(eq=False)
class _Trial:
    """One fold at one size of its sources.

    Attributes:
        size: along each axis of a source that is not proved.
        scale: of every Resize of which nothing is known, and of every image but the first.
        places: tensor -> its positions.
        was_scaled: there was such a Resize.
        lists: the dims of tensors, and the lists that are computed from them.
        kept: ids of the nodes that are written again: the additions of an AveragePool count where it becomes a kernel.
    """

    context: Context
    size: int
    scale: float
    places: dict[str, _Positions] = field(default_factory=dict)
    was_scaled: bool = False
    kept: frozenset[int] = frozenset()
    lists: RunTimeLists = field(init=False)

    def __post_init__(self) -> None:
        self.lists = RunTimeLists(self.context.scope, self.size, self.scale)

    @property
    def is_one_of_several(self) -> bool:
        """Whether the scale made a difference, so that others have to be tried."""
        return self.was_scaled or len(self.lists.origins) > 1

    def before(self, lifted: LinearOp) -> int:
        """Multiply-adds of an operator, whose operands come before it. Raises _UnknownSizesError."""
        operands = [self.source(operand.name, operand.layout) for operand in lifted.operands]
        if lifted.view is not None:
            self.places[lifted.output] = self.behind_view(lifted.view, operands[0])
            return 0
        behind = set()
        for term in lifted.terms:
            number: Any = term.source
            behind.add(_behind(term.kernel.geometry, operands[number]))
        if len(behind) != 1:
            raise _UnknownSizesError  # the sources have other sizes than these
        (result,) = behind
        self.places[lifted.output] = result
        is_average = _averages(lifted) and id(lifted.node) not in self.kept
        if operator(lifted.node).weight is None and not is_average:
            return 0
        return _macs(lifted.terms[0].kernel.geometry, operands[0], result)

    def after(self, steps: tuple[Step, ...]) -> int:
        """Multiply-adds of what is written instead. Raises _UnknownSizesError."""
        results: list[_Positions] = []
        total = 0
        for step in steps:
            if step.op in ("SizesMul", "SizesAdd"):
                results.append(_Positions((), 0))
                continue
            read = self.read(step.inputs[0], step, results)
            result = read
            if step.view is not None:
                result = self.behind_view(step.view, read)
            elif step.op in ("Conv", "Slice") and step.kernel is not None:
                geometry = step.kernel.geometry.grown() if step.op == "Conv" else step.kernel.geometry
                result = _behind(geometry, read)
                total += _macs(geometry, read, result) if step.op == "Conv" else 0
            results.append(result)
        return total

    def read(self, source: Hashable, step: Step, results: list[_Positions]) -> _Positions:
        """The positions of what a step reads: an earlier step, or a tensor."""
        if isinstance(source, int):
            return results[source]
        return self.source(str(source), step.view.before if step.view is not None else step.layout)

    def source(self, name: str, layout: tuple[int, int]) -> _Positions:
        """The positions of a tensor; of a source, those of this trial."""
        if name not in self.places:
            axis, rank = layout
            dims = self.lists.dims(name)
            found = self.of_rows(dims) if axis == -1 else self.of_space(dims, rank)
            if found.total < 1:  # the image is too small for what is before
                raise _UnknownSizesError
            self.places[name] = found
        return self.places[name]

    def of_rows(self, dims: list[int] | None) -> _Positions:
        """The rows of one image in a tensor that has its channels last."""
        if not dims:
            return _Positions((), self.size)
        return _Positions((), prod(dims[1:-1] if len(dims) > 2 else dims[:1]))

    def of_space(self, dims: list[int] | None, rank: int) -> _Positions:
        """The positions of a tensor that has its channels on axis 1."""
        is_known = dims is not None and len(dims) == rank + 2
        space = tuple(dims[2:]) if dims is not None and is_known else (self.size,) * rank
        return _Positions(space, prod(space) if min(space, default=1) > 0 else 0)

    def behind_view(self, view: View, operand: _Positions) -> _Positions:
        """The positions behind a view. Raises _UnknownSizesError."""
        if view.sort is SpaceMapSort.PERMUTES and view.before == view.after and operand.space:
            return _permuted(view, operand.space, operand.total)
        is_on_last_axis = view.after[0] == -1
        if view.sort in (SpaceMapSort.RESHAPES, SpaceMapSort.PERMUTES):
            total = operand.total * view.channels // view.channels_behind
            return _Positions(() if is_on_last_axis else self.space_of(view, total), total)
        stated = self.stated(view, operand)
        if stated is not None:
            return _Positions(stated, prod(stated))
        space = self.assumed(view, operand, view.end[1:-1] if is_on_last_axis else view.end[2:])
        return _Positions(() if is_on_last_axis else space, prod(space))

    def stated(self, view: View, operand: _Positions) -> tuple[int, ...] | None:
        """The positions per axis that a view states by itself, or lists. Raises _UnknownSizesError."""
        stated = None if operand.space is None else self.by_arguments(view, operand.space)
        if stated is not None:
            if min(stated, default=1) < 1:
                raise _UnknownSizesError
            return tuple(stated)
        return self.listed(view) if view.sort in _RESIZES else None

    def assumed(self, view: View, operand: _Positions, proved: Shape) -> tuple[int, ...]:
        """The positions per axis: those that are proved, of the others the scale's. Raises _UnknownSizesError."""
        if operand.space is None or (None in proved and len(proved) != len(operand.space)):
            raise _UnknownSizesError
        factors = self.factors(view) if view.sort in _RESIZES else (1.0,) * len(proved)
        space: list[int] = []
        for place, dim in enumerate(proved):
            space.append(dim if dim is not None else max(1, int(operand.space[place] * factors[place])))
        return tuple(space)

    def by_arguments(self, view: View, space: tuple[int, ...]) -> Sequence[int] | None:
        """The positions behind a view that its own arguments tell."""
        by_rule = view.positions(space)
        return positions_behind(self.context, view.node, space) if by_rule is None else by_rule

    def space_of(self, view: View, total: int) -> tuple[int, ...] | None:
        """The positions per axis behind a Reshape or Transpose, where they are proved or follow from others."""
        proved = _unless_none(view.end[2:])
        dims = None if proved is not None else self.lists.dims(view.output)
        if dims is None or prod(dims[2:]) != total:
            return proved
        return tuple(dims[2:])

    def listed(self, view: View) -> tuple[int, ...] | None:
        """The positions behind a Resize or Expand that lists sizes, where these follow from those of what it reads."""
        name = optional_input(view.node, 1 if view.node.op == "Expand" else 3)
        sizes = self.lists.evaluate(name) if name else None
        before = self.lists.dims(view.operand)
        if sizes is None or before is None:
            return None
        axes = view.node.attrs.get("axes") or range(len(view.start))
        by_axis = {int(axis) % len(view.start): size for axis, size in zip(axes, sizes, strict=True)}
        if view.node.op == "Expand":
            by_axis = {axis: max(size, before[axis]) for axis, size in by_axis.items()}
        space = tuple(by_axis.get(axis, before[axis]) for axis in range(2, len(view.start)))
        if min(space, default=1) < 1:
            raise _UnknownSizesError
        return space

    def factors(self, view: View) -> tuple[float, ...]:
        """By how much a Resize lengthens each spatial axis."""
        for place in (2, 1):  # Resize has its scales third; Upsample, and Resize at first, second
            const = self.context.scope.const(optional_input(view.node, place))
            if const is not None and len(const.shape) == 1 and const.size == len(view.end):
                return tuple(float(scale) for scale in np.asarray(const.read())[2:])
        self.was_scaled = True
        return (self.scale,) * (len(view.end) - 2)


def _permuted(view: View, space: tuple[int, ...], total: int) -> _Positions:
    """The positions behind a Transpose of space. Raises _UnknownSizesError: how many images there are is not told."""
    order = permutation(view.node, len(space) + 2)[2:]
    if min(order, default=2) < 2:
        raise _UnknownSizesError
    return _Positions(tuple(space[place - 2] for place in order), total)


def _averages(lifted: LinearOp) -> bool:
    """Whether it is an average over a window, read as a convolution."""
    return lifted.also is not None and lifted.also.view is not None and lifted.also.view.convolves


def _unless_none(dims: tuple[int | None, ...]) -> tuple[int, ...] | None:
    known = tuple(dim for dim in dims if dim is not None)
    return known if len(known) == len(dims) else None


def _behind(geometry: Geometry, operand: _Positions) -> _Positions:
    """The positions behind a kernel. Raises _UnknownSizesError: they are not known, or there are none."""
    if geometry.is_pointwise or not geometry.rank:
        return operand
    if operand.space is None or len(operand.space) != geometry.rank:
        raise _UnknownSizesError
    space = geometry.output(operand.space)
    if min(space) < 1:
        raise _UnknownSizesError  # the operator does not run at this size
    return _Positions(space, prod(space))


def _macs(geometry: Geometry, read: _Positions, written: _Positions) -> int:
    return geometry.macs(read.total if geometry.transposed else written.total)
