"""Tiles written into their scope, and noted as folds.

A fold of a later round that absorbs what an earlier one made is one fold to the user: `PlannedFold` keeps the original
nodes behind every new one.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.edit_points import replace_aliases, replace_nodes
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import Context
from onnx_repfuse.planner.candidates import Tile
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.planner.emit import emit
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["is_wide", "write"]

SOURCES = 4  # tensors a fold may read if it grew over several rounds


def write(
    scope: Scope,
    cover: Cover,
    tiles: list[Tile],
    result: ScopePlan,
    owners: dict[int, PlannedFold],
    order: dict[int, int],
) -> None:
    """Write the tiles into the scope and note them as folds, merged with those they build upon."""
    replaced: dict[int, list[gs.Node]] = {}
    aliases: dict[str, str] = {}
    for tile in tiles:
        node = tile.lifted.node
        taken = _take_over(scope, tile, owners)
        if taken is not None:
            nodes, constants = [], {}
        elif tile.written.steps:
            emission = emit(
                scope,
                tile.root,
                tile.written,
                data_type=_data_type(scope, cover.context, tile),
                name=f"{tile.root}_fused",
            )
            nodes, constants = emission.nodes, emission.constants
        else:
            aliases[tile.root] = str(tile.written.result)
            nodes, constants = [], {}
        _type(scope, cover, tile, nodes)
        replaced[id(node)] = nodes
        scope.constants.update(constants)
        scope.created.update(constants)
        fold = _note(tile, nodes, taken, result, owners, order, aliases.get(tile.root, ""))
        if tile.root in aliases:
            result.aliases[tile.root] = fold
    replace_nodes(scope, replaced)
    replace_aliases(scope, aliases)


def is_wide(scope: Scope, tile: Tile, owners: dict[int, PlannedFold]) -> bool:
    """Whether it would join earlier folds into one of too many sources to prove or to read."""
    nodes = [n for n in tile.absorbed if id(n) not in owners]
    for made in {id(owners[id(n)]): owners[id(n)] for n in tile.absorbed if id(n) in owners}.values():
        nodes += made.absorbed
    if len(nodes) <= len(tile.absorbed):
        return False
    made_here = {t.name for node in nodes for t in node.outputs}
    read = {t.name for node in nodes for t in node.inputs} - made_here
    return sum(1 for name in read if name and name not in scope.constants) > SOURCES


def _take_over(scope: Scope, tile: Tile, owners: dict[int, PlannedFold]) -> gs.Node | None:
    """Give the name of a root that is only its source to the source, if we made that and nobody else reads it.

    Returns the node that makes it.
    """
    steps = tile.written.steps
    if len(steps) != 1 or steps[0].op != "Identity":
        return None
    name = str(steps[0].inputs[0])
    producer = scope.producer.get(name)
    if producer is None or id(producer) not in owners or len(scope.consumers.get(name, [])) != 1:
        return None
    if name in scope.outputs or name in scope.captured or len(producer.outputs) != 1:
        return None
    producer.outputs[0].name = tile.root
    return producer


def _data_type(scope: Scope, context: Context, tile: Tile) -> int:
    """That of the root or, where inference gave up (behind an If), of any tensor of the tile: they are all alike."""
    for name in _typed(tile):
        frame = context.channel_layout(name)
        found = scope.data_type(name) or (frame.data_type if frame else 0)
        if found in FLOAT_FORMATS:
            return found
    return onnx.TensorProto.FLOAT


def _typed(tile: Tile) -> Iterator[str]:
    """Parameters of a BatchNormalization come last, as they may be of another type than its data."""
    yield tile.root
    for node in tile.absorbed:
        yield from (t.name for t in node.outputs)
    for node in tile.absorbed:
        yield from (t.name for t in node.inputs[: 1 if node.op == "BatchNormalization" else None])
    for node in tile.absorbed:
        yield from (t.name for t in node.inputs[1:] if node.op == "BatchNormalization")


def _type(scope: Scope, cover: Cover, tile: Tile, nodes: list[gs.Node]) -> None:
    """Types and sizes of the tensors inside a tile: those of a tensor that was there, with other channels."""
    data_type, _ = scope.types.get(tile.root, (0, None))
    for node, step in zip(nodes, tile.written.steps, strict=False):
        name = node.outputs[0].name
        if name == tile.root:
            continue
        axis, like = step.layout[0], step.like or tile.root
        whole, sized = scope.shape(like), scope.assumed.get(like)
        if whole is not None:
            dims = list(whole)
            dims[axis] = step.channels
            scope.types[name] = (data_type, tuple(dims))
        if sized is not None:
            sizes = list(sized)
            sizes[axis] = step.channels
            scope.assumed[name] = tuple(sizes)


def _is_inside(made: PlannedFold, node: gs.Node, name: str) -> bool:
    """Whether a tensor is one that a fold made on its way."""
    return made.root != name and any(tensor.name == name for tensor in node.outputs)


def _note(
    tile: Tile,
    nodes: list[gs.Node],
    taken: gs.Node | None,
    result: ScopePlan,
    owners: dict[int, PlannedFold],
    order: dict[int, int],
    alias: str,
) -> PlannedFold:
    """A tile as a fold, joined with those whose nodes it absorbs or, at the end, takes over."""
    joined = (*tile.absorbed, *([taken] if taken is not None else []))
    earlier = list({id(owners[id(n)]): owners[id(n)] for n in joined if id(n) in owners}.values())
    gone = {id(node) for node in tile.absorbed}
    absorbed = [n for made in earlier for n in made.absorbed]
    absorbed += [n for n in tile.absorbed if id(n) not in owners]
    created = [n for made in earlier for n in made.created if id(n) not in gone] + nodes
    roles = tile.roles.union(*(made.roles for made in earlier)) if earlier else tile.roles
    inner = next(
        (made.root for made in earlier for n in made.created if _is_inside(made, n, tile.root)), None
    )
    written_anew = sum(macs for node, macs in tile.macs.items() if node in owners)
    fold = PlannedFold(
        inner or tile.root,
        sorted({id(n): n for n in absorbed}.values(), key=lambda n: order[id(n)]),
        created,
        roles,
        sum(m.macs_before for m in earlier) + sum(tile.macs.values()) - written_anew,
        sum(m.macs_after for m in earlier) + tile.written.macs - written_anew,
        (*(g for m in earlier for g in m.groups), *tile.groups),
        alias,
    )
    if earlier:  # two roots may share an earlier fold
        result.folds = [made for made in result.folds if made not in earlier]
    result.folds.append(fold)
    for node in created:
        owners[id(node)] = fold
    return fold
