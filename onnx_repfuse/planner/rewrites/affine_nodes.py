"""Nodes that multiply a tensor by constants and add constants to it: what these are, in the tensor's own axes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.no_ops import constant_beside
from onnx_repfuse.lift import Context, LinearOp, lift

__all__ = ["factor_and_shift", "factor_and_shift_of"]

Array = NDArray[np.float64]
_ARITHMETIC = ("Add", "Div", "Mul", "Sub", "Sum")


def factor_and_shift_of(context: Context, node: gs.Node, source: str) -> tuple[Array, Array] | None:
    """What an operator does to a tensor, as a factor and a shift that broadcast to it; None for any other operator."""
    if node.op == "Neg":
        return -np.ones(()), np.zeros(())
    if node.op == "BatchNormalization":
        return _of_batch_normalization(context, node, source)
    if node.op not in _ARITHMETIC:
        return None
    name, const = constant_beside(context.scope, node, commutes=node.op != "Div")
    if const is None or name != source:
        return None
    with np.errstate(all="ignore"):
        value = np.asarray(const.read(), np.float64)
        return factor_and_shift(node.op, value, is_left=node.inputs[1].name == name)


def _of_batch_normalization(context: Context, node: gs.Node, source: str) -> tuple[Array, Array] | None:
    lifted = lift(context, node)
    if not isinstance(lifted, LinearOp) or lifted.operands[0].name != source or lifted.bias.deferred:
        return None
    kernel, axis, rank = lifted.terms[0].kernel, *lifted.layout
    if not isinstance(kernel, Vector):
        return None
    shape = (-1, *(1,) * rank) if axis == 1 else (-1,)
    return kernel.scale.reshape(shape), lifted.bias.known.reshape(shape)


def factor_and_shift(op: str, value: Array, *, is_left: bool) -> tuple[Array, Array]:
    """`x op value`, or `value op x`, as `factor*x + shift`."""
    one, zero = np.ones(()), np.zeros(())
    if op == "Neg":
        return -one, zero
    if op in ("Add", "Sum"):
        return one, value
    if op == "Sub":
        return (-one, value) if is_left else (one, -value)
    return (value, zero) if op == "Mul" else (1.0 / value, zero)
