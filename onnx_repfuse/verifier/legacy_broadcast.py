"""How Add, Sub, Mul, Div and Pow broadcast below opset 7, for the oracle and for onnx's reference evaluator.

`broadcast=1, axis=k` aligns the second operand with the axes of the first from `k` on; without `axis`, from the right.
onnx's evaluator ignores both and broadcasts as numpy does. https://onnx.ai/onnx/operators/onnx__Mul.html, version 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["NUMPY_BROADCAST_SINCE", "aligned_shape", "legacy_operators"]

NUMPY_BROADCAST_SINCE = 7  # the opset from which operands are aligned from the right, always
_FUNCTIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}


def aligned_shape(first: tuple[int, ...], second: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The second operand's shape with the axes behind it that align it with axis `axis` of the first.

    Raises:
        ValueError: it does not fit there.
    """
    behind = len(first) - (axis % len(first) if first else 0) - len(second)
    if behind < 0:
        raise ValueError(f"shape {second} at axis {axis} of shape {first}")
    return (*second, *(1,) * behind)


def legacy_operators() -> list[type]:
    """Classes for the `new_ops` of a ReferenceEvaluator."""
    from onnx.reference.op_run import OpRun

    def run(self: Any, a: Any, b: Any, **attributes: Any) -> tuple[Any]:
        given: Mapping[str, Any] = {**vars(self), **attributes}
        if given.get("broadcast") and given.get("axis") is not None:
            b = b.reshape(aligned_shape(a.shape, b.shape, given["axis"]))
        result = _FUNCTIONS[type(self).__name__](a, b)
        return (result.astype(a.dtype),)

    return [type(name, (OpRun,), {"op_domain": "", "_run": run}) for name in _FUNCTIONS]
