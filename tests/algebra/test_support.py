"""Zero channels told from what a kernel is made of, against those of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.choice import ColumnsAt, RowsAt, picked
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Block, InLayout, Stacked
from onnx_repfuse.algebra.kernels import Composed, Kernel, Scaled, Stored, Total, Vector, input_channels
from onnx_repfuse.algebra.support import has_rows_below, largest_rows, reached, zero_channels

RNG = np.random.default_rng(5)


def stored(
    c_in: int, c_out: int, groups: int = 1, zero_out: Sequence[int] = (), zero_in: Sequence[int] = ()
) -> Kernel:
    g = Geometry.conv(c_in, c_out, (3, 3), groups=groups)
    weight = RNG.uniform(0.5, 1.0, g.weight_shape)  # positive: nothing cancels
    weight[list(zero_out)] = 0
    weight[np.isin(input_channels(g, 0, c_out), zero_in)] = 0
    return Stored(g, lambda: weight)


def composed(g: Kernel, f: Kernel) -> Kernel:
    return Composed(laws.compose(g.geometry, f.geometry, zero_bias=True), g, f)


def vector(*values: float) -> Vector:
    return Vector(Geometry.diagonal(len(values), 2, 1), np.array(values))


def total() -> Kernel:
    f, g = stored(3, 4, zero_out=[0, 2], zero_in=[1]), stored(3, 4, zero_out=[2, 3], zero_in=[1, 2])
    return Total(laws.total(f.geometry, g.geometry, None), (f, g))


def scaled() -> Kernel:
    inner = stored(4, 4, groups=2, zero_out=[1])
    return Scaled(inner.geometry, inner, np.array([1.0, 1, 0, 2]), np.array([0.0, 1, 1, 0]))


def rows(lo: int, hi: int) -> Kernel:
    inner = stored(4, 6, groups=2, zero_out=[1, 4], zero_in=[3])
    geometry, first, _ = laws.select_outputs(inner.geometry, lo, hi)
    return Block(geometry, inner, lo, first)


def columns(lo: int, hi: int) -> Kernel:
    inner = stored(4, 6, groups=2, zero_out=[1, 4], zero_in=[3])
    geometry, first, _ = laws.select_inputs(inner.geometry, lo, hi)
    return Block(geometry, inner, first, lo)


def stacked() -> Kernel:
    parts = stored(3, 2, zero_out=[1], zero_in=[0, 1]), stored(3, 3, zero_in=[0, 2])
    return Stacked(replace(parts[0].geometry, c_out=5), parts)


def rows_at() -> Kernel:
    inner = stored(3, 4, zero_out=[2], zero_in=[1])
    return RowsAt(replace(inner.geometry, c_out=3), np.array([2, 0, 2]), inner)


def columns_at() -> Kernel:
    inner = stored(3, 4, zero_in=[1])
    return ColumnsAt(replace(inner.geometry, c_in=5), np.array([4, 0, 4]), inner)


def in_layout() -> Kernel:
    inner = vector(1, 0, 2)
    return InLayout(Geometry.diagonal(3, 1, 1), inner)


def cancelling(*, factors_of_inputs: bool) -> Kernel:
    """A kernel that is added to itself, so that nothing is left of two rows, or of one: 2 + 1 - 3."""
    base = stored(3, 4)
    inputs = np.array([1.0, 2.0, 0.0]) if factors_of_inputs else None
    g = base.geometry
    first, second = (
        Scaled(g, base, np.array(factors), inputs)
        for factors in ([2.0, 1.0, 5.0, -1.0], [-3.0, -2.0, 1.0, 3.0])
    )
    return Total(g, (first, Scaled(g, base, None, inputs) if factors_of_inputs else base, second))


KERNELS: dict[str, Callable[[], Kernel]] = {
    "stored": lambda: stored(3, 4, zero_out=[1], zero_in=[0]),
    "grouped": lambda: stored(4, 6, groups=2, zero_out=[0, 1, 2], zero_in=[2]),
    "vector": lambda: vector(1, 0, 3),
    "composed": lambda: composed(stored(4, 3, zero_out=[2]), stored(2, 4, zero_out=[0], zero_in=[1])),
    "composed through zeros": lambda: composed(
        stored(4, 3, zero_in=[0, 1]), stored(2, 4, groups=2, zero_out=[2, 3])
    ),
    "depthwise": lambda: composed(stored(4, 4, groups=4, zero_out=[3]), stored(2, 4, zero_out=[0])),
    "total": total,
    "scaled": scaled,
    "rows": lambda: rows(1, 3),
    "rows of two groups": lambda: rows(2, 5),
    "columns": lambda: columns(0, 2),
    "columns of two groups": lambda: columns(1, 4),
    "stacked": stacked,
    "picked": lambda: picked(np.array([2, 0, 2, 1]), vector(1, 0, 1, 1), 4),
    "rows at": rows_at,
    "columns at": columns_at,
    "in layout": in_layout,
    "cancelling": lambda: cancelling(factors_of_inputs=False),
    "cancelling, with factors of inputs": lambda: cancelling(factors_of_inputs=True),
    "of which a part cancels": lambda: Total(
        stored(3, 4).geometry, (cancelling(factors_of_inputs=False), stored(3, 4, zero_out=[0]))
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_zero_channels_are_those_of_the_numbers(name: str) -> None:
    kernel = KERNELS[name]()
    g = kernel.geometry
    weight = np.abs(kernel.rows(0, g.c_out)).reshape(*g.weight_shape[:2], -1).sum(axis=2)
    columns = np.zeros(g.c_in)
    np.add.at(columns, input_channels(g, 0, g.c_out), weight)
    zero_rows, zero_columns = zero_channels(kernel)
    np.testing.assert_array_equal(zero_rows, weight.sum(axis=1) == 0)
    np.testing.assert_array_equal(zero_columns, columns == 0)


def test_of_unknown_kernels_nothing_is_zero() -> None:
    g = Geometry.conv(2, 3, (1,))
    computed = Stored(g, lambda: np.zeros(g.weight_shape), is_computed=True)
    assert all(mask.all() for mask in zero_channels(computed))  # what nodes compute is looked at
    assert reached.dispatch(object)(computed, np.array([False, True]), False).all()


@pytest.mark.parametrize("name", KERNELS)
def test_where_no_element_is_small_no_row_is(name: str) -> None:
    kernel = KERNELS[name]()
    rows = largest_rows(kernel)
    for limit in (1e-30, 0.6, 100.0):
        assert has_rows_below(kernel, limit) >= (rows is not None and bool((rows < limit).any()))


def test_a_weight_that_was_looked_at_is_not_read_again() -> None:
    def read() -> NDArray[np.float64]:
        raise AssertionError("read again")

    g = Geometry.conv(2, 3, (1,))
    looked_at = Stored(g, read, least=0.5)
    kernel = Scaled(g, looked_at, np.array([1.0, 0.1, 2.0]))
    assert not any(mask.any() for mask in zero_channels(kernel))
    assert not has_rows_below(kernel, 0.05)
    assert has_rows_below(kernel, 0.06)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_through_a_weight_without_zeros_each_group_reaches_itself(groups: int, backwards: bool) -> None:
    g = Geometry.conv(4, 8, (3, 3), groups=groups)
    weight = np.ones(g.weight_shape)
    for start in np.eye(8 if backwards else 4, dtype=np.bool_):
        expected = reached(Stored(g, lambda: weight), start, backwards)
        np.testing.assert_array_equal(
            reached(Stored(g, lambda: weight, least=1.0), start, backwards), expected
        )
