"""The layout of one new file of external data: each tensor at an aligned offset, equal ranges once."""

from __future__ import annotations

from typing import BinaryIO

import onnx

from onnx_repfuse.modelfile.byte_rope import Piece, Range, size_of, write

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
        self._offsets: dict[Piece, int] = {}

    def place(self, piece: Piece, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Put the elements of a tensor at the end of the file, and let the tensor say so; returns the tensor."""
        size = size_of(piece)
        offset = self._offsets.get(piece)
        if offset is None:
            step = _GRANULE if size >= _LARGE else _PAGE
            offset = -(-self.size // step) * step
            self._pieces.append((offset, piece))
            self.size = offset + size
            if isinstance(piece, Range):  # two tensors that share their elements share them here, too
                self._offsets[piece] = offset
        del tensor.external_data[:]
        for key, value in (("location", self.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        return tensor

    def write(self, out: BinaryIO) -> None:
        """Write everything; the gaps are zeros."""
        for offset, piece in self._pieces:
            out.seek(offset)
            write(piece, out)
