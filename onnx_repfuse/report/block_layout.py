"""Where the boxes and arrows of a small graph go: layers from top to bottom, long edges around the boxes.

The classic steps (Sugiyama): a layer per longest path, a dummy in each layer that a long edge crosses, a few
sweeps that order each layer by the mean place of its neighbours, then coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_repfuse.records.report import NodeRef
from onnx_repfuse.report.formatting import clean

__all__ = ["LIMIT", "Box", "Picture", "draw"]

LIMIT = 80
_LETTER, _HEIGHT, _PILL, _GAP_X, _GAP_Y, _DUMMY, _MARGIN = 6.7, 38, 24, 14, 26, 10, 6
_LONGEST = 30
_SWEEPS = 4


@dataclass
class Box:
    """A node, or (op "") a tensor at the border of the block; or (width 10, no text) a bend of an edge."""

    op: str
    label: str
    name: str
    layer: int = 0
    x: float = 0.0
    width: float = _DUMMY
    height: float = 0.0
    above: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """Boxes as [x, y, width, height, op, label, name]; edges and their heads as SVG paths."""

    width: int
    height: int
    boxes: list[list[float | str]]
    edges: list[str]
    heads: list[str]

    def compact(self) -> dict[str, object]:
        """As the page's script reads it."""
        return {"w": self.width, "h": self.height, "n": self.boxes, "e": self.edges, "a": self.heads}


def draw(nodes: Sequence[NodeRef], sources: Sequence[str], output: str) -> Picture | None:
    """Lay a block out; None if it has more than LIMIT nodes."""
    if len(nodes) > LIMIT or len(sources) > LIMIT:
        return None
    boxes = _connect(nodes, sources, output)
    layers = _layers(boxes)
    _order(boxes, layers)
    return _place(boxes, layers)


def _connect(nodes: Sequence[NodeRef], sources: Sequence[str], output: str) -> list[Box]:
    boxes: list[Box] = []
    made: dict[str, int] = {}

    def tensor(name: str) -> int:
        if name not in made:
            made[name] = len(boxes)
            boxes.append(_box("", clean(name), clean(name)))
        return made[name]

    produced = {name for node in nodes for name in node.outputs if name not in node.inputs}
    for name in sources:
        if name not in produced:
            tensor(name)
    for node in nodes:
        above = [tensor(name) for name in dict.fromkeys(node.inputs) if name]
        index = len(boxes)
        boxes.append(_box(clean(node.op), clean(node.label), clean(node.name)))
        boxes[index].above = above
        made.update((name, index) for name in node.outputs)
    last = [len(boxes) - 1] if nodes else [made[name] for name in sources[:1] if name in made]
    ends = [made[output]] if output in made and output not in sources else last
    boxes.append(_box("", clean(output), clean(output)))
    boxes[-1].above = ends
    return boxes


def _box(op: str, label: str, name: str) -> Box:
    longest = max(len(_short(op)), len(_short(label)), 4)
    return Box(op, _short(label), name, width=longest * _LETTER + 18, height=_HEIGHT if op else _PILL)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2 - 1]}\u2026{text[-_LONGEST // 2 :]}"


def _layers(boxes: list[Box]) -> list[list[int]]:
    """Set layers, insert dummies; the boxes come in topological order."""
    for box in boxes:
        box.layer = max((boxes[index].layer + 1 for index in box.above), default=0)
    boxes[-1].layer = max(box.layer for box in boxes[:-1]) + 1 if len(boxes) > 1 else 0
    for box in boxes[:]:
        for slot, index in enumerate(box.above):
            for layer in range(boxes[index].layer + 1, box.layer):
                boxes.append(Box("", "", "", layer, above=[index]))
                index = len(boxes) - 1
            box.above[slot] = index
    layers: list[list[int]] = [[] for _ in range(max(box.layer for box in boxes) + 1)]
    for index, box in enumerate(boxes):
        layers[box.layer].append(index)
    return layers


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

    above = [box.above for box in boxes]
    for _ in range(_SWEEPS):
        for layer in layers[1:]:
            sort(layer, above)
        for layer in layers[-2::-1]:
            sort(layer, below)


def _place(boxes: list[Box], layers: list[list[int]]) -> Picture:
    widths = [sum(boxes[i].width for i in layer) + _GAP_X * (len(layer) - 1) for layer in layers]
    widest = max(widths)
    for layer, width in zip(layers, widths, strict=True):
        # spread a narrow layer a little, so that branches stay below each other
        spare = (widest - width) / (len(layer) + 1)
        x = spare
        for index in layer:
            boxes[index].x = x + boxes[index].width / 2
            x += boxes[index].width + _GAP_X + spare
    tops, y = [], float(_MARGIN)
    for layer in layers:
        height = max(boxes[i].height for i in layer) or _DUMMY
        tops.append((y, height))
        y += height + _GAP_Y

    def middle(index: int) -> float:
        top, height = tops[boxes[index].layer]
        return top + height / 2

    shapes: list[list[float | str]] = []
    edges, heads = [], []
    for index, box in enumerate(boxes):
        x, at = round(box.x + _MARGIN), middle(index)
        top, bottom = _span(box, tops)
        if box.height:
            left = round(box.x - box.width / 2 + _MARGIN)
            shapes.append([left, round(at - box.height / 2), round(box.width), round(box.height),
                           box.op, box.label, box.name])  # fmt: skip
        for other in box.above:
            start = _span(boxes[other], tops)[1]
            tip = top - 5 if box.height else top
            half = round((start + tip) / 2)
            tail = "" if box.height else f"V{bottom}"
            edges.append(f"M{round(boxes[other].x + _MARGIN)} {start}C{round(boxes[other].x + _MARGIN)} {half} "
                         f"{x} {half} {x} {tip}{tail}")  # fmt: skip
        if box.height and box.above:
            heads.append(f"M{x - 4} {top - 6}h8l-4 6z")
    return Picture(round(widest + 2 * _MARGIN), round(y - _GAP_Y + _MARGIN), shapes, edges, heads)


def _span(box: Box, tops: list[tuple[float, float]]) -> tuple[int, int]:
    """Where an edge enters and leaves; a bend is as high as its layer, to pass straight between the boxes."""
    top, height = tops[box.layer]
    inset = (height - box.height) / 2 if box.height else 0.0
    return round(top + inset), round(top + height - inset)
