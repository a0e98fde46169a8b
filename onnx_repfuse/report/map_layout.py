"""Where the cells of a whole graph go: a column per step from the inputs, wrapped into bands like lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_repfuse.records.graph_map import GraphMap

__all__ = ["Layout", "columns", "lay_out", "width_of_bands"]

BAND_GAP = 1  # rows of cells between two bands
_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # of a band, in cells
_FLAT = 0.5  # the height that a map may have, of its width


@dataclass(frozen=True)
class Layout:
    """Cells in units of one cell.

    Attributes:
        cells: (x, y) of each node.
        width, height: of all.
    """

    cells: list[tuple[int, int]]
    width: int
    height: int


def columns(nodes: GraphMap) -> list[list[int]]:
    """The places of nodes by their distance from the inputs, each scope after the one before it.

    What computes from constants alone stands right before what reads it, for such nodes would fill the first column.
    """
    found: list[list[int]] = []
    for scope in dict.fromkeys(node.scope for node in nodes):
        places = [place for place, node in enumerate(nodes) if node.scope == scope]
        depth = _depths(nodes, places)
        of_scope: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for place in places:
            of_scope[depth[place]].append(place)
        found += of_scope
    return _ordered(nodes, found)


def _depths(nodes: GraphMap, places: Sequence[int]) -> dict[int, int]:
    """Place -> its column within its scope."""
    order = _topological(nodes, places)
    depth: dict[int, int] = {}
    consumers: dict[int, list[int]] = {place: [] for place in order}
    for place in order:
        depth[place] = max((depth[other] + 1 for other in nodes[place].above), default=0)
        for other in nodes[place].above:
            consumers[other].append(place)
    for place in reversed(order):
        if nodes[place].is_constant and consumers[place]:
            depth[place] = max(0, min(depth[other] for other in consumers[place]) - 1)
    return depth


def _topological(nodes: GraphMap, places: Sequence[int]) -> list[int]:
    """The places, producers first; a file whose nodes are in another order is drawn, too."""
    missing = {place: len(nodes[place].above) for place in places}
    consumers: dict[int, list[int]] = {place: [] for place in places}
    for place in places:
        for other in nodes[place].above:
            consumers[other].append(place)
    order = [place for place in places if not missing[place]]
    for place in order:  # grows
        for consumer in consumers[place]:
            missing[consumer] -= 1
            if not missing[consumer]:
                order.append(consumer)
    return order


def _ordered(nodes: GraphMap, found: list[list[int]]) -> list[list[int]]:
    """Each column in the order of the rows that its nodes read from, so that branches stay apart."""
    row: dict[int, int] = {}
    for column in found:
        column.sort(
            key=lambda place: min((row[other] for other in nodes[place].above if other in row), default=0)
        )
        row.update((place, index) for index, place in enumerate(column))
    return found


def width_of_bands(found: Sequence[Sequence[int]]) -> int:
    """The least width of a band, in cells, with which the map is about twice as wide as high."""
    if len(found) <= _WIDTHS[0]:
        return max(1, len(found))
    for width in _WIDTHS:
        if _height(found, width) <= _FLAT * width:
            break
    return min(width, len(found))


def _height(found: Sequence[Sequence[int]], width: int) -> int:
    bands = [found[start : start + width] for start in range(0, len(found), width)]
    return sum(max(map(len, band)) + BAND_GAP for band in bands) - BAND_GAP if bands else 0


def lay_out(found: Sequence[Sequence[int]], width: int) -> Layout:
    """The cells of all columns, in bands of this width; in a band, columns are centred on one line.

    >>> lay_out([[0], [1, 2], [3]], 2).cells
    [(0, 0), (1, 0), (1, 1), (0, 3)]
    """
    cells = [(0, 0)] * sum(map(len, found))
    top = 0
    for start in range(0, len(found), width):
        band = found[start : start + width]
        height = max(map(len, band))
        for x, column in enumerate(band):
            inset = (height - len(column)) // 2
            for y, place in enumerate(column):
                cells[place] = (x, top + inset + y)
        top += height + BAND_GAP
    return Layout(cells, width, max(0, top - BAND_GAP))
