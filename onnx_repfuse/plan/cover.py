"""Which tensors to compute how: a dynamic program over the lifted nodes of a scope.

A tensor that one node reads and nobody else sees is *private*: its reader may look through it. In topological
order every lifted tensor gets a few candidate forms - its own operator applied to the candidates of its private
operands - and the cheapest way to compute it: keep the node, or write one of the forms. Where a private tensor
ends up inside a form it is not computed at all.

Bounds: at most `KEEP` candidates a tensor, at most `PRODUCT` combinations an operator; forms of more than
`form.MAX_TERMS` terms are cut. So time is linear in the number of nodes. A form is taken only if multiply-adds, nodes
and convolutions do not rise and the cost falls strictly; with integer costs that makes the fixed point end.

No kernel is read here: forms carry kernels that compute themselves later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.form import Form, apply, identity
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.lift import Context, Lifted, Operand
from onnx_repfuse.plan.cost import CostModel
from onnx_repfuse.plan.lowering import Written, lower
from onnx_repfuse.report.record import Kind

__all__ = ["Candidate", "Cover", "Entry", "Tile", "chief"]

KEEP = 4
PRODUCT = 25
UNKNOWN_POSITIONS = 1 << 12

_PRIORITY = (
    Kind.TRANSPOSE,
    Kind.MATMUL,
    Kind.COMMUTE,
    Kind.CONCAT,
    Kind.POOL,
    Kind.PAD,
    Kind.SEQUENCE,
    Kind.BRANCHES,
    Kind.AFFINE,
)


def chief(roles: Iterable[Kind]) -> Kind:
    """The one kind a fold is reported as."""
    present = set(roles)
    return next((kind for kind in _PRIORITY if kind in present), Kind.AFFINE)


class Price(NamedTuple):
    """What is paid for a tensor: picoseconds, multiply-adds, nodes, convolutions."""

    cost: int = 0
    macs: int = 0
    nodes: int = 0
    convolutions: int = 0

    def plus(self, other: Price) -> Price:
        """Both together."""
        return Price(*(a + b for a, b in zip(self, other, strict=True)))

    def improves(self, cost: int, limit: Price) -> bool:
        """Cheaper than `cost`, and nothing else above `limit`."""
        return self.cost < cost and all(a <= b for a, b in zip(self[1:], limit[1:], strict=True))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A form a tensor may be computed by.

    Attributes:
        form: over materialized tensors.
        setup: of its private sources.
        roles: kinds of what it absorbs; nodes: how many nodes it absorbs.
        leaves: all its sources are tensors that exist anyway.
    """

    form: Form
    setup: Price
    roles: frozenset[Kind]
    nodes: int
    leaves: bool
    convolutions: bool


Option = tuple[Form, Candidate | None, Price]


@dataclass(eq=False)
class Entry:
    """The cheapest way to compute a tensor, and what its reader may look through.

    `own` is the node as it is, `original` the node and all private nodes below it, `best` the choice.
    """

    best: Price
    original: Price
    own: Price
    choice: Candidate | None = None
    written: Written | None = None
    candidates: list[Candidate] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Tile:
    """A tensor to be computed by other nodes: `absorbed` go, `written` come."""

    root: str
    lifted: Lifted
    form: Form
    written: Written
    absorbed: tuple[gs.Node, ...]
    roles: frozenset[Kind]
    saving: int
    macs_before: int
    macs_after: int


