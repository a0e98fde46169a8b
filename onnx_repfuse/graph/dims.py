"""The dims of tensors, as far as they follow from the dims of others: two tensors may be proved to have equal shapes
although no size is known (`extents`).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_repfuse.graph.dim_rules import FollowedDims
from onnx_repfuse.graph.extents import Dim, Dims, Extent, extents_of, value
from onnx_repfuse.graph.scope import Scope, Shape, sizes_are_known, static
from onnx_repfuse.graph.size_lists import constant_list

__all__ = ["dims_of", "equal_shapes", "known_dims", "known_list", "note_sizes"]


def known_dims(scope: Scope) -> dict[str, Dims]:
    """The dims of every tensor of a scope of which at least the rank is known, found once for the nodes it has."""
    if not scope.dims:  # asked for the first time
        following = FollowedDims(scope)
        following.read()
        scope.dims, scope.size_lists = following.found, following.lists
    return scope.dims


def dims_of(scope: Scope, name: str) -> Dims | None:
    """The dims of a tensor; None if not even the rank is known. Where all are numbers, no other tensor is looked at."""
    proved = static(scope.shape(name))
    return known_dims(scope).get(name) if proved is None else proved


def note_sizes(scope: Scope) -> None:
    """Note what inference of types did not find: ranks, and sizes that are numbers, as what a -1 stands for; and
    assumed sizes.
    """
    if sizes_are_known(scope.types):
        return
    for name, dims in known_dims(scope).items():
        data_type, shape = scope.types.get(name, (0, None))
        if shape is None:  # inference does not follow every list of sizes: its length is the rank
            shape = (None,) * len(dims)
        if len(shape) != len(dims):
            continue
        scope.types[name] = data_type, _with_numbers(shape, dims)
        if name not in scope.assumed:
            _assume(scope, name, dims)


def _with_numbers(shape: Shape, dims: Dims) -> Shape:
    """A shape, with the numbers among its dims in place of sizes that inference did not find."""
    if None not in shape:
        return shape
    return tuple(_positive(dim) if size is None else size for size, dim in zip(shape, dims, strict=True))


def _positive(dim: Dim) -> int | None:
    """A dim that is a number; None for others, and for the 0 of a tensor of which nothing is left."""
    return dim if isinstance(dim, int) and dim > 0 else None


def _assume(scope: Scope, name: str, dims: Dims) -> None:
    """Note the sizes of a tensor where those are assumed that they follow from."""
    assumed = scope.assumed

    def size(extent: Extent) -> int:
        return assumed[extent.tensor][extent.axis]

    extents = (one for dim in dims for one in extents_of(dim))
    if all(len(assumed.get(one.tensor, ())) > one.axis for one in extents):
        sizes = tuple(value(dim, size) for dim in dims)
        if min(sizes, default=1) > 0:
            assumed[name] = sizes


def known_list(scope: Scope, name: str) -> list[int] | None:
    """The numbers of a list of integers, constant or computed from sizes that are known; None if one is not known."""
    constant = constant_list(scope, name)
    if constant is not None:
        return constant
    known_dims(scope)
    sizes = scope.size_lists.get(name)
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        return None
    return list(sizes)


def equal_shapes(scope: Scope, names: Sequence[str]) -> bool:
    """Whether tensors have the same shape, whatever that is."""
    first, *others = [dims_of(scope, name) for name in names]
    return first is not None and all(other == first for other in others)
