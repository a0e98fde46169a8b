"""The layout of one new file of external data: each tensor at an aligned offset, equal ranges once."""

from __future__ import annotations

import onnx

from onnx_repfuse.modelfile.byte_rope import Piece, Range, size_of, write
from onnx_repfuse.modelfile.byte_source import Sink

__all__ = ["DataFile"]

# Offsets that runtimes can map (onnx/docs/ExternalData.md): pages of 4 KB, on Windows 64 KB. Small tensors are not
# aligned for Windows, so that a file of many does not consist of gaps.
PAGE_BYTES = 4096
WINDOWS_GRANULARITY_BYTES = 65536
MIN_MAPPED_BYTES = 1 << 20


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
            step = WINDOWS_GRANULARITY_BYTES if size >= MIN_MAPPED_BYTES else PAGE_BYTES
            offset = -(-self.size // step) * step  # rounded up
            self._pieces.append((offset, piece))
            self.size = offset + size
            if isinstance(piece, Range):  # two tensors that share their elements share them here, too
                self._offsets[piece] = offset
        del tensor.external_data[:]
        for key, value in (("location", self.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        return tensor

    def write(self, out: Sink) -> None:
        """Write everything; the gaps are zeros."""
        at = 0
        for offset, piece in self._pieces:
            out.write(bytes(offset - at))
            write(piece, out)
            at = offset + size_of(piece)
