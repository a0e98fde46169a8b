"""Canvases against numpy: whatever the sizes, a canvas says what the array holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_repfuse.lift.border.symbolic_tensor import (
    Span,
    SymbolicTensor,
    aligned,
    assigned,
    blank,
    concatenated,
    constant,
    padded,
)

Array = NDArray[Any]
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4))
seeds = st.integers(0, 2**16)


def paint(canvas: SymbolicTensor, shape: tuple[int, ...], core: Array) -> Array:
    """The array that a canvas says, at a size."""
    cells = []
    for axis, n in enumerate(shape):
        first, last = canvas.first[axis], canvas.last[axis]
        assert first + last < n, "no position for a cell"
        cells.append([*range(first), *[first] * (n - first - last), *range(first + 1, first + 1 + last)])
    index = np.ix_(*cells)
    result, inside = canvas.values[index].astype(float), canvas.inside[index]
    if canvas.place is not None:
        place = canvas.place
        laid = np.full(shape, np.nan)
        box = tuple(slice(b, n - a) for b, a, n in zip(place.before, place.after, shape, strict=True))
        laid[box] = core.transpose(place.axes)
        assert not np.isnan(laid[inside]).any(), "a cell of the core outside the core"
        result[inside] = laid[inside]
    return result


@given(size=sizes, seed=seeds, levels=st.integers(1, 4))
def test_a_constant(size: tuple[int, int], seed: int, levels: int) -> None:
    array = np.random.default_rng(seed).integers(0, levels, size)
    canvas = constant(array)
    assert canvas is not None
    assert (paint(canvas, size, array) == array).all()


@given(size=st.integers(1, 9), low=st.integers(0, 3), high=st.integers(0, 3))
def test_a_constant_has_few_cells(size: int, low: int, high: int) -> None:
    array = np.zeros(low + 2 * max(low, high) + size + high)
    array[:low] = np.arange(1, low + 1)
    array[len(array) - high :] = np.arange(1, high + 1)
    canvas = constant(array)
    assert canvas is not None
    assert (canvas.first, canvas.last) == ((low,), (high,))


def test_nothing_is_no_canvas() -> None:
    assert constant(np.zeros((0, 2))) is None


def steps(
    data: st.DataObject, canvas: SymbolicTensor, array: Array, known: bool
) -> tuple[SymbolicTensor, Array]:
    """One random operation on a canvas and on the array it stands for."""
    kind = data.draw(st.sampled_from(["pad", "transpose", "sides", "frame", "concat", "split"]))
    value = float(data.draw(st.integers(1, 99)))
    axis = data.draw(st.integers(0, 1))
    told = list(array.shape) if known else [None, None]
    if kind == "pad":
        pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
        canvas = padded(canvas, pads[:2], pads[2:], value)
        return canvas, np.pad(array, [(pads[0], pads[2]), (pads[1], pads[3])], constant_values=value)
    if kind == "transpose":
        return canvas.transposed((1, 0)), array.T
    if kind == "split":
        return canvas, array
    if kind == "sides":
        keep = data.draw(st.integers(1, 2))
        end = data.draw(st.booleans())
        spans = [Span(), Span()]
        spans[axis] = Span(keep=keep, from_end=end)
        new = assigned(
            canvas, spans, SymbolicTensor(np.full((1, 1), value), (0, 0), np.zeros((1, 1), bool)), told
        )
        if new is None:
            return canvas, array
        changed = array.copy()
        rows = np.moveaxis(changed, axis, 0)
        rows[-keep:] = value if end else rows[-keep:]
        rows[:keep] = rows[:keep] if end else value
        return new, changed
    if kind == "frame":
        skip, drop = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        shape = list(array.shape)
        shape[axis] += skip + drop
        base = constant(np.full(shape, value))
        assert base is not None
        spans = [Span(), Span()]
        spans[axis] = Span(skip=skip, drop=drop)
        new = assigned(base, spans, canvas, list(shape) if known else [None, None])
        if new is None:
            return canvas, array
        changed = np.full(shape, value)
        changed[tuple(slice(s.skip, n - s.drop) for s, n in zip(spans, shape, strict=True))] = array
        return new, changed
    count = data.draw(st.integers(1, 2))
    shape = list(array.shape)
    shape[axis] = count
    rows = np.broadcast_to(value + np.arange(count).reshape((-1, 1) if axis == 0 else (1, -1)), shape)
    part = constant(np.asarray(rows))
    assert part is not None
    new = concatenated([part, canvas, part], [count, None, count], axis)
    assert new is not None
    return new, np.concatenate([rows, array, rows], axis)


@settings(max_examples=300)
@given(data=st.data(), size=sizes, seed=seeds, known=st.booleans())
def test_operations_on_a_core(data: st.DataObject, size: tuple[int, int], seed: int, known: bool) -> None:
    """Any chain of them; the canvas never sees the size unless it is `known`."""
    core = np.random.default_rng(seed).standard_normal(size)
    canvas, array = blank("core", 2), core
    for _ in range(data.draw(st.integers(1, 5))):
        canvas, array = steps(data, canvas, array, known)
    assert np.array_equal(paint(canvas, array.shape, core), array)


@given(size=sizes, seed=seeds, levels=st.integers(1, 3))
def test_aligned_canvases_have_equal_cells(size: tuple[int, int], seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, levels, size) for _ in range(3)]
    canvases = aligned([c for c in map(constant, arrays) if c is not None])
    assert len({c.values.shape for c in canvases}) == 1
    for canvas, array in zip(canvases, arrays, strict=True):
        assert (paint(canvas, size, array) == array).all()


def test_a_core_is_not_assigned_over_a_core() -> None:
    assert assigned(blank("a", 1), [Span()], blank("b", 1), [None]) is None


def test_a_side_wider_than_the_border_needs_a_known_size() -> None:
    canvas = padded(blank("a", 1), (1,), (1,), 0.0)
    side = SymbolicTensor(np.ones(1), (0,), np.zeros(1, bool))
    assert assigned(canvas, [Span(keep=1)], side, [None]) is not None
    assert assigned(canvas, [Span(keep=2)], side, [None]) is None
    assert assigned(canvas, [Span(keep=2)], side, [4]) is not None
    assert assigned(canvas, [Span(keep=2)], side, [3]) is None
