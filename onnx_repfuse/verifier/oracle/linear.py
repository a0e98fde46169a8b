"""The oracle's arithmetic: products, sums, normalization, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_repfuse.verifier.oracle.conv import column
from onnx_repfuse.verifier.oracle.registry import Context, Unsupported, Value, register

__all__: list[str] = []

Array = np.ndarray[Any, np.dtype[Any]]


@register("BatchNormalization")
def batch_norm(context: Context, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> Value:
    given = context.attributes
    if given.get("training_mode", 0) or context.outputs > 1 or not given.get("spatial", 1):
        raise Unsupported("BatchNormalization in training mode or per position")
    slope = scale.v / np.sqrt(var.v + given.get("epsilon", float(np.float32(1e-5))))
    rank = x.v.ndim
    shift = mean.v * slope
    v = x.v * column(slope, rank) + column(bias.v - shift, rank)
    power = context.power
    m = x.m * column(np.abs(slope) ** power, rank) + column(np.abs(shift) ** power + bias.m, rank)
    return Value(v, m.astype(np.float32))


@register("Add", "Sum")
def add(context: Context, *parts: Value) -> Value:
    v, m = parts[0].v, parts[0].m
    for part in parts[1:]:
        v, m = v + part.v, m + part.m
    return Value(v, m)


@register("Mean")
def mean(context: Context, *parts: Value) -> Value:
    whole = add(context, *parts)
    return Value(whole.v / len(parts), whole.m / np.float32(len(parts) ** context.power))


@register("Sub")
def sub(context: Context, a: Value, b: Value) -> Value:
    return Value(a.v - b.v, a.m + b.m)


@register("Mul")
def mul(context: Context, a: Value, b: Value) -> Value:
    return Value(a.v * b.v, a.m * b.m)


@register("Div")
def div(context: Context, a: Value, b: Value) -> Value:
    if a.v.dtype.kind != "f":
        return Value.of(a.v // b.v)
    return Value(a.v / b.v, (a.m * b.m / np.abs(b.v) ** (2 * context.power)).astype(np.float32))


@register("Neg")
def neg(context: Context, a: Value) -> Value:
    return Value(-a.v, a.m)


@register("Identity", "Dropout")
def identity(context: Context, x: Value, *rest: Value) -> Value:
    if len(rest) > 1 and rest[1] is not None and bool(np.any(rest[1].v)):
        raise Unsupported("Dropout in training mode")
    return x


@register("MatMul")
def matmul(context: Context, a: Value, b: Value) -> Value:
    context.count(a.v.shape[-1], a.v)
    return Value(np.matmul(a.v, b.v), np.matmul(a.m, b.m))


@register("Gemm")
def gemm(context: Context, a: Value, b: Value, c: Value | None = None) -> Value:
    given = context.attributes
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    left = [a.v.T, a.m.T] if given.get("transA", 0) else [a.v, a.m]
    right = [b.v.T, b.m.T] if given.get("transB", 0) else [b.v, b.m]
    context.count(right[0].shape[0], left[0])
    v, m = alpha * (left[0] @ right[0]), abs(alpha) ** context.power * (left[1] @ right[1])
    if c is not None:
        v, m = v + beta * c.v, m + abs(beta) ** context.power * c.m
    return Value(v, m.astype(np.float32))


@register("GlobalAveragePool")
def global_average_pool(context: Context, x: Value) -> Value:
    axes = tuple(range(2, x.v.ndim))
    count = int(np.prod(x.v.shape[2:]))
    context.count(count, x.v)
    return Value(
        x.v.mean(axes, keepdims=True), x.m.sum(axes, keepdims=True) / np.float32(count**context.power)
    )


def _reduction(average: bool) -> Any:
    def reduce(context: Context, x: Value, axes: Value | None = None) -> Value:
        given = context.attributes
        chosen = given.get("axes") if axes is None else axes.v.ravel().tolist()
        if not chosen:
            if given.get("noop_with_empty_axes", 0):
                return x
            chosen = range(x.v.ndim)
        where = tuple(int(axis) for axis in chosen)
        keep = bool(given.get("keepdims", 1))
        count = int(np.prod([x.v.shape[axis] for axis in where]))
        context.count(count, x.v)
        v, m = x.v.sum(where, keepdims=keep), x.m.sum(where, keepdims=keep)
        return Value(v / count, m / np.float32(count**context.power)) if average else Value(v, m)

    return reduce


register("ReduceMean")(_reduction(True))
register("ReduceSum")(_reduction(False))
