"""Where the boxes and arrows of a small graph go: layers from top to bottom, long edges around the boxes.

The steps of Sugiyama, Tagawa and Toda (1981): a layer per longest path, a bend in each layer that a long edge crosses,
a few sweeps that order each layer by the mean place of its neighbours, then coordinates, in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_repfuse.records.report import NodeRef
from onnx_repfuse.report.formatting import clean

__all__ = ["MAX_NODES", "Box", "Picture", "Pictures", "draw", "produced"]

MAX_NODES = 80  # more do not fit on a page
_LETTER, _NODE_HEIGHT, _TENSOR_HEIGHT, _GAP_X, _GAP_Y, _BEND_WIDTH, _MARGIN = 6.7, 38, 24, 14, 26, 10, 6
_MAX_LETTERS = 30
_SWEEPS = 4


@dataclass
class Box:
    """A node, or (op "") an input or output of the block, or (height 0) a bend of an edge; x is its middle."""

    op: str = ""
    label: str = ""
    name: str = ""
    above: list[int] = field(default_factory=list)
    layer: int = 0
    width: float = _BEND_WIDTH
    height: float = 0.0
    x: float = 0.0
    top: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class Picture:
    """Boxes as [left, top, width, height, op, label, name]; edges and their heads as SVG paths."""

    width: int
    height: int
    boxes: list[list[float | str]]
    edges: list[str]
    heads: list[str]


class Pictures:
    """The pictures of a page, as its script reads them: those that differ in their texts only share all else."""

    def __init__(self) -> None:
        """None yet."""
        self._shapes: dict[str, int] = {}
        self._pictures: list[list[object]] = []

    def add(self, picture: Picture) -> int:
        """The number of the picture."""
        boxes = [box[:5] for box in picture.boxes]
        shape = {"w": picture.width, "h": picture.height, "b": boxes, "e": picture.edges, "a": picture.heads}
        number = self._shapes.setdefault(json.dumps(shape, separators=(",", ":")), len(self._shapes))
        # (label, name) of each box; "" for a label that is the name
        texts = [text for *_, label, name in picture.boxes for text in ("" if label == name else label, name)]
        self._pictures.append([number, texts])
        return len(self._pictures) - 1

    def data(self) -> str:
        """All of them as JSON."""
        shapes, pictures = ",".join(self._shapes), json.dumps(self._pictures, separators=(",", ":"))
        return f'{{"shapes":[{shapes}],"pictures":{pictures}}}'


def draw(nodes: Sequence[NodeRef], sources: Sequence[str], output: str) -> Picture | None:
    """Lay a block out; None if it has more than MAX_NODES nodes."""
    if max(len(nodes), len(sources)) > MAX_NODES:
        return None
    boxes = _connect(_producers_first(nodes), sources, output)
    layers = _layers(boxes)
    _order(boxes, layers)
    return _place(boxes, layers)


def produced(nodes: Sequence[NodeRef]) -> set[str]:
    """The tensors that nodes compute.

    A node whose output has the name of its own input is what remains of a removed no-op: the name is the input's.
    """
    return {name for node in nodes for name in node.outputs if name not in node.inputs}


def _producers_first(nodes: Sequence[NodeRef]) -> list[NodeRef]:
    """The nodes in topological order: those that a fold creates come in the order in which it made them."""
    ordered: list[NodeRef] = []
    left = list(nodes)
    while left:
        missing = produced(left)
        ready = [node for node in left if missing.isdisjoint(node.inputs)]
        ordered += ready or left
        left = [node for node in left if node not in ready] if ready else []
    return ordered


def _connect(nodes: Sequence[NodeRef], sources: Sequence[str], output: str) -> list[Box]:
    """A box for each input of the block, each node, and last the output."""
    boxes: list[Box] = []
    index_of: dict[str, int] = {}  # tensor -> the box it comes from

    def box_of(tensor: str) -> int:
        if tensor not in index_of:
            index_of[tensor] = len(boxes)
            boxes.append(_box("", tensor, tensor, []))
        return index_of[tensor]

    inside = produced(nodes)
    for name in sources:
        if name not in inside:
            box_of(name)
    for node in nodes:
        above = [box_of(name) for name in dict.fromkeys(node.inputs) if name]
        boxes.append(_box(node.op, node.label, node.name, above))
        index_of.update((name, len(boxes) - 1) for name in node.outputs)
    boxes.append(
        _box("", output, output, _ends(index_of, sources, output, len(boxes) - 1 if nodes else None))
    )
    return boxes


def _ends(index_of: dict[str, int], sources: Sequence[str], output: str, last: int | None) -> list[int]:
    """The box that the output comes from; none if the block reads and computes nothing."""
    if output in index_of and output not in sources:
        return [index_of[output]]
    if last is not None:  # the last node computes it under another name
        return [last]
    return [index_of[name] for name in sources[:1]]


def _box(op: str, label: str, name: str, above: list[int]) -> Box:
    op, label = clean(op), _short(clean(label))
    letters = max(len(_short(op)), len(label), 4)
    return Box(op, label, clean(name), above, width=letters * _LETTER + 18,
               height=_NODE_HEIGHT if op else _TENSOR_HEIGHT)  # fmt: skip


def _short(text: str) -> str:
    if len(text) <= _MAX_LETTERS:
        return text
    return f"{text[: _MAX_LETTERS // 2 - 1]}\u2026{text[-_MAX_LETTERS // 2 :]}"


def _layers(boxes: list[Box]) -> list[list[int]]:
    """Set the layers and insert the bends."""
    for box in boxes:
        box.layer = max((boxes[index].layer + 1 for index in box.above), default=0)
    output = boxes[-1]
    output.layer = max((box.layer + 1 for box in boxes[:-1]), default=0)  # below everything
    for box in boxes[:]:
        box.above = [_bent(boxes, index, box.layer) for index in box.above]
    layers: list[list[int]] = [[] for _ in range(output.layer + 1)]
    for index, box in enumerate(boxes):
        layers[box.layer].append(index)
    return layers


def _bent(boxes: list[Box], index: int, layer: int) -> int:
    """The last bend of an edge from a box down to a layer, or the box itself if no layer is between."""
    for between in range(boxes[index].layer + 1, layer):
        boxes.append(Box(above=[index], layer=between))
        index = len(boxes) - 1
    return index


def _order(boxes: list[Box], layers: list[list[int]]) -> None:
    below: list[list[int]] = [[] for _ in boxes]
    for index, box in enumerate(boxes):
        for other in box.above:
            below[other].append(index)
    place = {index: spot for layer in layers for spot, index in enumerate(layer)}

    def sort(layer: list[int], neighbours: list[list[int]]) -> None:
        def mean(index: int) -> float:
            near = neighbours[index]
            return sum(place[other] for other in near) / len(near) if near else place[index]

        layer.sort(key=mean)
        place.update((index, spot) for spot, index in enumerate(layer))

    # The order of a layer depends on both of its neighbours, so sweep down and up.
    above = [box.above for box in boxes]
    for _ in range(_SWEEPS):
        for layer in layers[1:]:
            sort(layer, above)
        for layer in layers[-2::-1]:
            sort(layer, below)


def _place(boxes: list[Box], layers: list[list[int]]) -> Picture:
    """Give every box its place, and draw."""
    rows = [[boxes[index] for index in layer] for layer in layers]
    width = max(_row_width(row) for row in rows)
    y = float(_MARGIN)
    for row in rows:
        _place_row(row, width)
        height = max(box.height for box in row) or _BEND_WIDTH
        for box in row:
            # A bend is as high as its layer, so that its edge passes straight between the boxes.
            inset = (height - box.height) / 2 if box.height else 0.0
            box.top, box.bottom = round(y + inset), round(y + height - inset)
        y += height + _GAP_Y
    return _drawn(boxes, round(width + 2 * _MARGIN), round(y - _GAP_Y + _MARGIN))


def _drawn(boxes: list[Box], width: int, height: int) -> Picture:
    shapes = [_shape(box) for box in boxes if box.height]
    edges = [_edge(boxes[index], box) for box in boxes for index in box.above]
    heads = [f"M{round(box.x) - 4} {box.top - 6}h8l-4 6z" for box in boxes if box.height and box.above]
    return Picture(width, height, shapes, edges, heads)


def _row_width(row: list[Box]) -> float:
    return sum(box.width + _GAP_X for box in row) - _GAP_X


def _place_row(row: list[Box], width: float) -> None:
    """Spread a narrow layer over the width, so that branches stay below each other."""
    spare = (width - _row_width(row)) / (len(row) + 1)
    x = spare + _MARGIN
    for box in row:
        box.x = x + box.width / 2
        x += box.width + _GAP_X + spare


def _shape(box: Box) -> list[float | str]:
    left = round(box.x - box.width / 2)
    return [left, box.top, round(box.width), round(box.height), box.op, box.label, box.name]


def _edge(start: Box, end: Box) -> str:
    """A curve from one box down to the arrow's head above another, or through a bend."""
    tip = end.top - 5 if end.height else end.top
    half = round((start.bottom + tip) / 2)
    x1, x2 = round(start.x), round(end.x)
    tail = "" if end.height else f"V{end.bottom}"
    return f"M{x1} {start.bottom}C{x1} {half} {x2} {half} {x2} {tip}{tail}"
