"""The float types that folds are computed in, and how precise each is.

These four are the ones that Conv, Gemm, MatMul and BatchNormalization take. ONNX's float8 and shorter types are for
storage only: a model converts them before it computes, so no fold has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx

__all__ = ["FLOAT_FORMATS", "FloatFormat", "epsilon", "is_float"]


@dataclass(frozen=True)
class FloatFormat:
    """A float type. The figures are exact, as Python floats.

    Attributes:
        dtype: the numpy dtype; of bfloat16, that of ml_dtypes.
        epsilon: the spacing of its values at 1, which is one ulp (unit in the last place) of 1.
        unit_roundoff: the largest relative error of rounding to nearest, epsilon / 2.
        smallest: its smallest positive value, a subnormal.
        smallest_normal: the smallest positive value of full precision.
        largest: its largest finite value.
    """

    dtype: np.dtype[Any]
    epsilon: float
    unit_roundoff: float
    smallest: float
    smallest_normal: float
    largest: float

    @property
    def is_half(self) -> bool:
        """Shorter than float32: float16 and bfloat16."""
        return self.epsilon > 2.0**-23


def _format(scalar: Any) -> FloatFormat:
    limits = ml_dtypes.finfo(scalar)  # type: ignore[no-untyped-call]
    epsilon = float(limits.eps)
    return FloatFormat(
        np.dtype(scalar),
        epsilon,
        epsilon / 2,
        float(limits.smallest_subnormal),
        float(limits.smallest_normal),
        float(limits.max),
    )


FLOAT_FORMATS: dict[int, FloatFormat] = {  # by onnx.TensorProto.DataType
    onnx.TensorProto.FLOAT: _format(np.float32),
    onnx.TensorProto.FLOAT16: _format(np.float16),
    onnx.TensorProto.DOUBLE: _format(np.float64),
    onnx.TensorProto.BFLOAT16: _format(ml_dtypes.bfloat16),
}


def epsilon(data_type: int) -> float:
    """One ulp of 1 in an ONNX element type; float32's for a type that is not in the table."""
    return FLOAT_FORMATS.get(data_type, FLOAT_FORMATS[onnx.TensorProto.FLOAT]).epsilon


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a numpy dtype is a float type; numpy itself does not count bfloat16 as one."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
