"""From a solved cover to tiles: what is computed otherwise, from the tensors that must exist downwards."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.planner.candidates import Entry, Tile
from onnx_repfuse.planner.cover import Cover

__all__ = ["tiles"]


def tiles(cover: Cover) -> list[Tile]:
    """The forms chosen that are needed, each with the nodes it replaces."""
    position = {id(node): i for i, node in enumerate(cover.context.scope.nodes)}
    # of a private tensor, only its reader's: a Sum of thousands is not searched for each of them
    operands = {o.name for name in cover.entries for o in cover.lifts[name].operands}
    result: list[Tile] = []
    seen: set[str] = set()
    swallowed: set[str] = set()
    for name in cover.lifts:
        if name not in cover.entries or name in cover.exposed:
            continue  # an exposed tensor has no reader left
        if name in operands and cover.regions.is_private(name):
            continue  # whoever reads it decides
        pending = [name]
        while pending:
            root = pending.pop()
            entry = cover.entries.get(root)
            if entry is None or root in seen:
                continue
            seen.add(root)
            if entry.choice is None:
                below = {o.name for o in cover.lifts[root].operands}
            else:
                result.append(_tile(cover, root, entry, position))
                below = {str(source) for source in entry.choice.form.sources}
                swallowed.add(entry.choice.swallowed)
            pending.extend(sorted(one for one in below if cover.regions.is_private(one)))
    return [tile for tile in result if tile.root not in swallowed]


def _tile(cover: Cover, root: str, entry: Entry, position: dict[int, int]) -> Tile:
    choice = entry.choice
    assert choice is not None
    written = cover.write(cover.lifts[root], choice)
    assert written is not None
    sources = {str(source) for source in choice.form.sources}
    names = _between(cover, root, sources, choice.swallowed)
    lifts = [cover.lifts[name] for name in names]
    nodes: list[gs.Node] = [node for lifted in lifts for node in (*lifted.inner_nodes, lifted.node)]
    owns = ((cover.lifts[name].node, cover.entries[name].own.macs) for name in names)
    return Tile(
        root,
        cover.lifts[root],
        choice.form,
        written,
        tuple(sorted(nodes, key=lambda node: position[id(node)])),
        tuple(lifted for lifted in lifts if lifted.inner_nodes),
        choice.roles,
        {id(node): macs for node, macs in owns if macs},
    )


def _between(cover: Cover, root: str, sources: set[str], swallowed: str) -> list[str]:
    """The tensors from `root` down to `sources` that only those above them read.

    A form may need less than its nodes read, channels that are sliced away again: what others read stays.
    """
    names: dict[str, None] = {}
    pending = [root]
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names[name] = None
        for operand in cover.lifts[name].operands:
            one = operand.name
            gone = one == swallowed or one in cover.exposed or cover.regions.is_private(one)
            if one not in sources and one in cover.lifts and gone:
                pending.append(one)
    return list(names)
