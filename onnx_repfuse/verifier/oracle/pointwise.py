"""The oracle's activations: of bounded slope, so that magnitudes pass through."""

from __future__ import annotations

import numpy as np

from onnx_repfuse.verifier.oracle.registry import Context, Value, register

__all__: list[str] = []


@register("Clip")
def clip(context: Context, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    given = context.attributes
    least = low.v if low is not None else given.get("min", -np.inf)
    most = high.v if high is not None else given.get("max", np.inf)
    return Value(np.minimum(np.maximum(x.v, least), most), x.m)


@register("Relu")
def relu(context: Context, x: Value) -> Value:
    return Value(np.maximum(x.v, 0), x.m)


@register("LeakyRelu")
def leaky_relu(context: Context, x: Value) -> Value:
    alpha = context.attributes.get("alpha", 0.01)
    return Value(np.where(x.v < 0, alpha * x.v, x.v), x.m * np.float32(max(1.0, abs(alpha)) ** context.power))


@register("HardSigmoid")
def hard_sigmoid(context: Context, x: Value) -> Value:
    alpha, beta = context.attributes.get("alpha", 0.2), context.attributes.get("beta", 0.5)
    return Value(
        np.clip(alpha * x.v + beta, 0, 1),
        x.m * np.float32(abs(alpha) ** context.power) + np.float32(abs(beta)),
    )


@register("HardSwish")
def hard_swish(context: Context, x: Value) -> Value:
    return Value(x.v * np.clip(x.v / 6 + 0.5, 0, 1), x.m * np.float32(1.5**context.power))


@register("Sqrt")
def sqrt(context: Context, x: Value) -> Value:
    return Value.of(np.sqrt(x.v), context.power)


@register("Reciprocal")
def reciprocal(context: Context, x: Value) -> Value:
    return Value(1 / x.v, (x.m / np.abs(x.v) ** (2 * context.power)).astype(np.float32))


@register("Pow")
def power(context: Context, x: Value, y: Value) -> Value:
    return Value.of(np.power(x.v, y.v), context.power)
