"""The dims of tensors, as far as they follow from the dims of others: two tensors may be proved to have equal shapes
although no size is known (`extents`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.extents import (
    Dim,
    Dims,
    Extent,
    behind,
    extents_of,
    plus,
    quotient,
    tensors_of,
    times,
    value,
)
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.index_maps import END_OF_AXIS
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.graph.size_lists import SizeList, constant_list, size_list
from onnx_repfuse.graph.windows import window_of

__all__ = ["equal_shapes", "known_dims", "known_list", "note_sizes"]


def known_dims(scope: Scope) -> dict[str, Dims]:
    """The dims of every tensor of a scope of which at least the rank is known, found once for the nodes it has."""
    if not scope.dims:  # asked for the first time
        scope.dims, scope.size_lists = _found(scope)
    return scope.dims


def note_sizes(scope: Scope) -> None:
    """Note what inference of types did not find: sizes that are numbers, as what a -1 stands for; and assumed sizes."""
    if all(static(shape) is not None for _, shape in scope.types.values()):
        return
    for name, dims in known_dims(scope).items():
        data_type, shape = scope.types.get(name, (0, None))
        if shape is None or len(shape) != len(dims):
            continue
        if None in shape:
            numbers = [dim if isinstance(dim, int) and dim > 0 else None for dim in dims]
            pairs = zip(shape, numbers, strict=True)
            scope.types[name] = data_type, tuple(dim if size is None else size for size, dim in pairs)
        if name not in scope.assumed:
            _assume(scope, name, dims)


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
    return None if sizes is None or not all(isinstance(size, int) for size in sizes) else list(sizes)


def equal_shapes(scope: Scope, names: Sequence[str]) -> bool:
    """Whether tensors have the same shape, whatever that is."""
    found = known_dims(scope)
    first, *others = [found.get(name) for name in names]
    return first is not None and all(other == first for other in others)


def _found(scope: Scope) -> tuple[dict[str, Dims], dict[str, SizeList]]:
    """The dims of all tensors, and the lists that are computed from them."""
    found: dict[str, Dims] = {}
    lists: dict[str, SizeList] = {}
    for node in scope.nodes:
        for tensor in node.inputs:  # what no node of this scope makes
            _note(found, scope, tensor.name, None)
        dims = _dims_of(found, lists, scope, node) if len(node.outputs) == 1 else None
        for tensor in node.outputs:
            if node.op == "Split" and node.inputs[0].name in found:
                dims = _except(found[node.inputs[0].name], [node.attrs.get("axis", 0)], tensor.name)
            _note(found, scope, tensor.name, dims)
        sizes = size_list(scope, node, lists, found) if len(node.outputs) == 1 else None
        if sizes is not None:
            lists[node.outputs[0].name] = sizes
    return found, lists


def _note(found: dict[str, Dims], scope: Scope, name: str, dims: Dims | None) -> None:
    """Note the dims of a tensor: numbers where they are proved, else those given, else its own."""
    proved = scope.shape(name)
    if not name or name in found or (proved is None and dims is None):
        return
    if proved is None or (dims is not None and len(dims) != len(proved)):
        proved = (None,) * len(dims or ())
    given = dims or tuple(Extent(name, axis) for axis in range(len(proved)))
    found[name] = tuple(other if dim is None else dim for dim, other in zip(proved, given, strict=True))


def _dims_of(found: dict[str, Dims], lists: dict[str, SizeList], scope: Scope, node: gs.Node) -> Dims | None:
    """The dims of a node's first output, where they follow from those of its inputs."""
    first = found.get(node.inputs[0].name) if node.inputs else None
    if first is None:
        return None
    if operator(node).normalizes or node.op in _KEEP_SHAPE:
        return first
    if operator(node).elementwise:
        return _broadcast(found, scope, node)
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(found, lists, scope, node)
    if node.op == "ReduceMean" and node.attrs.get("keepdims", 1):
        axes = _axes(scope, node)
        return None if axes is None else _except(first, axes, node.outputs[0].name)
    if node.op.startswith("Global"):  # pools of all positions
        return (*first[:2], *(1,) * len(first[2:]))
    return _behind_window(scope, node, first)


def _behind_window(scope: Scope, node: gs.Node, first: Dims) -> Dims | None:
    window = window_of(scope, node)
    if window is None or len(window.strides) != len(first) - 2:
        return None
    channels = first[1]
    if node.op == "Conv":
        weight = static(scope.shape(optional_input(node, 1)))
        channels = weight[0] if weight else Extent(node.outputs[0].name, 1)
    axes = zip(first[2:], window.strides, window.slack, strict=True)
    output = node.outputs[0].name
    space: list[Dim] = []
    for place, (dim, stride, slack) in enumerate(axes, 2):
        size = behind(dim, stride, slack)
        space.append(Extent(output, place) if size is None else size)
    return first[0], channels, *space


