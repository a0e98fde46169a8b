"""The dims of what a node writes, by those of what it reads and by the lists of sizes: a rule for each operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.extents import Dim, Dims, Extent, behind, plus, share, tensors_of, times
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NEGATIVE_AXES_SINCE, NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.index_maps import END_OF_AXIS, split_sizes
from onnx_repfuse.graph.operators.resize import resized_axes
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, all_known, input_names, optional_input, static
from onnx_repfuse.graph.size_lists import SizeList, constant_list, size_list
from onnx_repfuse.graph.windows import window_of

__all__ = ["FollowedDims"]


@dataclass(eq=False)
class FollowedDims:
    """The dims of all tensors of a scope, and the lists that are computed from them, found node by node."""

    scope: Scope
    found: dict[str, Dims] = field(default_factory=dict)
    lists: dict[str, SizeList] = field(default_factory=dict)

    def read(self) -> None:
        """Follow all nodes in their order."""
        for node in self.scope.nodes:
            for tensor in node.inputs:  # what no node of this scope makes
                self.note(tensor.name, None)
            dims = self.dims_of(node) if len(node.outputs) == 1 else None
            for number, tensor in enumerate(node.outputs):
                if node.op == "Split" and node.inputs[0].name in self.found:
                    dims = self.part(node, number)
                self.note(tensor.name, dims)
            sizes = size_list(self.scope, node, self.lists, self.found) if len(node.outputs) == 1 else None
            if sizes is not None:
                self.lists[node.outputs[0].name] = sizes

    def note(self, name: str, dims: Dims | None) -> None:
        """Note the dims of a tensor: numbers where they are proved, else those given, else its own."""
        if not name or name in self.found:
            return
        proved = self.scope.shape(name)
        if dims is None:
            if proved is not None:
                self.found[name] = _own(name, proved)
            return
        if proved is None or len(proved) != len(dims):
            self.found[name] = dims
            return
        pairs = zip(proved, dims, strict=True)
        self.found[name] = tuple(dim if size is None else size for size, dim in pairs)

    def first(self, node: gs.Node) -> Dims:
        """The dims of a node's first input, which are known."""
        return self.found[node.inputs[0].name]

    def sizes(self, node: gs.Node, place: int) -> SizeList:
        """The list that a node reads, computed from shapes or constant; () if there is none, or nothing is known."""
        name = optional_input(node, place)
        return self.lists.get(name) or tuple(constant_list(self.scope, name) or ())

    def dims_of(self, node: gs.Node) -> Dims | None:
        """The dims of a node's first output, where they follow from those of its inputs."""
        first = self.found.get(node.inputs[0].name) if node.inputs else None
        if first is None:
            return None
        if operator(node).normalizes or node.op in _KEEP_SHAPE:
            return first
        if operator(node).elementwise:
            return self.broadcast(node)
        rule = _RULES.get(node.op)
        return self.behind_window(node, first) if rule is None else rule(self, node)

    def behind_window(self, node: gs.Node, first: Dims) -> Dims | None:
        """Of a convolution or pool."""
        window = window_of(self.scope, node)
        # a kernel of another rank than the tensor's: the node does not run
        if window is None or len(window.strides) != len(first) - 2:
            return None
        channels: Dim | None = first[1]
        if node.op == "Conv":
            weight = static(self.scope.shape(optional_input(node, 1)))
            channels = weight[0] if weight else None
        axes = zip(first[2:], window.strides, window.slack, strict=True)
        space = [behind(dim, stride, slack) for dim, stride, slack in axes]
        return _own(node.outputs[0].name, (first[0], channels, *space))

    def broadcast(self, node: gs.Node) -> Dims | None:
        """Of an element-wise operator: where not even equal, only a number above 1 prevails."""
        if self.scope.opset < NUMPY_BROADCAST_SINCE:
            return None
        operands = all_known(self.found.get(name) for name in input_names(node))
        return None if operands is None else _broadcast(node.outputs[0].name, operands)

    def side_by_side(self, node: gs.Node) -> Dims | None:
        """Of a Concat: where all operands agree, along the other axes.

        Where they do not, one of them may be empty: ONNX Runtime leaves it out then, whatever its other sizes.
        """
        parts = all_known(self.found.get(tensor.name) for tensor in node.inputs)
        if parts is None or len(set(map(len, parts))) != 1:
            return None
        differing = [axis for axis, dims in enumerate(zip(*parts, strict=True)) if len(set(dims)) > 1]
        axis = node.attrs.get("axis", 1)  # required since opset 4
        result = _except(parts[0], [*differing, axis], node.outputs[0].name)
        if result is None:
            return None
        numbers = [size for part in parts if isinstance(size := part[axis], int)]
        if len(numbers) < len(parts):
            return result
        place = axis % len(result)
        return (*result[:place], sum(numbers), *result[place + 1 :])

    def transposed(self, node: gs.Node) -> Dims | None:
        """Of a Transpose: the same, in another order."""
        first = self.first(node)
        order = permutation(node, len(first))
        is_order = sorted(order) == list(range(len(first)))
        return tuple(first[axis] for axis in order) if is_order else None

    def reshaped(self, node: gs.Node) -> Dims | None:
        """Of a Reshape: the sizes it lists; the one that is left follows from the number of elements, which stays."""
        first, target = self.first(node), self.sizes(node, 1)
        if not target:
            return None
        sizes = _written_sizes(first, target, copies=not node.attrs.get("allowzero"))
        given = [size for size in sizes if size is not None]
        if len(given) == len(sizes) - 1:  # the elements stay, so the last one follows from the others
            rest = share(times(first), times(given))
            sizes = [rest if size is None else size for size in sizes]
        return _own(node.outputs[0].name, sizes)

    def flattened(self, node: gs.Node) -> Dims | None:
        """Of a Flatten: the axes before one as the rows, the others as the columns."""
        first, axis = self.first(node), node.attrs.get("axis", 1)
        if axis < 0 and self.scope.opset >= NEGATIVE_AXES_SINCE:
            axis += len(first)
        return (times(first[:axis]), times(first[axis:])) if 0 <= axis <= len(first) else None

    def part(self, node: gs.Node, number: int) -> Dims | None:
        """Of an output of a Split: along its axis a number, if that of the whole is known."""
        first, axis = self.first(node), node.attrs.get("axis", 0)
        dims = _except(first, [axis], node.outputs[number].name)
        if dims is None:
            return None
        whole = first[axis]
        sizes = split_sizes(self.scope, node, whole) if isinstance(whole, int) else None
        if sizes is None:
            return dims
        axis %= len(first)
        return (*first[:axis], sizes[number], *first[axis + 1 :])

    def named_axes(self, node: gs.Node) -> list[int] | None:
        """The axes of a Squeeze or Unsqueeze; runtimes read negative ones otherwise before opset 11 allowed them."""
        axes = _axes(self.scope, node)
        if axes is None or self.scope.opset >= NEGATIVE_AXES_SINCE:
            return axes
        return axes if min(axes) >= 0 else None

    def squeezed(self, node: gs.Node) -> Dims | None:
        """Of a Squeeze of axes that it names."""
        first, axes = self.first(node), self.named_axes(node)
        gone = {axis % len(first) for axis in axes or ()} if first else None
        return tuple(dim for axis, dim in enumerate(first) if axis not in gone) if gone else None

    def unsqueezed(self, node: gs.Node) -> Dims | None:
        """Of an Unsqueeze: a size of 1 for each new axis."""
        axes = self.named_axes(node)
        if axes is None:
            return None
        left = list(self.first(node))
        new = {axis % (len(left) + len(axes)) for axis in axes}
        return tuple(1 if axis in new else left.pop(0) for axis in range(len(left) + len(new)))

    def gathered(self, node: gs.Node) -> Dims | None:
        """Of a Gather by a constant: its shape in the place of the axis."""
        first, index = self.first(node), self.scope.const(optional_input(node, 1))
        axis = node.attrs.get("axis", 0)
        if index is None or not -len(first) <= axis < len(first):
            return None
        axis %= len(first)
        return (*first[:axis], *index.shape, *first[axis + 1 :])

    def multiplied(self, node: gs.Node) -> Dims | None:
        """Of a MatMul of tensors of rank 2 or more: the axes before the last two broadcast."""
        a, b = (self.found.get(tensor.name) or () for tensor in node.inputs)
        if (
            min(len(a), len(b)) < 2
        ):  # as in numpy, a vector gets an axis for the product, which the result has not
            return None
        return (*_broadcast(node.outputs[0].name, [a, b])[:-2], a[-2], b[-1])

    def sliced(self, node: gs.Node) -> Dims | None:
        """Of a Slice by lists: the axes of which it takes everything, or whose size is known, as are the ends."""
        first, output = self.first(node), node.outputs[0].name
        if operator(node).uses_attributes(self.scope.opset):
            axes = _axes(self.scope, node)
            return None if axes is None else _except(first, axes, output)
        cuts = self.cuts(node)
        dims: list[Dim | None] = list(first)
        for start, end, axis, step in cuts:
            if not isinstance(axis, int) or not -len(first) <= axis < len(first):
                return None
            dims[axis] = _kept(dims[axis], start, end, step)
        return _own(output, dims) if cuts else None

    def cuts(self, node: gs.Node) -> list[tuple[Dim | None, ...]]:
        """Start, end, axis and step of each axis that a Slice names; none where its lists are not known."""
        starts, ends, axes, steps = (self.sizes(node, place) for place in range(1, 5))
        if not optional_input(node, 3):  # left out, they are the first axes
            axes = tuple(range(len(starts)))
        if not optional_input(node, 4):
            steps = (1,) * len(starts)
        if {len(ends), len(axes), len(steps)} != {len(starts)}:
            return []
        return list(zip(starts, ends, axes, steps, strict=True))

    def averaged(self, node: gs.Node) -> Dims | None:
        """Of a ReduceMean that keeps the axes along which it takes the mean."""
        axes = _axes(self.scope, node) if node.attrs.get("keepdims", 1) else None
        return None if axes is None else _except(self.first(node), axes, node.outputs[0].name)

    def pooled(self, node: gs.Node) -> Dims | None:
        """Of a pool of all positions."""
        first = self.first(node)
        return (*first[:2], *(1,) * len(first[2:]))

    def resized(self, node: gs.Node) -> Dims | None:
        """Of a Resize that lists sizes: these."""
        first, sizes = self.first(node), self.sizes(node, 3)
        axes = resized_axes(node, len(first))
        is_stretched = node.attrs.get("keep_aspect_ratio_policy", "stretch") in ("stretch", b"stretch")
        if not is_stretched:
            return None  # of the sizes that are listed, one is a limit
        if not sizes or len(sizes) != len(axes):
            return None
        given = dict(zip(axes, sizes, strict=True))
        return _own(node.outputs[0].name, [given.get(axis, dim) for axis, dim in enumerate(first)])

    def padded(self, node: gs.Node) -> Dims | None:
        """Of a Pad of all axes; a tensor that is cropped may have nothing left."""
        first, name = self.first(node), optional_input(node, 1)
        has_axes = bool(optional_input(node, 3))  # opset 18
        listed = node.attrs.get("pads", node.attrs.get("paddings"))  # called paddings in opset 1
        pads = constant_list(self.scope, name) if name else listed
        if has_axes or pads is None or len(pads) != 2 * len(first):
            return None
        if min(pads, default=0) < 0:  # it crops
            return None
        added = zip(first, pads[: len(first)], pads[len(first) :], strict=True)
        # an axis that is not padded keeps its size also where that is a product, to which no number can be added
        sizes = [plus(dim, begin + end) if begin + end else dim for dim, begin, end in added]
        return _own(node.outputs[0].name, sizes)


