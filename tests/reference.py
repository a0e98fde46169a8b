"""A float64 evaluator for tests that also bounds rounding errors.

Each tensor is a `Value`: its value, and the standard deviation `e` of the error that a correct evaluation with unit
roundoff `u` may have. Per operator

    e_out = sqrt(sum (w * e_in)**2) + u * (sum |w * x| + |bias|)

Errors of the inputs add up as independent errors do, and the error of the operator itself is bounded. Folding moves
roundings (a weight is rounded once more, a bias is added elsewhere) but stays within this scale. No code of the
package is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


class Value(NamedTuple):
    """A tensor and its error."""

    x: Array
    e: Array


class UnsupportedError(Exception):
    """An operator the evaluator does not know."""


class InvalidError(Exception):
    """A node that cannot run on these shapes."""


class Tally:
    """State of an evaluation: multiply-adds counted, unit roundoff, smallest step near zero, opset and functions."""

    def __init__(
        self, u: float, tiny: float = 0.0, opset: int = 17, functions: Iterable[onnx.FunctionProto] = ()
    ) -> None:
        self.u, self.tiny, self.macs, self.opset = u, tiny, 0, opset
        self.functions = {(function.domain, function.name): function for function in functions}


Run = Callable[[Tally, list[Value], dict[str, Any]], list[Value]]


def exact(x: Any) -> Value:
    """A constant or a graph input."""
    array = np.asarray(x)
    array = array.astype(np.float64) if array.dtype.kind == "f" else array
    return Value(array, np.zeros(array.shape))


def _need(condition: bool, what: str = "") -> None:
    if not condition:
        raise InvalidError(what)


def _windows(x: Array, kernel: Any, strides: Any, dilations: Any) -> tuple[Array, tuple[int, ...]]:
    """Views (taps, n, c, *out) of a padded x."""
    size = x.shape[2:]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = tuple((n - r) // s + 1 for n, r, s in zip(size, reach, strides, strict=True))
    _need(all(n >= r for n, r in zip(size, reach, strict=True)), "kernel larger than its input")
    taps = []
    for at in product(*(range(k) for k in kernel)):
        index = tuple(
            slice(a * d, a * d + s * (o - 1) + 1, s)
            for a, d, s, o in zip(at, dilations, strides, out, strict=True)
        )
        taps.append(x[(slice(None), slice(None), *index)])
    return np.stack(taps), out


def _pads(attrs: dict[str, Any], size: Any, kernel: Any, strides: Any, dilations: Any) -> list[int]:
    rank, auto = len(kernel), attrs.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto == "NOTSET":
        return list(attrs.get("pads") or [0] * (2 * rank))
    if auto == "VALID":
        return [0] * (2 * rank)
    begin, end = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        whole = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = whole // 2, whole - whole // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin + end


def _padded(x: Array, pads: list[int], value: float = 0.0, mode: str = "constant") -> Array:
    rank = len(pads) // 2
    width = [(0, 0)] * (x.ndim - rank) + [(pads[a], pads[rank + a]) for a in range(rank)]
    crop = tuple(
        slice(max(0, -b), x.shape[a] - max(0, -e) if e < 0 else None) for a, (b, e) in enumerate(width)
    )
    x, width = x[crop], [(max(0, b), max(0, e)) for b, e in width]
    if mode == "constant":
        return np.pad(x, width, constant_values=value)
    _need(all(max(w) < n or max(w) == 0 for w, n in zip(width, x.shape, strict=True)))
    return np.pad(x, width, mode=mode)  # type: ignore[call-overload,no-any-return]


def _linear(
    tally: Tally, run: Callable[[Array, Array], Array], x: Value, weight: Value, b: Value | None
) -> Value:
    """Value and error of `run(x, w) + b`, where `run` is linear in x and in w, and both w and b may be computed."""
    w = weight.x
    y = run(x.x, w)
    spread = run(np.abs(x.x), np.abs(w))
    e = np.sqrt(run(x.e**2, w**2)) + tally.u * spread + tally.tiny * run(np.abs(x.x), np.ones_like(w))
    if weight.e.any():
        e = e + run(np.abs(x.x), np.broadcast_to(weight.e, w.shape))
    if b is not None:
        y, e = y + b.x, e + b.e + tally.u * (np.abs(b.x) + np.abs(y))
    return Value(y, e)


def _conv(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    x, w = ins[0], ins[1].x
    kernel, group = w.shape[2:], attrs.get("group", 1)
    rank = len(kernel)
    _need(x.x.ndim == rank + 2 and x.x.shape[1] == w.shape[1] * group and w.shape[0] % group == 0)
    strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
    pads = _pads(attrs, x.x.shape[2:], kernel, strides, dilations)

    def run(value: Array, weight: Array) -> Array:
        taps, out = _windows(_padded(value, pads), kernel, strides, dilations)
        n, c = value.shape[:2]
        taps = taps.reshape(len(taps), n, group, c // group, prod(out))
        split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], prod(kernel))
        return np.einsum("tngcp,goct->ngop", taps, split).reshape(n, weight.shape[0], *out)

    y = _linear(tally, run, x, ins[1], _bias(ins, rank))
    tally.macs += y.x.size * prod(w.shape[1:])
    return [y]


def _bias(ins: list[Value], rank: int) -> Value | None:
    if len(ins) < 3:
        return None
    shape = (-1, *(1,) * rank)
    return Value(ins[2].x.reshape(shape), np.broadcast_to(ins[2].e, ins[2].x.shape).reshape(shape))


def _conv_transpose(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    x, w = ins[0], ins[1].x
    kernel, group = w.shape[2:], attrs.get("group", 1)
    rank = len(kernel)
    _need(x.x.ndim == rank + 2 and x.x.shape[1] == w.shape[0])
    strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
    pads, extra = attrs.get("pads") or [0] * 2 * rank, attrs.get("output_padding") or [0] * rank
    size = x.x.shape[2:]
    whole = [
        s * (n - 1) + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, strides, dilations, kernel, extra, strict=True)
    ]
    _need(all(n - pads[a] - pads[rank + a] > 0 for a, n in enumerate(whole)))

    def run(value: Array, weight: Array) -> Array:
        n, c = value.shape[:2]
        rows = weight.shape[1]
        result = np.zeros((n, group, rows, *whole))
        split = weight.reshape(group, c // group, rows, *kernel)
        flat = value.reshape(n, group, c // group, *size)
        for at in product(*(range(k) for k in kernel)):
            index = tuple(
                slice(a * d, a * d + s * (m - 1) + 1, s)
                for a, d, s, m in zip(at, dilations, strides, size, strict=True)
            )
            part = np.einsum("ngc...,gco->ngo...", flat, split[(slice(None),) * 3 + at])
            result[(slice(None), slice(None), slice(None), *index)] += part
        result = result.reshape(n, group * rows, *whole)
        return result[
            (slice(None), slice(None), *(slice(pads[a], m - pads[rank + a]) for a, m in enumerate(whole)))
        ]

    y = _linear(tally, run, x, ins[1], _bias(ins, rank))
    tally.macs += x.x.size * prod(w.shape[1:])
    return [y]


def _matmul(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    a, b = ins
    _need(a.x.ndim >= 2 and b.x.ndim >= 2 and a.x.shape[-1] == b.x.shape[-2])
    y = _linear(tally, np.matmul, a, b, None)
    tally.macs += y.x.size * a.x.shape[-1]
    return [y]


def _times(value: Value, factor: float) -> Value:
    return Value(factor * value.x, abs(factor) * value.e)


def _gemm(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    a, b = (
        Value(one.x.T, one.e.T) if attrs.get(key) else one
        for one, key in zip(ins[:2], ("transA", "transB"), strict=True)
    )
    b, c = (
        _times(b, attrs.get("alpha", 1.0)),
        _times(ins[2], attrs.get("beta", 1.0)) if len(ins) > 2 else None,
    )
    _need(a.x.ndim == 2 and b.x.ndim == 2 and a.x.shape[1] == b.x.shape[0])
    y = _linear(tally, np.matmul, a, b, c)
    tally.macs += y.x.size * a.x.shape[1]
    return [y]


def _batch_norm(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    x = ins[0]
    _need(x.x.ndim >= 2 and x.x.shape[1] == ins[1].x.size)
    s, b, m, v = (i.x.reshape(-1, *(1,) * (x.x.ndim - 2)) for i in ins[1:5])
    t = s / np.sqrt(v + np.float32(attrs.get("epsilon", 1e-5)))
    spread = np.abs(t) * (np.abs(x.x) + np.abs(m)) + np.abs(b)
    return [Value(t * x.x + (b - m * t), np.abs(t) * x.e + 3 * tally.u * spread)]


def _step_near_zero(tally: Tally, y: Array) -> Array:
    """What storing a product rounds off that is smaller than the normal numbers: a share of it is no measure there."""
    return np.asarray(tally.tiny * (np.abs(y) * tally.u < tally.tiny))


def _arithmetic(op: str) -> Run:
    def run(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
        a, b = ins
        if tally.opset < 7:
            b = _old_broadcast(a, b, attrs)
        try:
            if op == "Mul":
                y = a.x * b.x
                e = np.abs(a.x) * b.e + np.abs(b.x) * a.e + a.e * b.e + _step_near_zero(tally, y)
            elif op == "Div":
                y = a.x / b.x
                e = (a.e + np.abs(y) * b.e) / np.abs(b.x) + _step_near_zero(tally, y)
            else:
                y = a.x + b.x if op == "Add" else a.x - b.x
                e = np.sqrt(a.e**2 + b.e**2) + tally.u * (np.abs(a.x) + np.abs(b.x))
        except ValueError as error:
            raise InvalidError(str(error)) from error
        return [Value(y, e + tally.u * np.abs(y))]

    return run


def _old_broadcast(a: Value, b: Value, attrs: dict[str, Any]) -> Value:
    """Below opset 7, the dims of b are dims of a that stand together, the first of them at `axis`."""
    if a.x.shape == b.x.shape:
        return b
    rank, axis = b.x.ndim, attrs.get("axis", a.x.ndim - b.x.ndim)
    _need(
        (bool(attrs.get("broadcast")) and axis >= 0 and b.x.shape == a.x.shape[axis : axis + rank])
        or b.x.size == 1
    )
    shape = (*b.x.shape, *(1,) * (a.x.ndim - axis - rank))
    return Value(b.x.reshape(shape), b.e.reshape(shape))


def _sum(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    total = ins[0]
    for value in ins[1:]:
        (total,) = _arithmetic("Add")(tally, [total, value], {})
    return [total]


def _mean(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    (total,) = _sum(tally, ins, attrs)
    return [Value(total.x / len(ins), total.e / len(ins))]


def _each(f: Callable[[Array], Array], slope: float = 1.0, step: float = 0.0) -> Run:
    """Value and error of a pointwise function with this Lipschitz constant, which rounds to `step` ulps of 1."""

    def run(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
        return [Value(f(ins[0].x), slope * ins[0].e + step * tally.u)]

    return run


def _hard_sigmoid(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    alpha, beta = attrs.get("alpha", 0.2), attrs.get("beta", 0.5)
    y = alpha * ins[0].x + beta
    return [Value(np.clip(y, 0, 1), abs(alpha) * ins[0].e + tally.u * (np.abs(y) + abs(beta)))]


def _leaky_relu(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    y = np.where(ins[0].x < 0, attrs.get("alpha", 0.01) * ins[0].x, ins[0].x)
    return [Value(y, ins[0].e + tally.u * np.abs(y))]


def _softmax(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    """Of constants, along one axis (opset 13)."""
    _need(not ins[0].e.any() and tally.opset >= 13)
    axis = attrs.get("axis", -1)
    y = np.exp(ins[0].x - ins[0].x.max(axis, keepdims=True))
    y = y / y.sum(axis, keepdims=True)
    return [Value(y, 4 * tally.u * y)]


def _sqrt(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    _need(bool((ins[0].x > 0).all()))
    y = np.sqrt(ins[0].x)
    return [Value(y, ins[0].e / (2 * y) + tally.u * y)]


def _clip(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    lo = attrs.get("min", ins[1].x if len(ins) > 1 else -np.inf)
    hi = attrs.get("max", ins[2].x if len(ins) > 2 else np.inf)
    return [Value(np.clip(ins[0].x, lo, hi), ins[0].e)]


def _pool(kind: str) -> Run:
    def run(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
        x, kernel = ins[0], attrs["kernel_shape"]
        rank = len(kernel)
        _need(x.x.ndim == rank + 2)
        strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
        size = x.x.shape[2:]
        pads = _pads(attrs, size, kernel, strides, dilations)
        more = [0] * rank
        if attrs.get("ceil_mode"):
            for a in range(rank):
                n = size[a] + pads[a] + pads[rank + a] - dilations[a] * (kernel[a] - 1) - 1
                _need(n >= 0)
                count = -(-n // strides[a]) + 1
                if (count - 1) * strides[a] >= size[a] + pads[a]:
                    count -= 1
                more[a] = max(0, (count - 1) * strides[a] - n)
        wide = [*pads[:rank], *(p + m for p, m in zip(pads[rank:], more, strict=True))]
        if kind == "Max":
            taps, _ = _windows(_padded(x.x, wide, -np.inf), kernel, strides, dilations)
            errors, _ = _windows(_padded(x.e, wide), kernel, strides, dilations)
            return [Value(taps.max(0), errors.max(0))]
        inside = np.ones(x.x.shape)
        if attrs.get("count_include_pad"):
            inside = _padded(inside, pads, 1.0)
            inside = _padded(inside, [0] * rank + more)
        else:
            inside = _padded(inside, wide)
        count, _ = _windows(inside, kernel, strides, dilations)
        size_of = count.sum(0)
        taps, _ = _windows(_padded(x.x, wide), kernel, strides, dilations)
        errors, _ = _windows(_padded(x.e, wide), kernel, strides, dilations)
        tally.macs += taps.size  # one for each tap, as of the depthwise convolution that it is
        e = np.sqrt((errors**2).sum(0)) / size_of + 2 * tally.u * np.abs(taps).sum(0) / size_of
        return [Value(taps.sum(0) / size_of, e)]

    return run


def _global_average(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    axes = tuple(range(2, ins[0].x.ndim))
    return _reduce(tally, ins[:1], {"axes": axes, "keepdims": 1})


def _reduce(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    x = ins[0]
    axes = tuple(int(a) for a in (ins[1].x if len(ins) > 1 else attrs.get("axes", range(x.x.ndim))))
    keep = bool(attrs.get("keepdims", 1))
    count = prod(x.x.shape[a] for a in axes)
    e = np.sqrt((x.e**2).sum(axes, keepdims=keep)) / count
    e = e + 2 * tally.u * np.abs(x.x).mean(axes, keepdims=keep)
    return [Value(x.x.mean(axes, keepdims=keep), e)]


def _pad(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    x = ins[0]
    pads = [int(p) for p in (ins[1].x if len(ins) > 1 else attrs["pads"])]
    value = float(ins[2].x) if len(ins) > 2 else attrs.get("value", 0.0)
    mode = attrs.get("mode", b"constant").decode()
    _need(len(pads) == 2 * x.x.ndim)
    _need(all(n + pads[a] + pads[x.x.ndim + a] > 0 for a, n in enumerate(x.x.shape)))
    return [Value(_padded(x.x, pads, value, mode), _padded(x.e, pads, 0.0, mode))]


def _moves(f: Callable[[Array, list[Value], dict[str, Any]], Any]) -> Run:
    """Value and error of an operator that only moves elements."""

    def run(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
        try:
            x, e = f(ins[0].x, ins, attrs), f(ins[0].e, ins, attrs)
        except (ValueError, IndexError) as error:
            raise InvalidError(str(error)) from error
        pairs = zip(x, e, strict=True) if isinstance(x, list) else [(x, e)]
        return [Value(*pair) for pair in pairs]

    return run


def _concat(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    try:
        parts = ([v.x for v in ins], [v.e for v in ins])
        return [Value(*(np.concatenate(p, attrs["axis"]) for p in parts))]
    except ValueError as error:
        raise InvalidError(str(error)) from error


def _slice(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    if len(ins) > 1:
        starts, ends, axes = (ins[i].x for i in (1, 2, 3))
        steps = ins[4].x if len(ins) > 4 else np.ones(len(starts), int)
    else:
        starts, ends, axes = attrs["starts"], attrs["ends"], attrs["axes"]
        steps = [1] * len(starts)
    index = [slice(None)] * x.ndim
    for lo, hi, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(int(lo), int(hi), int(step))
    found = x[tuple(index)]
    _need(found.size > 0)
    return found


def _split(x: Array, ins: list[Value], attrs: dict[str, Any]) -> list[Array]:
    sizes = [int(s) for s in (ins[1].x if len(ins) > 1 else attrs["split"])]
    axis = attrs.get("axis", 0)
    _need(sum(sizes) == x.shape[axis])
    return list(np.split(x, np.cumsum(sizes)[:-1], axis))


def _reshape(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    dims = [x.shape[i] if d == 0 else int(d) for i, d in enumerate(ins[1].x)]
    return x.reshape(dims)


def _flatten(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    return x.reshape(prod(x.shape[: attrs.get("axis", 1)]), -1)


def _nearest(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    for axis, scale in enumerate(ins[-1].x):
        x = np.repeat(x, int(scale), axis)
    return x


def _resize(tally: Tally, ins: list[Value], attrs: dict[str, Any]) -> list[Value]:
    """By whole numbers, nearest or linear."""
    if attrs["mode"] == b"nearest":
        return _moves(_nearest)(tally, ins, attrs)
    x, e = ins[0]
    for axis, scale in enumerate(ins[-1].x):
        if scale != 1:
            w = _between(x.shape[axis], int(scale), attrs["coordinate_transformation_mode"])
            x, e = (
                _along(x, w, axis),
                np.sqrt(_along(e**2, w**2, axis)) + 2 * tally.u * _along(np.abs(x), w, axis),
            )
    return [Value(x, e)]


def _between(n: int, scale: int, mode: bytes) -> Array:
    """Weights of a linear Resize, shape (n * scale, n)."""
    at = np.arange(n * scale, dtype=np.float64)
    if mode == b"half_pixel":
        at = (at + 0.5) / scale - 0.5
    elif mode == b"align_corners":
        at = at * (n - 1) / (n * scale - 1)
    else:
        at = at / scale
    at = np.clip(at, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


def _along(x: Array, w: Array, axis: int) -> Array:
    return np.moveaxis(np.tensordot(w, x, (1, axis)), 0, axis)


def _depth_to_space(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    n, c, h, w = x.shape
    r = attrs["blocksize"]
    if attrs.get("mode", b"DCR") == b"DCR":
        x = x.reshape(n, r, r, c // r**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // r**2, h * r, w * r)


def _space_to_depth(x: Array, ins: list[Value], attrs: dict[str, Any]) -> Array:
    n, c, h, w = x.shape
    r = attrs["blocksize"]
    x = x.reshape(n, c, h // r, r, w // r, r).transpose(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * r**2, h // r, w // r)


_RUN: dict[str, Run] = {
    "Abs": _each(np.abs),
    "Add": _arithmetic("Add"),
    "And": _moves(lambda x, ins, attrs: np.logical_and(x, ins[1].x)),
    "AveragePool": _pool("Average"),
    "BatchNormalization": _batch_norm,
    "Cast": _each(lambda x: x != 0),  # to bool
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _moves(_depth_to_space),
    "Div": _arithmetic("Div"),
    "Dropout": _each(lambda x: x),
    "Flatten": _moves(_flatten),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Gather": _moves(lambda x, ins, attrs: np.take(x, ins[1].x, attrs.get("axis", 0))),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _each(lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 1.5, 4),
    "Identity": _each(lambda x: x),
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _pool("Max"),
    "Mean": _mean,
    "Mul": _arithmetic("Mul"),
    "Neg": _each(np.negative),
    "Pad": _pad,
    "ReduceMean": _reduce,
    "Relu": _each(lambda x: np.maximum(x, 0)),
    "Reshape": _moves(_reshape),
    "Resize": _resize,
    "Sigmoid": _each(lambda x: 1 / (1 + np.exp(-x)), 0.25, 2),
    "Slice": _moves(_slice),
    "Softmax": _softmax,
    "SpaceToDepth": _moves(_space_to_depth),
    "Split": _moves(_split),
    "Sqrt": _sqrt,
    "Squeeze": _moves(lambda x, ins, attrs: np.squeeze(x, tuple(attrs.get("axes") or ins[1].x))),
    "Sub": _arithmetic("Sub"),
    "Sum": _sum,
    "Tanh": _each(np.tanh, 1.0, 2),
    "Transpose": _moves(lambda x, ins, attrs: np.transpose(x, attrs["perm"])),
    "Unsqueeze": _moves(lambda x, ins, attrs: np.expand_dims(x, tuple(attrs.get("axes") or ins[1].x))),
    "Upsample": _moves(_nearest),
}


Values = dict[str, Value]


def _constant(node: onnx.NodeProto, attrs: dict[str, Any], values: Values, tally: Tally) -> None:
    value = attrs["value_float"] if "value_float" in attrs else numpy_helper.to_array(attrs["value"])
    values[node.output[0]] = exact(value)


def _if(node: onnx.NodeProto, attrs: dict[str, Any], values: Values, tally: Tally) -> None:
    branch = attrs["then_branch"] if bool(values[node.input[0]].x) else attrs["else_branch"]
    inner = _inside(branch, values, tally)
    values.update(
        (outer, inner[result.name]) for outer, result in zip(node.output, branch.output, strict=True)
    )


def _loop(node: onnx.NodeProto, attrs: dict[str, Any], values: Values, tally: Tally) -> None:
    """Without a condition, and without outputs that are collected over the rounds."""
    body = attrs["body"]
    state = [values[name] for name in node.input[2:]]
    for number in range(int(values[node.input[0]].x)):
        names = [value.name for value in body.input]
        inner = {**values, **dict(zip(names, [exact(number), exact(True), *state], strict=True))}
        inner = _inside(body, inner, tally)
        state = [inner[value.name] for value in body.output[1:]]
    values.update(zip(node.output, state, strict=True))


def _inside(graph: onnx.GraphProto, values: Values, tally: Tally) -> Values:
    inner = {**values, **{t.name: exact(numpy_helper.to_array(t)) for t in graph.initializer}}
    for child in graph.node:
        step(child, inner, tally)
    return inner


def _call(function: onnx.FunctionProto, node: onnx.NodeProto, values: Values, tally: Tally) -> None:
    given = {attribute.name: attribute for attribute in node.attribute}
    inner = dict(zip(function.input, (values[name] for name in node.input), strict=True))
    for child in function.node:
        bound = onnx.NodeProto.FromString(child.SerializeToString())
        del bound.attribute[:]
        for attribute in child.attribute:
            copy = bound.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name] if attribute.ref_attr_name else attribute)
            copy.name = attribute.name
        step(bound, inner, tally)
    values.update((outer, inner[name]) for outer, name in zip(node.output, function.output, strict=True))


_CONTROL: dict[str, Callable[[onnx.NodeProto, dict[str, Any], Values, Tally], None]] = {
    "Constant": _constant,
    "If": _if,
    "Loop": _loop,
}


def step(node: onnx.NodeProto, values: dict[str, Value], tally: Tally) -> None:
    """Evaluate one node into `values`.

    Raises:
        InvalidError: it cannot run on these shapes.
        UnsupportedError: the evaluator does not know it.
    """
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in _CONTROL:
        _CONTROL[node.op_type](node, attrs, values, tally)
        return
    function = tally.functions.get((node.domain, node.op_type))
    if function is not None:
        _call(function, node, values, tally)
        return
    if node.op_type not in _RUN:
        raise UnsupportedError(node.op_type)
    with np.errstate(all="ignore"):
        results = _RUN[node.op_type](tally, [values[name] for name in node.input if name], attrs)
    _need(all(r.x.size for r in results), "an empty tensor")
    values.update(zip(node.output, results, strict=False))


def evaluate(model: onnx.ModelProto, feeds: dict[str, Array], tally: Tally) -> dict[str, Value]:
    """Every tensor of a model, in float64."""
    tally.opset = next(v.version for v in model.opset_import if not v.domain)
    tally.functions = {(function.domain, function.name): function for function in model.functions}
    values = {t.name: exact(numpy_helper.to_array(t)) for t in model.graph.initializer}
    values |= {name: exact(array) for name, array in feeds.items()}
    for node in model.graph.node:
        step(node, values, tally)
    return values
