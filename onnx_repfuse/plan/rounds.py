"""Rounds of covering until nothing gets cheaper, and what was done and not done.

A fold of a later round that absorbs what an earlier one made is one fold to the user: `Made` keeps the original
nodes behind every new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.emit import emit
from onnx_repfuse.graph.frames import FLOATS, Frame, frames
from onnx_repfuse.graph.lift import Context, Declined, Lifted
from onnx_repfuse.graph.rewrite import drop_dead, needed_nodes, put, rename
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.options import Options
from onnx_repfuse.plan.activations import Activation, activations
from onnx_repfuse.plan.candidates import Tile, chief
from onnx_repfuse.plan.cost import cost_model
from onnx_repfuse.plan.cover import Cover
from onnx_repfuse.plan.idioms import protected
from onnx_repfuse.plan.joint import expose
from onnx_repfuse.plan.lifting import Lifting, lift_all
from onnx_repfuse.plan.refusals import refusals
from onnx_repfuse.plan.tiling import tiles
from onnx_repfuse.report.record import Kind, Refusal

__all__ = ["Made", "Planned", "cover_scope", "originals", "plan_scope"]

SOURCES = 4  # tensors a fold may read if it grew over several rounds
ROUNDS = 64  # an alarm, not a limit: integer costs fall in every round


@dataclass(eq=False)
class Made:
    """One fold.

    Attributes:
        root: the tensor that is computed otherwise.
        absorbed: original nodes that went, in topological order.
        created: the nodes that came and are still there.
        roles: kinds of what was absorbed.
        macs_before, macs_after: multiply-adds.
        groups: what several of the absorbed nodes were lifted as together.
        alias: where nothing was created, the tensor that readers of the root read now.
    """

    root: str
    absorbed: list[gs.Node]
    created: list[gs.Node]
    roles: frozenset[Kind]
    macs_before: int
    macs_after: int
    groups: tuple[Lifted, ...] = ()
    alias: str = ""

    @property
    def kind(self) -> Kind:
        """The chief kind."""
        return chief(self.roles)


@dataclass(eq=False)
class Planned:
    """A scope after planning: its nodes are the new ones. `aliases` are tensors that became another one's name."""

    scope: Scope
    folds: list[Made] = field(default_factory=list)
    aliases: dict[str, Made] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def originals(
    planned: Planned, made: Made, proto: onnx.GraphProto | onnx.FunctionProto
) -> list[onnx.NodeProto]:
    """The nodes a fold absorbed, as they were; and those that became names of what it reads now."""
    anchor = planned.scope.anchor
    found = {anchor[id(node)] for node in made.absorbed}
    pending = [proto.node[position] for position in found]
    while pending:
        for name in pending.pop().input:
            below = planned.aliases.get(name)
            fresh = {anchor[id(node)] for node in below.absorbed} - found if below is not None else set()
            found |= fresh
            pending.extend(proto.node[position] for position in fresh)
    return [proto.node[position] for position in sorted(found)]


def plan_scope(
    scope: Scope,
    options: Options,
    banned: frozenset[str] = frozenset(),
    known: dict[str, Frame] | None = None,
) -> Planned:
    """Fold what can be folded in one scope; `banned` names roots that must stay as they are, `known` are its frames."""
    result = Planned(scope)
    alive = needed_nodes(scope)
    order = {id(node): i for i, node in enumerate(scope.nodes)}
    owners: dict[int, Made] = {}
    if options.allows(Kind.ACTIVATION):
        _write_activations(scope, activations(scope, _kept(options), banned), result, owners)
        if owners:
            drop_dead(scope, alive | set(owners))
            known = None
    previous: Round | None = None
    for _ in range(ROUNDS):
        current = _round(scope, options, banned, previous, known)
        found = tiles(current.cover)
        wide = frozenset(tile.root for tile in found if _is_wide(scope, tile, owners))
        if wide:
            banned |= wide
            previous = None
            continue
        if not found:
            declined = [(node, one) for node, one, _ in current.lifted if isinstance(one, Declined)]
            result.refusals = refusals(scope, current.cover, declined)
            return result
        _apply(scope, current.cover, found, result, owners, order)
        drop_dead(scope, alive | set(owners))
        previous, known = current, None
    result.notes.append(f"planning stopped after {ROUNDS} rounds; please report this model")
    return result


def cover_scope(scope: Scope, options: Options) -> Cover:
    """What the planner weighs in a scope as it is."""
    return _round(scope, options, frozenset(), None, None).cover


@dataclass(eq=False)
class Round:
    """What one round found, for the next one to build upon.

    Attributes:
        cover: of the scope as it was.
        lifted: every output of every node that may change, and what it is.
        producer, readers: of each tensor, as they were.
    """

    cover: Cover
    lifted: list[Lifting]
    producer: dict[str, gs.Node]
    readers: dict[str, list[gs.Node]]