def _own(output: str, sizes: Iterable[Dim | None]) -> Dims:
    """Dims of a tensor: where a size does not follow from others, it is its own."""
    return tuple(Extent(output, axis) if size is None else size for axis, size in enumerate(sizes))


def _broadcast(output: str, operands: Sequence[Dims]) -> Dims:
    """The dims that operands broadcast to."""
    rank = max(map(len, operands))
    padded = [(1,) * (rank - len(dims)) + dims for dims in operands]
    return _own(output, [_joint(set(dims)) for dims in zip(*padded, strict=True)])


def _joint(dims: set[Dim]) -> Dim | None:
    """The size that operands of these sizes broadcast to; None if that is not certain."""
    larger = dims - {1}
    if len(larger) <= 1:
        return larger.pop() if larger else 1
    # a size that is not known may be 1 and give way to a number; two that are not known may each be
    return max((dim for dim in larger if isinstance(dim, int)), default=None)


def _except(first: Dims, changed: Sequence[int], output: str) -> Dims | None:
    """The same sizes, but along some axes, where nothing is known; None if these make no sense."""
    rank = len(first)
    if not all(-rank <= axis < rank for axis in changed):
        return None
    places = {axis % rank for axis in changed}
    return _own(output, [None if axis in places else dim for axis, dim in enumerate(first)])


