"""onnx's shape inference, kept from what ends the process.

Behind a window that is larger than its input, it finds negative sizes: for a waveform whose length is not known, too,
where a Conv of 400 samples meets the size that is assumed. A Slice of such a tensor fails an assertion in C++. So the
Slices behind windows are left out at first, and shown only where what they read has no negative size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnx_repfuse.graph.enforced import attribute_of
from onnx_repfuse.graph.operators import operator_of_proto

__all__ = ["GuardedModel"]


@dataclass(frozen=True, eq=False)
class GuardedModel:
    """A model whose shapes are inferred; nodes are in topological order."""

    model: onnx.ModelProto

    def infer_shapes(self, *, data_prop: bool) -> onnx.GraphProto:
        """The graph with all types that inference finds.

        Raises:
            onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError: a node makes no sense.
        """
        return onnx.shape_inference.infer_shapes(self._shown, data_prop=data_prop).graph

    @cached_property
    def _shown(self) -> onnx.ModelProto:
        """The model without the Slices that inference must not see."""
        levels = _slices_behind_windows(self.model.graph.node)
        hidden = {place for level in levels for place in level}
        for level in levels:
            read = {place: self.model.graph.node[place].input[0] for place in level}
            sizes = _inferred_sizes(_without(self.model, hidden), set(read.values()))
            hidden -= {place for place, name in read.items() if min(sizes.get(name, ()), default=0) >= 0}
        return _without(self.model, hidden) if hidden else self.model


def _slices_behind_windows(nodes: Sequence[onnx.NodeProto]) -> list[list[int]]:
    """The places of the Slices that read what a window may have made too small, in order of dependence."""
    if not any(node.op_type == "Slice" for node in nodes):
        return []
    # of each tensor: how many such Slices are before it in a row, and whether a window is behind the last of them
    states: dict[str, tuple[int, bool]] = {}
    levels: list[list[int]] = []
    for place, node in enumerate(nodes):
        depth, is_behind = max((states.get(name, (0, False)) for name in node.input), default=(0, False))
        if node.op_type == "Slice" and is_behind:
            levels += [[]] * (depth + 1 - len(levels))
            levels[depth] = [*levels[depth], place]
            depth, is_behind = depth + 1, False
        is_behind |= _may_shrink(node)
        has_window_before = depth > 0 or is_behind
        if has_window_before and operator_of_proto(node).of_shape is None:
            states.update(dict.fromkeys(node.output, (depth, is_behind)))
    return levels


def _may_shrink(node: onnx.NodeProto) -> bool:
    """Whether a node may write fewer positions than its stride says: a Pad that crops, a window beyond its pads."""
    facts = operator_of_proto(node)
    if node.op_type == "Pad" or facts.scatters:
        return True
    return facts.has_window and _reaches_beyond_pads(node)


def _reaches_beyond_pads(node: onnx.NodeProto) -> bool:
    """Whether the window of a node may be longer than one position and its pads."""
    if attribute_of(node, "auto_pad").s.startswith(b"SAME"):
        return False
    kernel, pads = (list(attribute_of(node, name).ints) for name in ("kernel_shape", "pads"))
    if not kernel:  # a Conv may leave it to the shape of its weight
        return True
    steps = list(attribute_of(node, "dilations").ints) or [1] * len(kernel)
    if len(steps) != len(kernel) or len(pads) != 2 * len(kernel):
        return any(taps > 1 for taps in kernel)
    sides = zip(kernel, steps, pads, pads[len(kernel) :], strict=False)
    return any(step * (taps - 1) > begin + end for taps, step, begin, end in sides)


def _without(model: onnx.ModelProto, hidden: Collection[int]) -> onnx.ModelProto:
    """A model without the nodes at some places."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(node for place, node in enumerate(model.graph.node) if place not in hidden)
    return copy


def _inferred_sizes(model: onnx.ModelProto, names: Set[str]) -> Mapping[str, Sequence[int]]:
    """The sizes of tensors, 0 where they are not known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [value for value in (*graph.value_info, *graph.input, *graph.output) if value.name in names]
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
