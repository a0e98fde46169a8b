"""Operators that sum over channels by a weight: Conv, ConvTranspose, Gemm, MatMul, and those in integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import ChannelLayout, ChannelRule, Demand, Layouts
from onnx_repfuse.graph.operators.facts import (
    Doubt,
    Layout,
    Operator,
    SizeCase,
    WeightChannels,
)
from onnx_repfuse.graph.scope import Scope, optional_input, static

__all__ = ["CONV_MATMUL", "is_one_matrix"]


# What a weight says: (channels read, channels written).


def _groups(node: gs.Node) -> int:
    groups: int = node.attrs.get("group", 1)
    return groups


def _conv_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    # (out, in / groups, *kernel)
    return shape[1] * _groups(node), shape[0]


def _transposed_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    # (in, out / groups, *kernel)
    return shape[0], shape[1] * _groups(node)


def _gemm_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    # (in, out), or with transB (out, in)
    return (shape[1], shape[0]) if node.attrs.get("transB", 0) else (shape[0], shape[1])


def _matmul_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    # (in, out), maybe with axes of 1 before them
    return shape[-2], shape[-1]


# The shape of the weight, constant or not, tells the layouts of input and output.


def _weight_rule(weight: WeightChannels, layout_of: Callable[[Sequence[int]], Layout | None]) -> ChannelRule:
    """`layout_of` takes the shape of a weight, and is None for what cannot be one."""

    def around(layouts: Layouts, node: gs.Node) -> tuple[ChannelLayout, ChannelLayout] | None:
        name = optional_input(node, 1)
        shape, data_type = static(layouts.scope.shape(name)) or (), layouts.scope.data_type(name)
        layout = layout_of(shape)
        if layout is None or not data_type:
            return None
        read, written = weight(node, shape)
        return ChannelLayout(*layout, read, data_type), ChannelLayout(*layout, written, data_type)

    def forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
        both = around(layouts, node)
        return None if both is None else both[1]

    def backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
        both = around(layouts, node)
        return () if both is None else [(node.inputs[0].name, both[0])]

    return ChannelRule(forwards, backwards)


def _gemm_rule() -> ChannelRule:
    """As `_weight_rule`; transA reads the channels from the rows of its input, where no layout has them."""
    rule = _weight_rule(_gemm_channels, _matrix_layout)

    def backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
        return () if node.attrs.get("transA", 0) else rule.backwards(layouts, node)

    return ChannelRule(rule.forwards, backwards)


def _matmul_rule() -> ChannelRule:
    """As `_weight_rule`; a tensor with axes of 1 before it may be a batch of one, not a matrix."""
    rule = _weight_rule(_matmul_channels, _matrix_layout)

    def is_batch(layouts: Layouts, node: gs.Node) -> bool:
        name = optional_input(node, 1)
        return layouts.scope.const(name) is None and len(layouts.scope.shape(name) or ()) > 2

    def forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
        return None if is_batch(layouts, node) else rule.forwards(layouts, node)

    def backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
        return () if is_batch(layouts, node) else rule.backwards(layouts, node)

    return ChannelRule(forwards, backwards)


def _conv_layout(shape: Sequence[int]) -> Layout | None:
    # Conv, even of one axis, has a weight of 3 dims or more: (out, in / groups, *kernel)
    return (1, len(shape) - 2) if len(shape) >= 3 else None


def _matrix_layout(shape: Sequence[int]) -> Layout | None:
    # a product of batches of matrices has no channels: each batch has a weight of its own
    return (-1, 0) if is_one_matrix(shape) else None


def is_one_matrix(shape: Sequence[int]) -> bool:
    """Whether a weight of this shape is a matrix: (in, out), maybe with axes of 1 before them."""
    return len(shape) >= 2 and all(size == 1 for size in shape[:-2])


# Multiply-adds, at assumed sizes.


def _conv_macs(scope: Scope, node: gs.Node) -> int | None:
    # each output element sums over (in / groups, *kernel)
    return _times(scope.elements(node.outputs[0].name), _weight_shape(scope, node))


def _conv_transpose_macs(scope: Scope, node: gs.Node) -> int | None:
    # each input element is added to (out / groups, *kernel)
    return _times(scope.elements(node.inputs[0].name), _weight_shape(scope, node))


def _quantized_conv_macs(scope: Scope, node: gs.Node) -> int | None:
    # x, its scale and zero point, then the weight
    return _times(scope.elements(node.outputs[0].name), _weight_shape(scope, node, 3))


def _weight_shape(scope: Scope, node: gs.Node, place: int = 1) -> tuple[int, ...] | None:
    return static(scope.shape(optional_input(node, place)))


def _times(elements: int | None, weight: tuple[int, ...] | None) -> int | None:
    return None if elements is None or weight is None else elements * prod(weight[1:])


def _gemm_macs(scope: Scope, node: gs.Node) -> int | None:
    weight, out = _weight_shape(scope, node), scope.elements(node.outputs[0].name)
    return None if weight is None or out is None else out * _gemm_channels(node, weight)[0]


def _matmul_macs(scope: Scope, node: gs.Node) -> int | None:
    """As long as the sums are the weight's rows; where that is a tensor of unknown shape, the data's last axis.

    Not that axis first: behind a Flatten its assumed size is no fact, and a Gemm counts by its weight, too.
    """
    weight = scope.shape(optional_input(node, 3 if node.op == "QLinearMatMul" else 1)) or ()
    data, out = scope.assumed.get(node.inputs[0].name, ()), scope.elements(node.outputs[0].name)
    length = (weight[-2] if len(weight) > 1 else None) or (data[-1] if data else None)
    return None if length is None or out is None else out * length


def _conv_transpose_doubts(case: SizeCase) -> Sequence[int] | Doubt:
    """`auto_pad` with `pads` or `output_padding`; and an `output_shape` that ONNX Runtime rejects, as too small."""
    wanted = case.attrs.get("output_shape", ())
    if any(out < (size or 0) for out, size in zip(wanted, case.shape[2:], strict=False)):
        return Doubt.SHAPE
    if case.pads_twice:
        return case.space
    lengthens = any(case.attrs.get("output_padding", ()))
    return case.space if case.pads_automatically and lengthens else ()


def _conv_doubts(case: SizeCase) -> Sequence[int]:
    """`auto_pad` with `pads`: onnx follows the second, ONNX Runtime the first."""
    return case.space if case.pads_twice else ()


CONV_MATMUL = (
    Operator(
        "Conv",
        stays_for_a_reason=True,
        channels=_weight_rule(_conv_channels, _conv_layout),
        weight=_conv_channels,
        multiply_adds=_conv_macs,
        has_window=True,
        shaped_by_shapes=True,
        doubts=_conv_doubts,
    ),
    Operator(
        "ConvTranspose",
        stays_for_a_reason=True,
        channels=_weight_rule(_transposed_channels, _conv_layout),
        weight=_transposed_channels,
        multiply_adds=_conv_transpose_macs,
        scatters=True,
        has_window=True,
        shaped_by_shapes=True,
        doubts=_conv_transpose_doubts,
    ),
    Operator(
        "Gemm",
        stays_for_a_reason=True,
        channels=_gemm_rule(),
        weight=_gemm_channels,
        multiply_adds=_gemm_macs,
        shaped_by_shapes=True,
    ),
    Operator(
        "MatMul",
        stays_for_a_reason=True,
        channels=_matmul_rule(),
        weight=_matmul_channels,
        multiply_adds=_matmul_macs,
        shaped_by_shapes=True,
    ),
    # In integers: counted, never folded.
    Operator("ConvInteger", multiply_adds=_conv_macs, is_quantized=True),
    Operator("QLinearConv", multiply_adds=_quantized_conv_macs, is_quantized=True),
    Operator("MatMulInteger", multiply_adds=_matmul_macs, is_quantized=True),
    Operator("QLinearMatMul", multiply_adds=_matmul_macs, is_quantized=True),
)
