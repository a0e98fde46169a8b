"""The oracle's normalizations by statistics of the tensor itself: (x - mean) / sqrt(variance + epsilon) * scale + bias.

An error of x counts in x and in the mean, each over the deviation; one of the variance, which runtimes compute as
E[x^2] - E[x]^2, counts E[x^2] / variance times: for a row that hardly varies around a large mean, that is much. ONNX
operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np

from onnx_repfuse.verifier.oracle.linear import per_channel
from onnx_repfuse.verifier.oracle.tensor import Array, Context, Tensor, Unsupported

__all__ = ["group_norm", "instance_norm", "layer_norm"]

_EPSILON = float(np.float32(1e-5))  # attributes are float32


def layer_norm(context: Context, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """LayerNormalization: over the axes from `axis` on; scale and bias broadcast to these."""
    if context.outputs > 1:
        raise Unsupported("LayerNormalization with its statistics")
    axis = context.attributes.get("axis", -1) % x.value.ndim
    return _affine(_normalized(context, x, tuple(range(axis, x.value.ndim))), scale, bias, context.power)


def instance_norm(context: Context, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization of (N, C, *space): over the space; scale and bias (C,)."""
    rank = x.value.ndim
    normalized = _normalized(context, x, tuple(range(2, rank)))
    first, second = (one.map(lambda array: per_channel(array, rank)) for one in (scale, bias))
    return _affine(normalized, first, second, context.power)


def group_norm(context: Context, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization of (N, C, *space): over the space of the channels of a group; scale and bias (C,)."""
    shape, rank = x.value.shape, x.value.ndim
    groups = context.attributes["num_groups"]
    if scale.value.size != shape[1]:  # one for each group, as before opset 21
        raise Unsupported("GroupNormalization with a scale per group")
    split = x.map(lambda array: array.reshape(shape[0], groups, -1))
    normalized = _normalized(context, split, (2,)).map(lambda array: array.reshape(shape))
    first, second = (one.map(lambda array: per_channel(array, rank)) for one in (scale, bias))
    return _affine(normalized, first, second, context.power)


def _normalized(context: Context, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    def mean(array: Array) -> Array:
        return np.asarray(array.mean(axes, keepdims=True))

    count = int(np.prod([x.value.shape[axis] for axis in axes]))
    context.count_terms(count, np.ones(1))
    centred = x.value - mean(x.value)
    variance = mean(np.square(centred)) + context.attributes.get("epsilon", _EPSILON)
    value = centred / np.sqrt(variance)
    power = context.power
    of_mean = mean(x.magnitude) / count ** (power - 1)
    spread = (x.magnitude + of_mean) / np.sqrt(variance) ** power
    squares = (mean(np.square(x.value)) / variance) ** power
    return Tensor(value, (spread + np.abs(value) ** power * squares).astype(np.float32))


def _affine(x: Tensor, scale: Tensor, bias: Tensor | None, power: int) -> Tensor:
    value, magnitude = x.value * scale.value, x.magnitude * np.abs(scale.value) ** power
    if bias is not None:
        value, magnitude = value + bias.value, magnitude + bias.magnitude
    return Tensor(value, magnitude.astype(np.float32))
