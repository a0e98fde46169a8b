"""Weights that differ from position to position, as those of a product with a map: shown by signal there alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.folds.whole_axes import WholeAxes
from onnx_repfuse.verifier.session import input_at

__all__ = ["weighs_elements", "weighs_positions"]

Shapes = Mapping[str, tuple[int, ...]]
_PER_CHANNEL = {"BatchNormalization", "Conv", "ConvTranspose"}  # by every input but the first
# Behind these, an axis that is as long as that of the channels may be one of positions: tokens of a window, say.
_REARRANGES = {"DepthToSpace", "Flatten", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"}
_SUMS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_ADDS = {"Add", "Sub", "Sum"}  # shown where there is no signal, too, if nothing but constants is added


def weighs_positions(model: onnx.ModelProto, channels: Iterable[int], positions: Container[int]) -> bool:
    """Whether positions of the sources may have weights of their own; by the sizes, so some are taken for such.

    Args:
        model: one side of a fold, which reads sources of fixed sizes.
        channels: how many channels they have.
        positions: the sizes of their other axes, and what these are together.
    """
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_type in FLOAT_FORMATS}
    channels = {*channels, *_counts_of_channels(model, weights)}
    if any(node.op_type in _REARRANGES for node in model.graph.node):
        channels = set()
    has_one_source = sum(1 for value in model.graph.input if value.name not in weights) == 1
    for node in model.graph.node:
        if has_one_source and node.op_type in _ADDS:
            continue
        sizes = {size for size in _sizes_that_meet_signal(node, weights) if size > 1}
        if not sizes <= channels or any(size in positions for size in sizes):
            return True
    return False


def weighs_elements(model: onnx.ModelProto) -> bool:
    """Whether a sum may give each channel of each position a weight of its own, as a product behind a Flatten does.

    A channel that is small at one position, beside others that are not, then hides a weight that nothing else shows.
    Not so where views have left the axis that is summed whole: then each weight meets all places of the other axes.
    """
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_type in FLOAT_FORMATS}
    whole = WholeAxes(model)
    are_moved = have_factors = False  # what is read: elements that were rearranged, or have a factor each
    for node in model.graph.node:
        axes = _most_axes(node, weights)
        if node.op_type not in _SUMS:
            # behind a Flatten, a vector has a factor for each element, too
            have_factors = have_factors or axes > 1 or (are_moved and axes == 1 and node.op_type not in _ADDS)
        elif have_factors or _is_batched(node, axes) or (are_moved and axes and not whole.is_summed(node)):
            return True
        are_moved = are_moved or node.op_type in _REARRANGES
        whole.follow(node)
    return False


def _most_axes(node: onnx.NodeProto, weights: Shapes) -> int:
    """How many axes with more than one index a node's weights have."""
    return max((sum(size > 1 for size in weights[name]) for name in node.input if name in weights), default=0)


def _is_batched(node: onnx.NodeProto, axes: int) -> bool:
    """Whether it is a product with several matrices."""
    return node.op_type in ("Gemm", "MatMul") and axes > 2


def _sizes_that_meet_signal(node: onnx.NodeProto, weights: Shapes) -> Iterator[int]:
    """The sizes of axes of a node's weights, each of channels or of positions."""
    for place, name in enumerate(node.input):
        shape = weights.get(name)
        if shape is None or (place and node.op_type in _PER_CHANNEL):
            continue
        if node.op_type in ("Gemm", "MatMul") and len(shape) > 1:
            yield from shape[:-2]
            yield shape[-2] if place else shape[-1]
        else:
            yield from shape


def _counts_of_channels(model: onnx.ModelProto, weights: Shapes) -> Iterator[int]:
    """How many channels the convolutions and products make."""
    for node in model.graph.node:
        shape = weights.get(input_at(node, 1), ())
        if len(shape) > 1 and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            yield from {"Conv": shape[:1], "MatMul": shape[-1:]}.get(node.op_type, shape[:2])
