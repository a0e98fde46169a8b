"""Lines for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

__all__ = ["print_line"]

_HANG = 2  # columns by which a line is continued further right than it begins; "- " takes as many
_NARROWEST = 24  # columns of text; a narrower terminal needs all of them


def print_line(console: Console, text: str | Text, style: str = "") -> None:
    """Print one line of a report: whole in a pipe, so that grep finds it; wrapped in a terminal."""
    line = Text(text) if isinstance(text, str) else text
    if not console.is_terminal:
        console.print(line, style=style, soft_wrap=True)
        return
    for part in line.split("\n", allow_blank=True):
        for piece in _wrapped(console, part):
            console.print(piece, style=style)


def _wrapped(console: Console, line: Text) -> Iterator[Text]:
    """A line as wide as the terminal, and what does not fit below it, further right."""
    hang = len(line.plain) - len(line.plain.lstrip()) + _HANG
    room = console.width - hang
    if line.cell_len <= console.width or room < _NARROWEST:
        yield line
        return
    pieces = line[hang:].wrap(console, room)
    for number, piece in enumerate(pieces):
        piece.rstrip()
        yield (Text(" " * hang) if number else line[:hang]) + piece
