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

HOLDING_SIZES = frozenset(  # the types a size may be cast to and stay what it is
    (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
)
_NUMPY = {
    "FLOAT": "float32",
    "UINT8": "uint8",
    "INT8": "int8",
    "UINT16": "uint16",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FLOAT16": "float16",
    "DOUBLE": "float64",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "COMPLEX64": "complex64",
    "COMPLEX128": "complex128",
}
_ML = {
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
_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "UINT2": 2, "INT2": 2}


def _table() -> tuple[dict[int, np.dtype[Any]], dict[int, int]]:
    dtypes: dict[int, np.dtype[Any]] = {}
    widths: dict[int, int] = {}
    for name, number in onnx.TensorProto.DataType.items():
        kind = getattr(ml_dtypes, _ML[name], None) if name in _ML else _NUMPY.get(name)
        if kind is not None:
            dtypes[number] = np.dtype(kind)
            widths[number] = _PACKED.get(name, 8 * dtypes[number].itemsize)
    return dtypes, widths


_DTYPES, _BITS = _table()


def type_name(data_type: int) -> str:
    """`FLOAT`, `INT64`, ...; the number itself where this ONNX has no name for it."""
    try:
        return str(onnx.TensorProto.DataType.Name(data_type))
    except ValueError:
        return f"type {data_type}"


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
    """Elements from the bytes of `raw_data`, whose size has been checked; a view where numpy can."""
    dtype = numpy_dtype(data_type)
    width = _BITS[data_type]
    if width < 8:
        octets = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
        each = np.unpackbits(octets, bitorder="little")[: math.prod(shape) * width].reshape(-1, width)
        codes = np.packbits(each, axis=1, bitorder="little").reshape(-1)
        if data_type in (getattr(onnx.TensorProto, "INT4", -1), getattr(onnx.TensorProto, "INT2", -1)):
            codes = (codes ^ (1 << width - 1)).astype(np.int8) - np.int8(1 << width - 1)
            return np.asarray(codes.astype(dtype).reshape(shape))
        return np.asarray(codes.view(dtype).reshape(shape))
    array = raw.view(dtype) if isinstance(raw, np.ndarray) else np.frombuffer(raw, dtype)
    if sys.byteorder == "big":
        array = array.byteswap()
    return array.reshape(tuple(shape))


def pack(data_type: int, array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of `raw_data` for an array whose dtype is already that of `data_type`."""
    width = _BITS[data_type]
    flat = np.ascontiguousarray(array).reshape(-1)
    if width < 8:
        each = np.unpackbits(flat.view(np.uint8).reshape(-1, 1), axis=1, bitorder="little")[:, :width]
        return np.packbits(each.reshape(-1), bitorder="little").data
    if sys.byteorder == "big":
        flat = flat.byteswap()
    return flat.view(np.uint8).data
