"""Whether two kernels are computed alike from the same numbers, told without computing either."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Derived, Kernel, Stored, Vector

__all__ = ["key_of_bias", "key_of_kernel"]

MAX_SIZE = 200  # kernels that one is computed from; what grew through so many folds has no equal


def key_of_kernel(kernel: Kernel) -> Hashable | None:
    """Equal for kernels that hold the same numbers, as far as their derivation tells; None where it does not."""
    if kernel.size > MAX_SIZE:
        return None
    return _key(kernel)


def key_of_bias(bias: Bias) -> Hashable | None:
    """As `key_of_kernel`; None for a bias that needs a kernel to be read."""
    return None if bias.deferred else np.ascontiguousarray(bias.known).tobytes()


def _key(kernel: Kernel) -> Hashable | None:
    if isinstance(kernel, Vector):
        return Vector, kernel.geometry, np.ascontiguousarray(kernel.scale).tobytes()
    if isinstance(kernel, Stored):
        return None if kernel.origin is None else (Stored, kernel.geometry, kernel.origin)
    if not isinstance(kernel, Derived):
        return None
    operands = [_key(operand) for operand in kernel.operands()]
    if None in operands:
        return None
    own = [_own_key(value) for name, value in sorted(vars(kernel).items()) if name not in ("depth", "size")]
    return type(kernel).__name__, *operands, *own


def _own_key(value: object) -> Hashable:
    """Of what a kernel holds beside its operands."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, np.ascontiguousarray(value).tobytes()
    if _is_kernel(value) or (isinstance(value, tuple) and value and all(map(_is_kernel, value))):
        return None  # its operands
    return value if isinstance(value, Hashable) else id(value)


def _is_kernel(value: object) -> bool:
    return isinstance(value, Vector | Stored | Derived)
