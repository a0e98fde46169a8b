"""Rope: a long run of bytes as a list of pieces, most of them ranges of a file that are never loaded.

Reading makes a rope that leaves the elements of large tensors out; writing makes one that puts them in. A rope knows
its size, so the length prefixes of the enclosing messages are right before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx_repfuse.modelfile.byte_source import Sink, Source
from onnx_repfuse.modelfile.protobuf_wire import prefix

__all__ = ["Deferred", "Piece", "Range", "Rope", "size_of", "write"]


@dataclass(frozen=True)
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


def size_of(piece: Piece) -> int:
    """The number of bytes of a piece."""
    if isinstance(piece, Range):
        return piece.end - piece.begin
    return len(piece) if isinstance(piece, bytes) else piece.size


def write(piece: Piece, out: Sink) -> None:
    """Append one piece to a file."""
    if isinstance(piece, Range):
        piece.source.copy_to(out, piece.begin, piece.end)
    else:
        out.write(piece if isinstance(piece, bytes) else piece.make())


class Rope:
    """Pieces in order, and their total size."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.size = 0

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        size = size_of(piece)
        if size:  # an empty piece would part ranges that touch
            self.pieces.append(piece)
            self.size += size

    def copy(self, source: Source, begin: int, end: int) -> None:
        """Append a range of a source; ranges that touch become one, to be copied in one step."""
        last = self.pieces[-1] if self.pieces else None
        if isinstance(last, Range) and last.source is source and last.end == begin:
            self.pieces[-1] = Range(source, last.begin, end)
            self.size += end - begin
        else:
            self.add(Range(source, begin, end))

    def message(self, number: int, body: Rope) -> None:
        """Append `body` as the submessage `number`."""
        self.add(prefix(number, body.size))
        self.pieces += body.pieces
        self.size += body.size

    def write(self, out: Sink) -> None:
        """Write everything, one piece at a time; what is deferred is computed when its turn comes."""
        for piece in self.pieces:
            write(piece, out)

    def to_bytes(self) -> bytes:
        """Everything in memory."""
        parts: list[bytes | memoryview] = []
        for piece in self.pieces:
            if isinstance(piece, Range):
                parts.append(piece.source.read(piece.begin, piece.end))
            else:
                parts.append(piece if isinstance(piece, bytes) else piece.make())
        return b"".join(parts)
