"""ONNX element types as numpy dtypes, their sizes in bits, and elements from and to their stored bytes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from onnx_repfuse.errors import InputError

__all__ = ["HOLDING_SIZES", "bits", "numpy_dtype", "pack", "stored_size", "type_name", "unpack"]

HOLDING_SIZES = frozenset(  # the types that a size of an axis may be cast to, and keep its value
    (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
)
_OF_NUMPY = {"FLOAT": "float32", "DOUBLE": "float64"}  # all others are called as in ONNX: INT8 is int8
_OF_ML_DTYPES = {  # not all are in every version of ml_dtypes
    "BFLOAT16": "bfloat16",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "FLOAT4E2M1": "float4_e2m1fn",
    "FLOAT6E2M3": "float6_e2m3fn",
    "FLOAT6E3M2": "float6_e3m2fn",
    "UINT4": "uint4",
    "INT4": "int4",
    "UINT2": "uint2",
    "INT2": "int2",
}
_BITS_OF_PACKED = {  # where an element is stored in less than a byte
    "UINT4": 4,
    "INT4": 4,
    "FLOAT4E2M1": 4,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
    "UINT2": 2,
    "INT2": 2,
}


def _dtype_of(name: str) -> np.dtype[Any] | None:
    """The numpy dtype of an ONNX type; None for strings, UNDEFINED, and what the installed ml_dtypes lacks."""
    if name in ("UNDEFINED", "STRING"):
        return None
    scalar = getattr(ml_dtypes, _OF_ML_DTYPES[name], None) if name in _OF_ML_DTYPES else None
    try:
        return np.dtype(scalar or _OF_NUMPY.get(name, name.lower()))
    except TypeError:  # a type of a later ONNX
        return None


_NAMES: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
_DTYPES = {number: dtype for number, name in _NAMES.items() if (dtype := _dtype_of(name)) is not None}
_BITS = {number: _BITS_OF_PACKED.get(_NAMES[number], 8 * dtype.itemsize) for number, dtype in _DTYPES.items()}


def type_name(data_type: int) -> str:
    """`FLOAT`, `INT64`, ...; the number itself where this ONNX has no name for it."""
    return _NAMES.get(data_type, f"type {data_type}")


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy dtype of an ONNX element type, from ml_dtypes where numpy has none."""
    if data_type not in _DTYPES:
        raise InputError(f"tensors of {type_name(data_type)} have no numpy dtype")
    return _DTYPES[data_type]


def bits(data_type: int) -> int | None:
    """Bits of one stored element; None for strings and unknown types."""
    return _BITS.get(data_type)


def stored_size(data_type: int, shape: Sequence[int]) -> int | None:
    """Bytes of `raw_data` for a shape; None for strings and unknown types."""
    width = _BITS.get(data_type)
    return None if width is None else (math.prod(shape) * width + 7) // 8


def unpack(
    data_type: int, shape: Sequence[int], raw: bytes | memoryview | np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Elements from the bytes of `raw_data`, whose size has been checked; a view where numpy can.

    Raises:
        InputError: numpy has no such type.
    """
    dtype = numpy_dtype(data_type)
    width = _BITS[data_type]
    if width < 8:
        octets = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
        # Elements follow each other bit by bit, the lowest first -> (elements, width) of bits -> one byte each
        each = np.unpackbits(octets, bitorder="little")[: math.prod(shape) * width].reshape(-1, width)
        codes = np.packbits(each, axis=1, bitorder="little").reshape(-1)
        if data_type in (getattr(onnx.TensorProto, "INT4", -1), getattr(onnx.TensorProto, "INT2", -1)):
            # sign extension: in 4 bits, 0b1111 -> 0b0111 -> 7 - 8 = -1
            codes = (codes ^ (1 << width - 1)).astype(np.int8) - np.int8(1 << width - 1)
            return np.asarray(codes.astype(dtype).reshape(shape))
        return np.asarray(codes.view(dtype).reshape(shape))
    array = raw.view(dtype) if isinstance(raw, np.ndarray) else np.frombuffer(raw, dtype)
    if sys.byteorder == "big":  # raw_data is little-endian
        array = array.byteswap()
    return array.reshape(tuple(shape))


def pack(data_type: int, array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of `raw_data` for an array whose dtype is already that of `data_type`."""
    width = _BITS[data_type]
    flat = np.ascontiguousarray(array).reshape(-1)
    if width < 8:
        # one byte each -> (elements, 8) bits, the lowest first -> (elements, width) -> packed
        each = np.unpackbits(flat.view(np.uint8).reshape(-1, 1), axis=1, bitorder="little")[:, :width]
        return np.packbits(each.reshape(-1), bitorder="little").data
    if sys.byteorder == "big":
        flat = flat.byteswap()
    return flat.view(np.uint8).data
