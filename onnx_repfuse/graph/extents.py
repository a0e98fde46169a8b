"""Sizes that are not known, as far as they follow from others: numbers, extents, and products of these.

An extent is the size of an axis of a tensor behind a window, `floor((n + slack) / stride) + 1`. Windows compose: behind
another one it is (stride * s, slack + stride * (1 + S)). So do sums with a number and quotients by one, which is how
graphs compute the size behind a Conv. Two sizes that are equal as values are equal whatever the tensor's size is.

All of this is said of tensors that have positions: where a size is 0, nothing is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import gcd, prod
from typing import NamedTuple

__all__ = [
    "Dim",
    "Dims",
    "Extent",
    "Product",
    "behind",
    "extents_of",
    "over",
    "plus",
    "quotient",
    "share",
    "tensors_of",
    "times",
    "value",
]


class Extent(NamedTuple):
    """The size of an axis of a tensor, behind a window of that stride and slack."""

    tensor: str
    axis: int
    stride: int = 1
    slack: int = -1


class Product(NamedTuple):
    """A factor times extents, which are sorted: more than one, or a factor that is not 1."""

    factor: int
    extents: tuple[Extent, ...]


Dim = int | Extent | Product
Dims = tuple[Dim, ...]


def times(dims: Iterable[Dim]) -> Dim:
    """The product of sizes."""
    factor, extents = 1, list[Extent]()
    for dim in dims:
        own, more = _parts(dim)
        factor *= own
        extents += more
    if not extents or not factor:
        return factor
    return extents[0] if factor == len(extents) == 1 else Product(factor, tuple(sorted(extents)))


def quotient(dim: Dim, divisor: Dim) -> Dim | None:
    """A size divided by one that divides it whatever the tensors' sizes are; None if that is not certain."""
    (above, extents), (below, others) = _parts(dim), _parts(divisor)
    if not below or above % below:
        return None
    left = Counter(extents)
    left.subtract(others)
    if min(left.values(), default=0) < 0:
        return None
    return times((above // below, *left.elements()))


def share(dim: Dim, divisor: Dim) -> Dim | None:
    """A size divided by one that divides it wherever the graph runs: n in pairs are `floor(n / 2)`, as n is even."""
    exact = quotient(dim, divisor)
    if exact is not None:
        return exact
    (above, extents), (below, others) = _parts(dim), _parts(divisor)
    left = Counter(extents)
    left.subtract(others)
    common = gcd(above, below)
    rest = [*left.elements()]
    if not below or min(left.values(), default=0) < 0 or above != common or len(rest) != 1:
        return None
    return over(rest[0], below // common)


def behind(dim: Dim, stride: int, slack: int) -> Dim | None:
    """The number of positions of a window that slides over so many."""
    if isinstance(dim, int):
        return (dim + slack) // stride + 1
    if isinstance(dim, Product):
        return None
    return dim._replace(stride=dim.stride * stride, slack=dim.slack + dim.stride * (1 + slack))


def plus(dim: Dim, number: int) -> Dim | None:
    """A size plus a number, which may be negative: `floor((n + c*s + slack) / s) + 1` is that of an extent."""
    return behind(dim, 1, number - 1)


def over(dim: Dim, number: int) -> Dim | None:
    """`floor(size / number)`, None where a runtime may round otherwise: it cuts off, and -1/4 is 0 then."""
    if number < 1 or isinstance(dim, Product):
        return None
    if value(dim, lambda _: 1) < 0:
        return None
    return behind(dim, number, -number)


def extents_of(dim: Dim) -> tuple[Extent, ...]:
    """The extents it is a product of."""
    return _parts(dim)[1]


def tensors_of(dim: Dim) -> Iterator[str]:
    """The tensors whose sizes it depends on."""
    return (extent.tensor for extent in extents_of(dim))


def value(dim: Dim, size: Callable[[Extent], int]) -> int:
    """The number that a size is, where the axes of tensors have these sizes."""
    factor, extents = _parts(dim)
    return factor * prod((size(one) + one.slack) // one.stride + 1 for one in extents)


def _parts(dim: Dim) -> tuple[int, tuple[Extent, ...]]:
    if isinstance(dim, int):
        return dim, ()
    return (1, (dim,)) if isinstance(dim, Extent) else dim