def _broadcast(found: dict[str, Dims], scope: Scope, node: gs.Node) -> Dims | None:
    """Of an element-wise operator: where not even equal, only a number above 1 prevails."""
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return None
    operands = list(_operands(found, scope, node))
    if None in operands:
        return None
    rank = max(len(dims) for dims in operands if dims is not None)
    padded = [(1,) * (rank - len(dims)) + dims for dims in operands if dims is not None]
    output = node.outputs[0].name
    return tuple(
        _joint(set(dims), Extent(output, axis)) for axis, dims in enumerate(zip(*padded, strict=True))
    )


def _operands(found: dict[str, Dims], scope: Scope, node: gs.Node) -> Iterator[Dims | None]:
    for tensor in node.inputs:
        if tensor.name:
            yield found.get(tensor.name)


def _joint(dims: set[Dim], own: Extent) -> Dim:
    """The size that operands of these sizes broadcast to; `own`, if that is not certain."""
    larger = dims - {1}
    if len(larger) <= 1:
        return larger.pop() if larger else 1
    return max((dim for dim in larger if isinstance(dim, int)), default=own)


def _except(first: Dims, changed: Sequence[int], output: str) -> Dims | None:
    """The same sizes, but along some axes, where nothing is known; None if these make no sense."""
    rank = len(first)
    if not all(-rank <= axis < rank for axis in changed):
        return None
    places = {axis % rank for axis in changed}
    return tuple(Extent(output, axis) if axis in places else dim for axis, dim in enumerate(first))


