"""All nodes of a model before and after folding, as a map of it needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["GraphMap", "GraphMaps", "MapNode"]


class MapNode(NamedTuple):
    """A node on the map.

    Attributes:
        name: the node's name, or its first output's when it has none.
        op: the op type.
        scope: as of `Fold`.
        above: places in the map of the nodes that compute what it reads, of its own scope.
        folds: the places in `Report.folds` of the folds that absorbed it, or created it: two may share a node.
        is_changed: whether another change of the model removed it, or made it.
        is_constant: whether it computes from constants alone.
    """

    name: str
    op: str
    scope: str
    above: tuple[int, ...]
    folds: tuple[int, ...] = ()
    is_changed: bool = False
    is_constant: bool = False


GraphMap = tuple[MapNode, ...]


@dataclass(frozen=True)
class GraphMaps:
    """A model twice: as it was when folds were planned, and as it is with all of them."""

    before: GraphMap
    after: GraphMap
