"""Operators that sum over channels by a weight: Conv, ConvTranspose, Gemm, MatMul."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import ChannelLayout, ChannelRule, Layouts
from onnx_repfuse.graph.operators.facts import Attributes, Doubt, Operator, SizeCase, Values, WeightChannels
from onnx_repfuse.graph.scope import Scope, input_name, static

__all__ = ["CONV_MATMUL"]


# What a weight says: (channels read, channels written).


def _groups(node: gs.Node) -> int:
    groups = node.attrs.get("group", 1)
    return groups if isinstance(groups, int) else 1


def _conv_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    """(out, in / groups, ...)"""
    return shape[1] * _groups(node), shape[0]


def _transposed_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    """(in, out / groups, ...)"""
    return shape[0], shape[1] * _groups(node)


def _gemm_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    """(in, out), or with transB (out, in)."""
    return (shape[1], shape[0]) if node.attrs.get("transB", 0) else (shape[0], shape[1])


def _matmul_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    """(in, out)"""
    return shape[0], shape[1]


def _static_weight(scope: Scope, node: gs.Node) -> tuple[tuple[int, ...], int] | None:
    """Proved shape and data type of the second input, constant or not."""
    name = input_name(node, 1)
    shape, data_type = static(scope.shape(name)), scope.data_type(name)
    return (shape, data_type) if shape is not None and data_type else None


LayoutsAround = tuple[ChannelLayout, ChannelLayout]  # of input and output


def _weight_rule(around: Callable[[gs.Node, tuple[int, ...], int], LayoutsAround | None]) -> ChannelRule:
    """The weight alone tells the layouts of input and output."""

    def layouts_around(layouts: Layouts, node: gs.Node) -> LayoutsAround | None:
        weight = _static_weight(layouts.scope, node)
        return None if weight is None else around(node, *weight)

    def forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
        both = layouts_around(layouts, node)
        return None if both is None else both[1]

    def backwards(layouts: Layouts, node: gs.Node) -> list[tuple[str, ChannelLayout]]:
        both = layouts_around(layouts, node)
        return [] if both is None else [(node.inputs[0].name, both[0])]

    return ChannelRule(forwards, backwards)


def _convolved(weight: WeightChannels) -> ChannelRule:
    def around(node: gs.Node, shape: tuple[int, ...], data_type: int) -> LayoutsAround | None:
        if len(shape) < 3:
            return None
        read, written = weight(node, shape)
        rank = len(shape) - 2
        return ChannelLayout(1, rank, read, data_type), ChannelLayout(1, rank, written, data_type)

    return _weight_rule(around)


def _multiplied(weight: WeightChannels) -> ChannelRule:
    def around(node: gs.Node, shape: tuple[int, ...], data_type: int) -> LayoutsAround | None:
        if len(shape) != 2:
            return None
        read, written = weight(node, shape)
        return ChannelLayout(-1, 0, read, data_type), ChannelLayout(-1, 0, written, data_type)

    return _weight_rule(around)


# Multiply-adds, at assumed sizes.


def _conv_macs(scope: Scope, node: gs.Node) -> int | None:
    """Each output element sums over (in / groups, kernel)."""
    return _times(scope.elements(node.outputs[0].name), _weight_shape(scope, node))


def _conv_transpose_macs(scope: Scope, node: gs.Node) -> int | None:
    """Each input element is added to (out / groups, kernel)."""
    return _times(scope.elements(node.inputs[0].name), _weight_shape(scope, node))


def _weight_shape(scope: Scope, node: gs.Node) -> tuple[int, ...] | None:
    return static(scope.shape(input_name(node, 1)))


def _times(elements: int | None, weight: tuple[int, ...] | None) -> int | None:
    return None if elements is None or weight is None else elements * prod(weight[1:])


def _gemm_macs(scope: Scope, node: gs.Node) -> int | None:
    weight, out = _weight_shape(scope, node), scope.elements(node.outputs[0].name)
    return None if weight is None or out is None else out * _gemm_channels(node, weight)[0]


def _matmul_macs(scope: Scope, node: gs.Node) -> int | None:
    """The weight may be a computed tensor, so the last axis of the data tells the length of the sums."""
    data, out = scope.assumed.get(node.inputs[0].name), scope.elements(node.outputs[0].name)
    return None if data is None or out is None else out * data[-1]


def _matmul(attrs: Attributes, a: Values, b: Values) -> Values:
    return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), a.dtype)


def _conv_transpose_doubts(case: SizeCase) -> Sequence[int] | Doubt:
    """`auto_pad` with `output_padding`; and an `output_shape` smaller than the input, which ONNX Runtime rejects."""
    wanted = case.attrs.get("output_shape", ())
    if any(out < (size or 0) for out, size in zip(wanted, case.shape[2:], strict=False)):
        return Doubt.SHAPE
    lengthens = any(case.attrs.get("output_padding", ()))
    return case.space if case.pads_automatically and lengthens else ()


CONV_MATMUL = (
    Operator(
        "Conv",
        stays_for_a_reason=True,
        channels=_convolved(_conv_channels),
        weight=_conv_channels,
        multiply_adds=_conv_macs,
        has_window=True,
        shaped_by_shapes=True,
    ),
    Operator(
        "ConvTranspose",
        stays_for_a_reason=True,
        channels=_convolved(_transposed_channels),
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
        channels=_multiplied(_gemm_channels),
        weight=_gemm_channels,
        multiply_adds=_gemm_macs,
        shaped_by_shapes=True,
    ),
    Operator(
        "MatMul",
        stays_for_a_reason=True,
        channels=_multiplied(_matmul_channels),
        weight=_matmul_channels,
        multiply_adds=_matmul_macs,
        shaped_by_shapes=True,
        evaluate=_matmul,
    ),
)
