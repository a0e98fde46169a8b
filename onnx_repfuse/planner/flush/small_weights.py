"""Weights that are too small to show: below what, how they are found, and what zeros in their place change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.scope import Const
from onnx_repfuse.records.report import Flushed

__all__ = [
    "BIAS", "LINEAR_OPERATORS", "TINY", "UNSEEN", "WEIGHT", "by_channel", "channel_rule", "claim", "joined",
    "largest_by_channel", "largest_sum", "least_magnitude", "magnitude", "without_channels", "zeroed",
]  # fmt: skip


Values = NDArray[Any]
# Below these, products of two numbers may be subnormal, and no sum of ordinary terms sees one.
TINY: dict[int, float] = {
    onnx.TensorProto.FLOAT: 1e-30,
    onnx.TensorProto.BFLOAT16: 1e-30,
    onnx.TensorProto.DOUBLE: 1e-300,
}
UNSEEN = 2.0**-60  # of the channel's largest weight
BLOCK = 1 << 18  # elements that are looked at together: they stay in the processor's cache
LINEAR_OPERATORS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
WEIGHT, BIAS = 1, 2  # the inputs of a linear operator


def without_channels(const: Const, node: gs.Node, small: NDArray[np.bool_]) -> Values:
    """A weight with zeros for some output channels."""
    values = const.read().copy()
    view, axes = by_channel(node, values)
    shape = [1 if axis in axes else size for axis, size in enumerate(view.shape)]
    view *= ~small.reshape(shape)
    return np.asarray(values)


def joined(found: Flushed, earlier: Flushed | None) -> Flushed:
    """What became zero in one tensor, seen while planning and when it was computed."""
    if earlier is None or earlier.count + found.count > found.size:
        return found
    return Flushed(
        found.tensor,
        earlier.count + found.count,
        found.size,
        max(earlier.largest, found.largest),
        earlier.bound + found.bound,
        found.is_times_input,
    )


def claim(flushed: Flushed) -> str:
    by_input = " times the largest input" if flushed.is_times_input else ""
    return (
        f"{flushed.count} of {flushed.size} elements of '{flushed.tensor}', of magnitude {flushed.largest:.3g} at "
        f"most, are zero: no output of its nodes changes by more than {flushed.bound:.3g}{by_input}"
    )


def magnitude(values: Values) -> Values:
    """Absolute values, in a type that numpy computes with at full speed."""
    return np.asarray(np.abs(values if values.dtype.kind == "f" else values.astype(np.float32)))


def zeroed(const: Const, bits: NDArray[np.uint8]) -> Values:
    values = const.read()
    small = np.unpackbits(bits, count=values.size).astype(np.bool_).reshape(values.shape)
    return np.where(small, values.dtype.type(0), values)


def least_magnitude(values: Values, limit: float) -> float | None:
    """The least magnitude, 0 where an element is none; None where one is below a limit, but not zero."""
    flat, least = values.reshape(-1), np.inf
    for begin in range(0, flat.size, BLOCK):
        block = magnitude(flat[begin : begin + BLOCK])
        found = float(block.min())
        if found >= limit:
            least = min(least, found)
        elif np.count_nonzero(block < limit) > np.count_nonzero(block == 0):
            return None
        else:  # zeros, or NaN
            least = 0.0
    return least if flat.size else 0.0


def largest_sum(node: gs.Node, place: int, dropped: Values) -> float:
    """What the outputs of a node change by at most, for inputs of magnitude 1."""
    if place == BIAS or dropped.ndim < 2:
        return float(dropped.max())
    view, axes = by_channel(node, dropped)
    return float(view.sum(axis=axes, dtype=np.float64).max())


def channel_rule(node: gs.Node) -> tuple[Any, ...]:
    """What tells two consumers apart that read one weight by other channels."""
    if node.op == "ConvTranspose":
        return (node.op, node.attrs.get("group", 1))
    return (node.op, bool(node.attrs.get("transB", 0))) if node.op == "Gemm" else (node.op,)


def by_channel(node: gs.Node, weight: Values) -> tuple[Values, tuple[int, ...]]:
    """A view of a weight, and the axes of it along which an output channel does not change."""
    if node.op == "Conv":  # (out, in / groups, *kernel)
        return weight, tuple(range(1, weight.ndim))
    if node.op == "ConvTranspose":  # (in, out / groups, *kernel)
        groups = int(node.attrs.get("group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1), (1, 3)
    if node.op == "Gemm" and node.attrs.get("transB", 0):  # (out, in)
        return weight, (1,)
    return weight, (weight.ndim - 2,)  # (..., in, out)


def largest_by_channel(node: gs.Node, weight: Values) -> Values:
    """The largest magnitude of each channel, in the shape of the view with the other axes of size 1."""
    view, axes = by_channel(node, weight)
    return np.asarray(np.abs(view).max(axis=axes, keepdims=True, initial=0))