def _side_by_side(
    found: dict[str, Dims], _lists: dict[str, SizeList], _scope: Scope, node: gs.Node
) -> Dims | None:
    """Of a Concat: where all operands agree, along the other axes.

    Where they do not, one of them may be empty: ONNX Runtime leaves it out then, whatever its other sizes.
    """
    parts = [found.get(tensor.name) for tensor in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len(set(map(len, known))) != 1:
        return None
    differing = [axis for axis, dims in enumerate(zip(*known, strict=True)) if len(set(dims)) > 1]
    axis = node.attrs.get("axis", 1)
    result = _except(known[0], [*differing, axis], node.outputs[0].name)
    numbers = [part[axis] for part in known] if result is not None else []
    total = sum(size for size in numbers if isinstance(size, int))
    if result is None or not all(isinstance(size, int) for size in numbers):
        return result
    place = axis % len(result)
    return (*result[:place], total, *result[place + 1 :])


def _axes(scope: Scope, node: gs.Node) -> list[int] | None:
    """The axes that a ReduceMean is given, None if they are not known: without any, it is all."""
    if operator(node).uses_attributes(scope.opset):
        return list(node.attrs.get("axes") or ()) or None
    const = scope.const(optional_input(node, 1))
    values = None if const is None else const.computed()
    return None if values is None else [int(axis) for axis in np.asarray(values).ravel()] or None


def _transposed(
    found: dict[str, Dims], _lists: dict[str, SizeList], _scope: Scope, node: gs.Node
) -> Dims | None:
    first = found[node.inputs[0].name]
    order = permutation(node, len(first))
    return tuple(first[axis] for axis in order) if sorted(order) == list(range(len(first))) else None


def _reshaped(found: dict[str, Dims], lists: dict[str, SizeList], scope: Scope, node: gs.Node) -> Dims | None:
    """Of a Reshape: the sizes it lists; the one that is left follows from the number of elements, which stays."""
    first, name = found[node.inputs[0].name], optional_input(node, 1)
    target: Sequence[Dim | None] | None = lists.get(name) or constant_list(scope, name)
    if not target:
        return None
    copies = not node.attrs.get("allowzero")
    known = set(tensors_of(times(first)))
    sizes: list[Dim | None] = []
    for place, size in enumerate(target):
        if size == 0 and copies:
            sizes.append(first[place] if place < len(first) else None)
        elif size is None or size == -1 or (copies and not known.issuperset(tensors_of(size))):
            sizes.append(None)  # the size of another tensor could be 0, which copies one of this
        else:
            sizes.append(size)
    given = [size for size in sizes if size is not None]
    rest = quotient(times(first), times(given)) if len(given) == len(sizes) - 1 else None
    output = node.outputs[0].name
    own = [Extent(output, place) if rest is None else rest for place in range(len(sizes))]
    return tuple(own[place] if size is None else size for place, size in enumerate(sizes))


def _multiplied(
    found: dict[str, Dims], _lists: dict[str, SizeList], _scope: Scope, node: gs.Node
) -> Dims | None:
    """Of a MatMul of tensors of rank 2 or more: the axes before the last two broadcast."""
    a, b = (found.get(tensor.name) or () for tensor in node.inputs)
    if min(len(a), len(b)) < 2:
        return None
    output, rank = node.outputs[0].name, max(len(a), len(b))
    padded = [(1,) * (rank - len(dims)) + dims for dims in (a, b)]
    batch = [_joint(set(dims), Extent(output, axis)) for axis, dims in enumerate(zip(*padded, strict=True))]
    return (*batch[:-2], a[-2], b[-1])


def _sliced(found: dict[str, Dims], lists: dict[str, SizeList], scope: Scope, node: gs.Node) -> Dims | None:
    """Of a Slice by lists: the axes of which it takes everything, or whose size is known, as are the ends."""
    first, output = found[node.inputs[0].name], node.outputs[0].name
    if operator(node).uses_attributes(scope.opset):
        axes = list(node.attrs.get("axes") or ())
        return _except(first, axes, output) if axes else None
    names = [optional_input(node, place) for place in range(1, 5)]
    starts, ends, places, steps = (lists.get(name) or constant_list(scope, name) or () for name in names)
    count = len(starts)
    places = places if names[2] else tuple(range(count))
    steps = steps if names[3] else (1,) * count
    if not count or {len(ends), len(places), len(steps)} != {count}:
        return None
    dims = list(first)
    for start, end, axis, step in zip(starts, ends, places, steps, strict=True):
        if not isinstance(axis, int) or not -len(first) <= axis < len(first):
            return None
        place = axis % len(first)
        size = _kept(first[place], start, end, step)
        dims[place] = Extent(output, place) if size is None else size
    return tuple(dims)


def _kept(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many positions of an axis a Slice keeps; None if that is not known."""
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)) or step < 1:
        return None
    if isinstance(size, int):
        return len(range(size)[start:end:step])
    return behind(size, step, -1 - start) if 0 <= start < step and end >= END_OF_AXIS else None


def _resized(found: dict[str, Dims], lists: dict[str, SizeList], scope: Scope, node: gs.Node) -> Dims | None:
    """Of a Resize that lists sizes: these."""
    first, name = found[node.inputs[0].name], optional_input(node, 3)
    sizes: Sequence[Dim | None] | None = lists.get(name) or constant_list(scope, name)
    axes = [axis % len(first) for axis in node.attrs.get("axes") or range(len(first))]
    is_stretched = node.attrs.get("keep_aspect_ratio_policy", "stretch") in ("stretch", b"stretch")
    if not sizes or len(sizes) != len(axes) or not is_stretched:
        return None
    given = dict(zip(axes, sizes, strict=True))
    output = node.outputs[0].name
    dims = [given.get(axis, dim) for axis, dim in enumerate(first)]
    return tuple(Extent(output, axis) if dim is None else dim for axis, dim in enumerate(dims))


_KEEP_SHAPE = frozenset(
    (
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LogSoftmax",
        "RMSNormalization",
        "Softmax",
    )
)


def _padded(found: dict[str, Dims], lists: dict[str, SizeList], scope: Scope, node: gs.Node) -> Dims | None:
    """Of a Pad of all axes; a tensor that is cropped may have nothing left."""
    first = found[node.inputs[0].name]
    name = optional_input(node, 1)
    pads = constant_list(scope, name) if name else node.attrs.get("pads", node.attrs.get("paddings"))
    if pads is None or len(pads) != 2 * len(first) or min(pads, default=0) < 0 or optional_input(node, 3):
        return None
    added = zip(first, pads[: len(first)], pads[len(first) :], strict=True)
    sizes = [plus(dim, begin + end) if begin + end else dim for dim, begin, end in added]
    output = node.outputs[0].name
    return tuple(Extent(output, axis) if size is None else size for axis, size in enumerate(sizes))


_Rule = Callable[[dict[str, Dims], dict[str, SizeList], Scope, gs.Node], Dims | None]
_RULES: dict[str, _Rule] = {
    "Concat": _side_by_side,
    "MatMul": _multiplied,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Resize": _resized,
    "Slice": _sliced,
    "Transpose": _transposed,
}