@dataclass(eq=False)
class Cover:
    """The program's state for one scope and round."""

    context: Context
    lifts: dict[str, Lifted]
    model: CostModel
    allowed: Callable[[frozenset[Kind]], bool]
    banned: frozenset[str] = frozenset()
    entries: dict[str, Entry] = field(default_factory=dict)
    inexact: dict[str, list[tuple[Inexact, str]]] = field(default_factory=dict)
    exposed: dict[str, Form] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)

    def solve(self, names: Iterable[str]) -> None:
        """Fill `entries` for lifted tensors, in topological order."""
        for name in names:
            self.entries[name] = self._entry(self.lifts[name])

    def is_private(self, name: str) -> bool:
        """One reader, and that reader has one output anybody uses: the reader may look through."""
        scope = self.context.scope
        if not scope.is_private(name):
            return False
        reader = scope.readers[name][0]
        return len(reader.outputs) == 1 or sum(1 for t in reader.outputs if self._used(t.name)) == 1

    def _used(self, name: str) -> bool:
        scope = self.context.scope
        return bool(scope.readers.get(name)) or name in scope.outputs or name in scope.captured

    def elements(self, name: Hashable) -> int:
        """Assumed elements of a tensor; where nothing is known, a fixed number of positions."""
        found = self.context.scope.elements(str(name))
        if found is not None:
            return max(1, found)
        lifted, frame = self.lifts.get(str(name)), self.context.frame(str(name))
        known = lifted.channels if lifted else frame.channels if frame else self.channels.get(str(name), 1)
        return UNKNOWN_POSITIONS * known

    def size(self, name: Hashable, rank: int) -> tuple[int, ...] | None:
        return self.context.size(str(name), rank)

    def write(self, lifted: Lifted, form: Form, *, norm: bool) -> Written | None:
        """Lower a form of `lifted`'s output."""
        return lower(
            form,
            self.model,
            elements=self.elements,
            channels=lambda source: self.channels[str(source)],
            out_elements=self.elements(lifted.output),
            norm=norm,
            matrix=lambda source: self.context.rank(str(source)) == 2,
        )

    def _keep(self, lifted: Lifted) -> Price:
        """The node as it is."""
        out = self.elements(lifted.output)
        moved = sum(self.elements(operand.name) for operand in lifted.operands) + out
        geometry = lifted.terms[0].kernel.geometry
        if lifted.node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            positions = (self.elements(lifted.operands[0].name) if geometry.transposed else out) // (
                geometry.c_in if geometry.transposed else geometry.c_out
            )
            macs = geometry.macs(max(1, positions))
            return Price(self.model.convolution(geometry, macs, moved), macs, 1, 1)
        if lifted.node.op == "Split":
            return Price(0, 0, 1)
        if lifted.node.op == "Slice":
            return Price(self.model.elementwise(2 * out, 0), 0, 1)
        if lifted.node.op == "AveragePool":
            taps = geometry.macs(max(1, out // geometry.c_out))
            return Price(self.model.elementwise(moved) + taps * self.model.arithmetic, 0, 1)
        operations = {"BatchNormalization": 2, "Concat": 0, "Identity": 0, "Pad": 0}
        return Price(self.model.elementwise(moved, operations.get(lifted.node.op, 1)), 0, 1)

    def _options(self, operand: Operand) -> list[Option]:
        """What an operand may be replaced by: (form, candidate, price); itself comes first."""
        self.channels[operand.name] = operand.channels
        itself = identity(operand.name, operand.channels, operand.layout)
        entry = self.entries.get(operand.name)
        exposed = self.exposed.get(operand.name)
        if exposed is not None:
            return [(exposed, _free(exposed), Price())]  # whoever still reads it ends the joint step
        if entry is None or not self.is_private(operand.name):
            return [(itself, None, Price())]
        result: list[Option] = [(itself, None, entry.best)]
        for candidate in entry.candidates:
            form = candidate.form
            if form.layout == operand.layout and form.channels == operand.channels:
                result.append((form, candidate, candidate.setup))
        return result

    def _entry(self, lifted: Lifted) -> Entry:
        options = [self._options(operand) for operand in lifted.operands]
        own = self._keep(lifted)
        below = [
            self.entries[o.name]
            for o in lifted.operands
            if o.name in self.entries and self.is_private(o.name)
        ]
        best = reduce(Price.plus, (e.best for e in below), own)
        if any(operand.name in self.exposed for operand in lifted.operands):
            best = best._replace(cost=best.cost + 1)  # a form that no longer reads it wins a tie
        entry = Entry(best, reduce(Price.plus, (e.original for e in below), own), own)
        ranked: list[tuple[int, Candidate]] = []
        for combination in _combinations(options):
            candidate = self._candidate(lifted, combination)
            if candidate is None:
                continue
            written = self.write(lifted, candidate.form, norm=self._norm(lifted, candidate))
            if written is None:
                continue
            price = candidate.setup.plus(Price(written.cost, written.macs, *written.count))
            ranked.append((price.cost, candidate))
            if (
                price.improves(entry.best.cost, entry.original)
                and self.allowed(candidate.roles)
                and lifted.output not in self.banned
            ):
                entry.best, entry.choice, entry.written = price, candidate, written
        entry.candidates = _prune(ranked)
        return entry

    def _norm(self, lifted: Lifted, candidate: Candidate) -> bool:
        return lifted.node.op == "BatchNormalization" or (
            Kind.AFFINE in candidate.roles and self._has_norm(lifted)
        )

    def _has_norm(self, lifted: Lifted) -> bool:
        """Whether a BatchNormalization stands right before, through per-channel operators."""
        for _ in range(8):
            producer = self.context.scope.producer.get(lifted.operands[0].name)
            if producer is None or len(lifted.operands) != 1:
                return False
            if producer.op == "BatchNormalization":
                return True
            found = self.lifts.get(lifted.operands[0].name)
            if found is None:
                return False
            lifted = found
        return False

    def _candidate(self, lifted: Lifted, combination: tuple[Option, ...]) -> Candidate | None:
        forms = [form for form, _, _ in combination]
        chosen = [candidate for _, candidate, _ in combination]
        rank = lifted.layout[1]
        try:
            form = apply(
                lifted.channels,
                lifted.layout,
                lifted.terms,
                lifted.bias,
                [forms[int(str(t.source))] for t in lifted.terms],
                border=lifted.border,
                size_of=lambda source: self.size(source, rank),
            )
        except Inexact as reason:
            if any(chosen) or lifted.border is not None:
                through = next((o.name for o, c in zip(lifted.operands, chosen, strict=True) if c), "")
                self.inexact.setdefault(lifted.output, []).append((reason, through))
            return None
        if lifted.same_shape and not _proves_shape(form, forms):
            return None
        convolution = lifted.node.op in ("Conv", "Gemm", "MatMul")
        below = any(c.convolutions for c in chosen if c)
        roles = frozenset().union(*(c.roles for c in chosen if c), {lifted.role} if lifted.role else set())
        if convolution and below:
            roles |= {Kind.SEQUENCE}
        return Candidate(
            form,
            reduce(Price.plus, (price for _, _, price in combination), Price()),
            roles,
            1 + sum(c.nodes for c in chosen if c),
            all(not (str(s) in self.entries and self.is_private(str(s))) for s in form.sources),
            convolution or below,
        )

    def tiles(self) -> list[Tile]:
        """The forms chosen, from the tensors that must exist downwards."""
        result: list[Tile] = []
        for name, lifted in self.lifts.items():
            if name not in self.entries or (self.is_private(name) and self._read_by_lifted(name)):
                continue
            pending = [name]
            while pending:
                root = pending.pop()
                entry = self.entries.get(root)
                if entry is None:
                    continue
                lifted = self.lifts[root]
                if entry.choice is None or entry.written is None:
                    pending.extend(o.name for o in lifted.operands if self.is_private(o.name))
                    continue
                sources = {str(s) for s in entry.choice.form.sources}
                absorbed, before = self._between(root, sources)
                pending.extend(s for s in sources if self.is_private(s))
                kept = sum(self.entries[t.outputs[0].name].own.cost for t in absorbed)
                result.append(
                    Tile(
                        root,
                        lifted,
                        entry.choice.form,
                        entry.written,
                        absorbed,
                        entry.choice.roles,
                        kept - entry.written.cost,
                        before,
                        entry.written.macs,
                    )
                )
        return result

    def _read_by_lifted(self, name: str) -> bool:
        reader = self.context.scope.readers[name][0]
        return any(
            t.name in self.entries and any(o.name == name for o in self.lifts[t.name].operands)
            for t in reader.outputs
        )

    def _between(self, root: str, sources: set[str]) -> tuple[tuple[gs.Node, ...], int]:
        """The nodes from `root` down to `sources`, and their multiply-adds."""
        nodes, macs, pending = [], 0, [root]
        while pending:
            name = pending.pop()
            lifted = self.lifts[name]
            nodes.append(lifted.node)
            macs += self.entries[name].own.macs
            pending.extend(o.name for o in lifted.operands if o.name not in sources)
        position = {id(node): i for i, node in enumerate(self.context.scope.nodes)} if len(nodes) > 1 else {}
        return tuple(sorted(nodes, key=lambda n: position.get(id(n), 0))), macs


def _free(form: Form) -> Candidate:
    return Candidate(form, Price(), frozenset(), 0, True, False)


def _combinations(
    options: list[list[Option]],
) -> Iterable[tuple[Option, ...]]:
    """Choices of one option per operand: all of them when they are few, else the uniform ones."""
    count = 1
    for choice in options:
        count *= len(choice)
    if count <= PRODUCT:
        return product(*options)
    deepest = tuple(
        next((o for o in choice if o[1] is not None and o[1].leaves), choice[0]) for choice in options
    )
    first = tuple(choice[min(1, len(choice) - 1)] for choice in options)
    return (tuple(choice[0] for choice in options), deepest, first)


def _prune(ranked: list[tuple[int, Candidate]]) -> list[Candidate]:
    """The cheapest forms, one for each set of sources, and the one that reaches furthest."""
    ranked.sort(key=lambda pair: pair[0])
    result: dict[frozenset[Hashable], Candidate] = {}
    for _, candidate in ranked:
        result.setdefault(frozenset(candidate.form.sources), candidate)
    kept = list(result.values())
    reach = [c for c in kept[KEEP:] if c.leaves]
    return kept[:KEEP] if not reach or any(c.leaves for c in kept[:KEEP]) else [*kept[: KEEP - 1], reach[0]]


def _proves_shape(form: Form, operands: list[Form]) -> bool:
    """Every term of every operand met its like: one source, equal stride and slack, so equal shapes."""
    return all(len(operand.terms) == len(form.terms) for operand in operands)