def _axes(scope: Scope, node: gs.Node) -> list[int] | None:
    """The axes that a node is given, None if they are not known: without any, a ReduceMean takes all."""
    if operator(node).uses_attributes(scope.opset):
        return list(node.attrs.get("axes") or ()) or None
    const = scope.const(optional_input(node, 1))
    return None if const is None else const.integers() or None


def _written_sizes(first: Dims, target: SizeList, *, copies: bool) -> list[Dim | None]:
    """The sizes that the target of a Reshape says, None where it leaves one open.

    Args:
        first: the dims of what is reshaped.
        copies: a 0 copies the size of the same axis. The size of another tensor might be 0, too, so it says nothing.
    """
    known = set(tensors_of(times(first)))
    sizes: list[Dim | None] = []
    for place, size in enumerate(target):
        if size is None or size == -1:
            sizes.append(None)
        elif size == 0 and copies:
            sizes.append(first[place] if place < len(first) else None)
        else:
            may_be_zero = not known.issuperset(tensors_of(size))
            sizes.append(None if copies and may_be_zero else size)
    return sizes


def _kept(size: Dim | None, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many positions of an axis a Slice keeps; None if that is not known."""
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
        return None
    if size is None or step < 1:
        return None
    if isinstance(size, int):
        return len(range(size)[start:end:step])
    # a window counts so from the step on only if it begins within the first step: a small tensor has nothing left
    takes_all_steps = 0 <= start < step and end >= END_OF_AXIS
    return behind(size, step, -1 - start) if takes_all_steps else None


_KEEP_SHAPE = {
    "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax", "RMSNormalization",
    "Softmax",
}  # fmt: skip
_RULES: dict[str, Callable[[FollowedDims, gs.Node], Dims | None]] = {
    "Concat": FollowedDims.side_by_side,
    "Flatten": FollowedDims.flattened,
    "Gather": FollowedDims.gathered,
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), FollowedDims.pooled),
    "MatMul": FollowedDims.multiplied,
    "Pad": FollowedDims.padded,
    "ReduceMean": FollowedDims.averaged,
    "ReduceSum": FollowedDims.averaged,
    "Reshape": FollowedDims.reshaped,
    "Resize": FollowedDims.resized,
    "Slice": FollowedDims.sliced,
    "Squeeze": FollowedDims.squeezed,
    "Transpose": FollowedDims.transposed,
    "Unsqueeze": FollowedDims.unsqueezed,
}
