"""The layout of one new file of external data: each tensor at an aligned offset, equal ranges once."""

from __future__ import annotations

from typing import BinaryIO

import onnx

from onnx_repfuse.modelfile.byte_rope import Deferred, Piece, Range, write
from onnx_repfuse.modelfile.protobuf_wire import NUMBER, VARINT, key, prefix

__all__ = ["DataFile"]

_PAGE, _GRANULE, _LARGE = 4096, 65536, 1 << 20  # ONNX's convention: what mmap can map, on every system


class DataFile:
    """Tensors put one after the other into a file that is to be called `name`.

    Attributes:
        name: the file's name, as the model will say it.
        size: bytes so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self._pieces: list[tuple[int, Piece]] = []
        self._offsets: dict[tuple[int, int, int], int] = {}

    def place(self, piece: Range | Deferred) -> bytes:
        """Put a payload at the end; the fields of its TensorProto that say where it is."""
        size = piece.end - piece.begin if isinstance(piece, Range) else piece.size
        known = (id(piece.source), piece.begin, piece.end) if isinstance(piece, Range) else None
        offset = self._offsets.get(known) if known is not None else None
        if offset is None:
            step = _GRANULE if size >= _LARGE else _PAGE
            offset = -(-self.size // step) * step
            self._pieces.append((offset, piece))
            self.size = offset + size
            if known is not None:
                self._offsets[known] = offset
        return reference(self.name, offset, size)

    def write(self, out: BinaryIO) -> None:
        """Write everything; the gaps are zeros."""
        for offset, piece in self._pieces:
            out.seek(offset)
            write(piece, out)


def reference(location: str, offset: int, length: int) -> bytes:
    """The `external_data` and `data_location` of a TensorProto, as bytes."""
    number = NUMBER["TensorProto.external_data"]
    out = b""
    for name, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = onnx.StringStringEntryProto(key=name, value=value).SerializeToString(deterministic=True)
        out += prefix(number, len(entry)) + entry
    where = key(NUMBER["TensorProto.data_location"], VARINT)
    return out + where + bytes([onnx.TensorProto.EXTERNAL])