def _round(
    scope: Scope,
    options: Options,
    banned: frozenset[str],
    previous: Round | None,
    known: dict[str, Frame] | None,
) -> Round:
    """Lift every node, cover the scope, look for joint steps; where nothing changed, the last round stands."""
    context = Context(scope, frames(scope) if known is None else known, protected(scope))
    changed = _changed(scope, previous) if previous else set()
    before = (previous.cover.context, previous.lifted) if previous else None
    lifted = lift_all(context, _kept(options), before, changed)
    lifts = {name: found for _, found, name in lifted if isinstance(found, Lifted)}
    model = cost_model(options.cost)
    cover = Cover(context, lifts, model, lambda roles: options.allows(chief(roles)), banned)
    touched = cover.resume(previous.cover, changed) if previous else None
    cover.solve(name for name in lifts if touched is None or cover.roots[name] in touched)
    expose(cover, touched)
    return Round(cover, lifted, scope.producer, scope.readers)


def _changed(scope: Scope, previous: Round) -> set[str]:
    """The tensors that others make or read than before."""

    def readers(of: dict[str, list[gs.Node]], name: str) -> list[int]:
        return list(map(id, of.get(name, ())))

    names = {*scope.producer, *scope.readers, *previous.producer, *previous.readers}
    return {
        name
        for name in names
        if scope.producer.get(name) is not previous.producer.get(name)
        or readers(scope.readers, name) != readers(previous.readers, name)
    }


def _write_activations(
    scope: Scope, found: Iterable[Activation], result: Planned, owners: dict[int, Made]
) -> None:
    replaced: dict[int, list[gs.Node]] = {}
    for one in found:
        fold = Made(one.root, one.absorbed, one.created, frozenset((Kind.ACTIVATION,)), 0, 0)
        replaced[id(one.place)] = one.created
        result.folds.append(fold)
        owners.update((id(node), fold) for node in one.created)
    put(scope, replaced)


def _kept(options: Options) -> Callable[[gs.Node], bool]:
    patterns = options.keep
    return lambda node: any(fnmatchcase(node_name(node), pattern) for pattern in patterns)


def _apply(
    scope: Scope,
    cover: Cover,
    tiles: list[Tile],
    result: Planned,
    owners: dict[int, Made],
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
    put(scope, replaced)
    rename(scope, aliases)


def _is_wide(scope: Scope, tile: Tile, owners: dict[int, Made]) -> bool:
    """Whether it would join earlier folds into one of too many sources to prove or to read."""
    nodes = [n for n in tile.absorbed if id(n) not in owners]
    for made in {id(owners[id(n)]): owners[id(n)] for n in tile.absorbed if id(n) in owners}.values():
        nodes += made.absorbed
    if len(nodes) <= len(tile.absorbed):
        return False
    made_here = {t.name for node in nodes for t in node.outputs}
    read = {t.name for node in nodes for t in node.inputs} - made_here
    return sum(1 for name in read if name and name not in scope.constants) > SOURCES


def _take_over(scope: Scope, tile: Tile, owners: dict[int, Made]) -> gs.Node | None:
    """Give the name of a root that is only its source to the source, if we made that and nobody else reads it.

    Returns the node that makes it.
    """
    steps = tile.written.steps
    if len(steps) != 1 or steps[0].op != "Identity":
        return None
    name = str(steps[0].inputs[0])
    producer = scope.producer.get(name)
    if producer is None or id(producer) not in owners or len(scope.readers.get(name, [])) != 1:
        return None
    if name in scope.outputs or name in scope.captured or len(producer.outputs) != 1:
        return None
    producer.outputs[0].name = tile.root
    return producer


def _data_type(scope: Scope, context: Context, tile: Tile) -> int:
    """That of the root or, where inference gave up (behind an If), of any tensor of the tile: they are all alike.

    Parameters of a BatchNormalization come last, as they may be of another type than its data.
    """
    inputs = [t.name for n in tile.absorbed for t in n.inputs[: 1 if n.op == "BatchNormalization" else None]]
    parameters = [t.name for n in tile.absorbed if n.op == "BatchNormalization" for t in n.inputs[1:]]
    for name in (tile.root, *(t.name for n in tile.absorbed for t in n.outputs), *inputs, *parameters):
        frame = context.frame(name)
        found = scope.data_type(name) or (frame.data_type if frame else 0)
        if found in FLOATS:
            return found
    return onnx.TensorProto.FLOAT


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


def _is_inside(made: Made, node: gs.Node, name: str) -> bool:
    """Whether a tensor is one that a fold made on its way."""
    return made.root != name and any(tensor.name == name for tensor in node.outputs)


def _note(
    tile: Tile,
    nodes: list[gs.Node],
    taken: gs.Node | None,
    result: Planned,
    owners: dict[int, Made],
    order: dict[int, int],
    alias: str,
) -> Made:
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
    fold = Made(
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
