"""Rope: a long text of bytes as a list of pieces, most of them ranges of a source that are never loaded.

Both directions use it. Loading makes a rope that leaves the payloads out; saving makes one that leaves out
or adds nodes and tensors. A rope knows its size, so the length prefixes of the enclosing messages are right
before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.protobuf_wire import prefix

__all__ = ["Deferred", "Piece", "Range", "Rope"]


@dataclass
class Range:
    """The bytes `begin:end` of a source."""

    source: Source
    begin: int
    end: int


@dataclass(frozen=True)
class Deferred:
    """Bytes that are computed when they are written; their number is known before."""

    size: int
    make: Callable[[], memoryview]


Piece = bytes | Range | Deferred


class Rope:
    """Pieces in order and their total size."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.size = 0

    def add(self, piece: bytes | Deferred) -> None:
        """Append bytes, now known or late."""
        size = len(piece) if isinstance(piece, bytes) else piece.size
        if size:
            self.pieces.append(piece)
            self.size += size

    def copy(self, source: Source, begin: int, end: int) -> None:
        """Append a range of a source; ranges that touch become one."""
        if begin == end:
            return
        self.size += end - begin
        last = self.pieces[-1] if self.pieces else None
        if isinstance(last, Range) and last.source is source and last.end == begin:
            last.end = end
        else:
            self.pieces.append(Range(source, begin, end))

    def extend(self, other: Rope) -> None:
        """Append the pieces of another rope, which is used up."""
        for piece in other.pieces:
            if isinstance(piece, Range):
                self.copy(piece.source, piece.begin, piece.end)
            else:
                self.add(piece)

    def message(self, number: int, body: Rope) -> None:
        """Append `body` as the submessage `number`."""
        self.add(prefix(number, body.size))
        self.extend(body)

    def write(self, out: BinaryIO) -> None:
        """Write everything, one piece at a time, and compute what is late when its turn comes."""
        for piece in self.pieces:
            write(piece, out)

    def to_bytes(self) -> bytes:
        """Everything in memory."""
        parts: list[bytes | memoryview] = []
        for piece in self.pieces:
            if isinstance(piece, Range):
                parts.append(piece.source.buffer[piece.begin : piece.end])
            else:
                parts.append(piece if isinstance(piece, bytes) else piece.make())
        return b"".join(parts)


def write(piece: Piece, out: BinaryIO) -> None:
    """Append one piece to a file."""
    if isinstance(piece, Range):
        piece.source.copy_to(out, piece.begin, piece.end)
    else:
        out.write(piece if isinstance(piece, bytes) else piece.make())
