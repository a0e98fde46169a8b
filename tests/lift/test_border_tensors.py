"""Symbolic tensors against numpy: whatever the sizes, they say what the array holds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_repfuse.lift.border.symbolic_tensor import (
    AxisRange,
    NotProved,
    SymbolicTensor,
    aligned,
    assigned,
    concatenated,
    from_constant,
    from_source,
    padded,
    uniform,
)

Array = NDArray[Any]
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4))
seeds = st.integers(0, 2**16)


def array_of(tensor: SymbolicTensor, shape: tuple[int, ...], source: Array) -> Array:
    """The array that a symbolic tensor stands for, at a size."""
    cells = []
    for axis, n in enumerate(shape):
        leading, trailing = tensor.leading[axis], tensor.trailing[axis]
        assert leading + trailing < n, "no position for a cell"
        middle = [leading] * (n - leading - trailing)
        cells.append([*range(leading), *middle, *range(leading + 1, leading + 1 + trailing)])
    index = np.ix_(*cells)
    result, is_source = tensor.values[index].astype(float), tensor.is_source[index]
    box = tensor.source
    if box is not None:
        laid = np.full(shape, np.nan)
        index_in_box = tuple(slice(b, n - a) for b, a, n in zip(box.before, box.after, shape, strict=True))
        laid[index_in_box] = source.transpose(box.axes)
        assert not np.isnan(laid[is_source]).any(), "a cell of the source outside the source"
        result[is_source] = laid[is_source]
    return result


@given(size=sizes, seed=seeds, levels=st.integers(1, 4))
def test_the_cells_of_a_constant_hold_its_elements(size: tuple[int, int], seed: int, levels: int) -> None:
    array = np.random.default_rng(seed).integers(0, levels, size)
    tensor = from_constant(array)
    assert tensor is not None
    assert (array_of(tensor, size, array) == array).all()


@given(size=st.integers(1, 9), low=st.integers(0, 3), high=st.integers(0, 3))
def test_a_constant_has_few_cells(size: int, low: int, high: int) -> None:
    array = np.zeros(low + 2 * max(low, high) + size + high)
    array[:low] = np.arange(1, low + 1)
    array[len(array) - high :] = np.arange(1, high + 1)
    tensor = from_constant(array)
    assert tensor is not None
    assert (tensor.leading, tensor.trailing) == ((low,), (high,))


def test_an_empty_constant_has_no_cells() -> None:
    assert from_constant(np.zeros((0, 2))) is None


def random_step(
    data: st.DataObject, tensor: SymbolicTensor, array: Array, known: bool
) -> tuple[SymbolicTensor, Array]:
    """One random operation on a symbolic tensor and on the array it stands for."""
    kind = data.draw(st.sampled_from(["pad", "transpose", "sides", "within a constant", "concat"]))
    value = float(data.draw(st.integers(1, 99)))
    axis = data.draw(st.integers(0, 1))
    proved = list(array.shape) if known else [None, None]
    if kind == "pad":
        pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
        tensor = padded(tensor, pads[:2], pads[2:], value)
        return tensor, np.pad(array, [(pads[0], pads[2]), (pads[1], pads[3])], constant_values=value)
    if kind == "transpose":
        return tensor.transposed((1, 0)), array.T
    if kind == "sides":
        keep = data.draw(st.integers(1, 2))
        end = data.draw(st.booleans())
        ranges = [AxisRange(), AxisRange()]
        ranges[axis] = AxisRange(length=keep, from_end=end)
        try:
            new = assigned(tensor, ranges, uniform(value, 2), proved)
        except NotProved:
            return tensor, array
        changed = array.copy()
        rows = np.moveaxis(changed, axis, 0)
        rows[-keep:] = value if end else rows[-keep:]
        rows[:keep] = rows[:keep] if end else value
        return new, changed
    if kind == "within a constant":
        skip, drop = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        shape = list(array.shape)
        shape[axis] += skip + drop
        base = from_constant(np.full(shape, value))
        assert base is not None
        ranges = [AxisRange(), AxisRange()]
        ranges[axis] = AxisRange(before=skip, after=drop)
        try:
            new = assigned(base, ranges, tensor, list(shape) if known else [None, None])
        except NotProved:
            return tensor, array
        changed = np.full(shape, value)
        changed[tuple(slice(r.before, n - r.after) for r, n in zip(ranges, shape, strict=True))] = array
        return new, changed
    count = data.draw(st.integers(1, 2))
    shape = list(array.shape)
    shape[axis] = count
    rows = np.broadcast_to(value + np.arange(count).reshape((-1, 1) if axis == 0 else (1, -1)), shape)
    part = from_constant(np.asarray(rows))
    assert part is not None
    new = concatenated([part, tensor, part], [count, None, count], axis)
    return new, np.concatenate([rows, array, rows], axis)


@settings(max_examples=300)
@given(data=st.data(), size=sizes, seed=seeds, known=st.booleans())
def test_operations_on_a_source_are_those_on_its_array(
    data: st.DataObject, size: tuple[int, int], seed: int, known: bool
) -> None:
    """Any chain of them; the size is not known to the symbolic tensor unless `known`."""
    source = np.random.default_rng(seed).standard_normal(size)
    tensor, array = from_source("source", 2), source
    for _ in range(data.draw(st.integers(1, 5))):
        tensor, array = random_step(data, tensor, array, known)
    assert np.array_equal(array_of(tensor, array.shape, source), array)


@given(size=sizes, seed=seeds, levels=st.integers(1, 3))
def test_aligned_tensors_have_equal_cells(size: tuple[int, int], seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, levels, size) for _ in range(3)]
    tensors = aligned([c for c in map(from_constant, arrays) if c is not None])
    assert len({c.values.shape for c in tensors}) == 1
    for tensor, array in zip(tensors, arrays, strict=True):
        assert (array_of(tensor, size, array) == array).all()


def test_a_source_is_not_assigned_over_another() -> None:
    with pytest.raises(NotProved):
        assigned(from_source("a", 1), [AxisRange()], from_source("b", 1), [None])


@pytest.mark.parametrize(
    ("length", "size", "is_proved"), [(1, None, True), (2, None, False), (2, 4, True), (2, 3, False)]
)
def test_assigning_beyond_the_padding_needs_a_known_size(
    length: int, size: int | None, is_proved: bool
) -> None:
    tensor = padded(from_source("a", 1), (1,), (1,), 0.0)
    with nullcontext() if is_proved else pytest.raises(NotProved):
        assigned(tensor, [AxisRange(length=length)], uniform(1.0, 1), [size])
