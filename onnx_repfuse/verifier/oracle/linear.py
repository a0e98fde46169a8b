"""The oracle's arithmetic: sums, products, normalization, reductions. Operands broadcast as numpy's do.

Each value is computed as the formula says; beside it the magnitude, with every factor and summand taken as its absolute
value. ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np

from onnx_repfuse.verifier.oracle.tensor import Array, Context, Tensor, Unsupported


def per_channel(values: Array, rank: int) -> Array:
    """(C,) -> (1, C, 1, ...), to broadcast along axis 1 of a tensor of `rank` axes."""
    return values.reshape(1, -1, *(1,) * (rank - 2))


def batch_norm(
    context: Context, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """BatchNormalization in inference: scale * (x - mean) / sqrt(variance + epsilon) + bias.

    x: (N, C) or (N, C, *space); the others (C,). Only the first output is computed. Raises Unsupported for training
    mode up to opset 13, where it shows in further outputs, and for the `spatial` = 0 of opset 1 to 8.
    """
    given = context.attributes
    if not given.get("spatial", 1):
        raise Unsupported("BatchNormalization per position")
    if given.get("training_mode", 0):
        # as weight standardization has it, by the statistics of the weight itself
        axes = (0, *range(2, x.value.ndim))
        mean = Tensor.of(x.value.mean(axes), context.power)
        variance = Tensor.of(x.value.var(axes), context.power)
    elif context.outputs > 1:
        raise Unsupported("BatchNormalization in training mode before opset 14")
    # Attributes are float32, so the default of epsilon is not 1e-5 but the float32 next to it.
    # y = slope * x + (bias - mean * slope); all (C,)
    slope = scale.value / np.sqrt(variance.value + given.get("epsilon", float(np.float32(1e-5))))
    shift = mean.value * slope
    rank, power = x.value.ndim, context.power
    value = x.value * per_channel(slope, rank) + per_channel(bias.value - shift, rank)
    constant = np.abs(shift) ** power + bias.magnitude  # mean * slope and bias may cancel: both count
    magnitude = x.magnitude * per_channel(np.abs(slope) ** power, rank) + per_channel(constant, rank)
    return Tensor(value, magnitude.astype(np.float32))


def add(context: Context, *summands: Tensor) -> Tensor:
    """Add and Sum."""
    value, magnitude = summands[0].value, summands[0].magnitude
    for summand in summands[1:]:
        value, magnitude = value + summand.value, magnitude + summand.magnitude
    return Tensor(value, magnitude)


def mean(context: Context, *summands: Tensor) -> Tensor:
    """Mean of several tensors, element by element."""
    total = add(context, *summands)
    count = len(summands)
    return Tensor(total.value / count, total.magnitude / np.float32(count**context.power))


def sub(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """Sub. The magnitudes add up: a difference of two large values keeps the errors of both."""
    return Tensor(a.value - b.value, a.magnitude + b.magnitude)


def mul(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """Mul, element by element."""
    return Tensor(a.value * b.value, a.magnitude * b.magnitude)


def div(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """Div; of integers it is the integer quotient (sizes computed from a Shape are such)."""
    if a.value.dtype.kind != "f":
        return Tensor.of(a.value // b.value)
    # a * (1 / b), and 1 / b has the magnitude m(b) / b^2, as in Reciprocal
    squared = np.abs(b.value) ** (2 * context.power)
    return Tensor(a.value / b.value, (a.magnitude * b.magnitude / squared).astype(np.float32))


def neg(context: Context, x: Tensor) -> Tensor:
    """Neg: -x."""
    return Tensor(-x.value, x.magnitude)


def matmul(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """MatMul, numpy's: (..., M, K) @ (..., K, N) -> (..., M, N); a vector gets an axis of 1 for the time being."""
    context.count_terms(a.value.shape[-1], a.value)
    return Tensor(
        *context.both(lambda: np.matmul(a.value, b.value), lambda: np.matmul(a.magnitude, b.magnitude))
    )


def einsum(context: Context, *operands: Tensor) -> Tensor:
    """Einsum, numpy's: sums of products over the indices that the result has not; sizes of 1 broadcast."""
    equation = context.attributes["equation"]
    ones = [np.broadcast_to(1.0, operand.value.shape) for operand in operands]
    # every element sums as many terms
    context.count_terms(int(np.einsum(equation, *ones).max(initial=1.0)), np.ones(1))
    magnitude = np.einsum(equation, *(operand.magnitude for operand in operands))
    if not context.needs_values:
        return Tensor(magnitude, magnitude)
    return Tensor(np.einsum(equation, *(operand.value for operand in operands)), magnitude)


def gemm(context: Context, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha * A' @ B' + beta * C, (M, K) @ (K, N) -> (M, N), A' and B' transposed on demand; C broadcasts."""
    given = context.attributes
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    left = a.map(np.transpose) if given.get("transA", 0) else a  # (K, M) -> (M, K)
    right = b.map(np.transpose) if given.get("transB", 0) else b  # (N, K) -> (K, N)
    context.count_terms(right.value.shape[0], left.value)
    value = alpha * (left.value @ right.value)
    magnitude = abs(alpha) ** context.power * (left.magnitude @ right.magnitude)
    if c is not None:
        value = value + beta * c.value
        magnitude = magnitude + abs(beta) ** context.power * c.magnitude
    return Tensor(value, magnitude.astype(np.float32))


def global_average_pool(context: Context, x: Tensor) -> Tensor:
    """GlobalAveragePool: (N, C, *space) -> (N, C, 1, ...)."""
    return _reduce(context, x, tuple(range(2, x.value.ndim)), keepdims=True, average=True)


def reduce_sum(context: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """ReduceSum: axes are an attribute up to opset 12, an input since 13."""
    return _reduce_axes(context, x, axes, average=False)


def reduce_mean(context: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """ReduceMean: axes are an attribute up to opset 17, an input since 18."""
    return _reduce_axes(context, x, axes, average=True)


def reduce_l2(context: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """ReduceL2: of constants, as Sqrt; axes are an attribute up to opset 17, an input since 18."""
    squares = _reduce_axes(context, x.map(np.square), axes, average=False)
    return Tensor.of(np.sqrt(squares.value), context.power)


def _reduce_axes(context: Context, x: Tensor, axes: Tensor | None, average: bool) -> Tensor:
    given = context.attributes
    chosen = given.get("axes") if axes is None else axes.value.ravel().tolist()
    if not chosen:  # absent or empty: all axes, unless the node says none
        if given.get("noop_with_empty_axes", 0):
            return x
        chosen = range(x.value.ndim)
    where = tuple(int(axis) for axis in chosen)
    return _reduce(context, x, where, keepdims=bool(given.get("keepdims", 1)), average=average)


def _reduce(context: Context, x: Tensor, axes: tuple[int, ...], keepdims: bool, average: bool) -> Tensor:
    count = int(np.prod([x.value.shape[axis] for axis in axes]))
    context.count_terms(count, x.value)
    total = x.map(lambda array: array.sum(axes, keepdims=keepdims))
    if not average:
        return total
    return Tensor(total.value / count, total.magnitude / np.float32(count**context.power))
