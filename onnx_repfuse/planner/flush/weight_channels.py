"""Which elements of a weight belong to one output channel of its node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

__all__ = ["LINEAR_OPERATORS", "by_channel", "channel_rule", "largest_by_channel"]

Values = NDArray[Any]
LINEAR_OPERATORS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])


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
