"""The oracle's activations and scalar functions, element by element.

An activation with |f(x)| <= c |x| (+ d) passes an error on by its slope at most, so its magnitude is that of its input
times its largest slope. ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np

from onnx_repfuse.verifier.oracle.tensor import Context, Tensor


def clip(context: Context, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip: the bounds are attributes up to opset 10, inputs since 11. Slope at most 1."""
    lower = context.attributes.get("min", -np.inf) if low is None else low.value
    upper = context.attributes.get("max", np.inf) if high is None else high.value
    return Tensor(np.minimum(np.maximum(x.value, lower), upper), x.magnitude)


def relu(context: Context, x: Tensor) -> Tensor:
    """Relu: max(x, 0). Slope at most 1."""
    return Tensor(np.maximum(x.value, 0), x.magnitude)


def leaky_relu(context: Context, x: Tensor) -> Tensor:
    """LeakyRelu: alpha * x below 0, else x. Slope at most max(1, |alpha|)."""
    alpha = context.attributes.get("alpha", 0.01)
    slope = np.float32(max(1.0, abs(alpha)) ** context.power)
    return Tensor(np.where(x.value < 0, alpha * x.value, x.value), x.magnitude * slope)


def hard_sigmoid(context: Context, x: Tensor) -> Tensor:
    """HardSigmoid: max(0, min(1, alpha * x + beta)). The magnitude counts beta as one more summand."""
    alpha, beta = context.attributes.get("alpha", 0.2), context.attributes.get("beta", 0.5)
    slope = np.float32(abs(alpha) ** context.power)
    return Tensor(np.clip(alpha * x.value + beta, 0, 1), x.magnitude * slope + np.float32(abs(beta)))


def hard_swish(context: Context, x: Tensor) -> Tensor:
    """HardSwish (opset 14): x * HardSigmoid(x), alpha 1/6, beta 1/2. Its slope is largest at 3, where it is 1.5."""
    return Tensor(x.value * np.clip(x.value / 6 + 0.5, 0, 1), x.magnitude * np.float32(1.5**context.power))


def absolute(context: Context, x: Tensor) -> Tensor:
    """Abs. Slope 1."""
    return Tensor(np.abs(x.value), x.magnitude)


def p_relu(context: Context, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu: slope * x below 0, else x; the slope broadcasts. Slope at most max(1, |slope|)."""
    steepest = np.maximum(1.0, np.abs(slope.value)) ** context.power
    value = np.where(x.value < 0, slope.value * x.value, x.value)
    return Tensor(value, (x.magnitude * steepest).astype(np.float32))


def elu(context: Context, x: Tensor) -> Tensor:
    """Elu: alpha * (exp(x) - 1) below 0, else x. Slope at most max(1, |alpha|)."""
    alpha = context.attributes.get("alpha", 1.0)
    slope = np.float32(max(1.0, abs(alpha)) ** context.power)
    value = np.where(x.value < 0, alpha * np.expm1(np.minimum(x.value, 0)), x.value)
    return Tensor(value, x.magnitude * slope)


def sigmoid(context: Context, x: Tensor) -> Tensor:
    """Sigmoid: 1 / (1 + exp(-x)), at most 1/2 + |x| / 4, which is its largest slope."""
    magnitude = x.magnitude * np.float32(0.25**context.power) + np.float32(0.5**context.power)
    return Tensor(1 / (1 + np.exp(-x.value)), magnitude)


def softplus(context: Context, x: Tensor) -> Tensor:
    """Softplus: log(1 + exp(x)), at most log 2 + |x|. Slope at most 1."""
    return Tensor(np.logaddexp(x.value, 0), x.magnitude + np.float32(np.log(2) ** context.power))


def tanh(context: Context, x: Tensor) -> Tensor:
    """Tanh. Slope at most 1."""
    return Tensor(np.tanh(x.value), x.magnitude)


def sqrt(context: Context, x: Tensor) -> Tensor:
    """Sqrt: of constants, as a decomposed BatchNormalization has it, so its result counts as a constant."""
    return Tensor.of(np.sqrt(x.value), context.power)


def exp(context: Context, x: Tensor) -> Tensor:
    """Exp: of constants, as Sqrt."""
    return Tensor.of(np.exp(x.value), context.power)


def softmax(context: Context, x: Tensor) -> Tensor:
    """Softmax over one axis, by default the last; up to opset 12 over all axes from `axis` (1) on.

    A share of 1 moves by at most half of what its inputs move by; the magnitude counts 1 as one more summand.
    """
    rank = x.value.ndim
    first = context.attributes.get("axis", -1 if context.opset >= 13 else 1) % rank
    axes = (first,) if context.opset >= 13 else tuple(range(first, rank))
    powers = np.exp(x.value - x.value.max(axes, keepdims=True))
    magnitude = x.magnitude.max(axes, keepdims=True) + np.zeros_like(x.magnitude)
    return Tensor(powers / powers.sum(axes, keepdims=True), magnitude + np.float32(1))


def reciprocal(context: Context, x: Tensor) -> Tensor:
    """Reciprocal: 1 / x; the derivative is -1 / x^2."""
    squared = np.abs(x.value) ** (2 * context.power)
    return Tensor(1 / x.value, (x.magnitude / squared).astype(np.float32))


def power(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """Pow: of constants, as Sqrt. (*) ** (*) -> broadcast shape."""
    return Tensor.of(np.power(x.value, y.value), context.power)
