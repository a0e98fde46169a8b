"""A linear tensor that several nodes read, all of which could absorb it, is worth absorbing only if all of them do.

A BatchNormalization read by two 1x1 Convs, a Pad shared by two Convs, `t + bn(t)`: folding it into one reader alone
saves nothing, because it is still computed for the other. So it is tried as one step: let every reader look through
it, cover their regions again, and keep the result if the whole got cheaper. Where each region is one form of tensors
that exist anyway, as in `x + f(x)`, it suffices to put what the tensor is into that form. Regions larger than `REGION`
nodes and tensors with more than `READERS` readers are left alone, which keeps the search linear. So are forms of more
than `SHARED` nested kernels, until what is inside them is written: if several readers take in a form, and one of these
is the next to be taken in, each link would double what is evaluated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.planner.candidates import Candidate, Entry, stacked
from onnx_repfuse.planner.compose import inline
from onnx_repfuse.planner.cost import Price
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.records.report import Kind

__all__ = ["expose"]

READERS = 16
REGION = 64
TRIES = 2
SHARED = 32


def expose(cover: Cover, changed: set[str] | None = None) -> None:
    """Extend the cover by joint steps, in topological order; only where regions of these roots take part."""
    roots = cover.regions.roots
    regions: dict[str, list[str]] = {}
    for name in cover.lifts:
        regions.setdefault(roots[name], []).append(name)
    for name in list(cover.lifts):
        if _candidate(cover, name):
            touched = _touched(cover, name)
            if changed is None or roots[name] in changed or not changed.isdisjoint(touched):
                _try(cover, name, touched, regions)


def _touched(cover: Cover, name: str) -> list[str]:
    """The roots of the regions that read a tensor."""
    consumers = cover.context.scope.consumers[name]
    outputs = (t.name for consumer in consumers for t in consumer.outputs)
    return list(dict.fromkeys(cover.regions.roots[output] for output in outputs if output in cover.lifts))


def _candidate(cover: Cover, name: str) -> bool:
    scope = cover.context.scope
    if (
        cover.regions.is_private(name)
        or name in scope.outputs
        or name in scope.captured
        or name in cover.banned
    ):
        return False
    consumers = scope.consumers.get(name, [])
    if not 1 <= len(consumers) <= READERS or len(cover.lifts[name].node.outputs) != 1:
        return False
    if cover.entries[name].own.macs:
        return False
    return all(
        any(t.name in cover.lifts for t in r.outputs)
        and all(
            any(o.name == name for o in cover.lifts[t.name].operands)
            for t in r.outputs
            if t.name in cover.lifts
        )
        and all(t.name in cover.lifts for t in r.outputs if scope.is_used(t.name))
        for r in consumers
    )


def _try(cover: Cover, name: str, touched: list[str], regions: dict[str, list[str]]) -> None:
    names = [n for root in touched for n in regions[root]]
    if len(names) > REGION or name in names:
        return
    entry = cover.entries[name]
    before = entry.best.cost + sum(cover.entries[root].best.cost for root in touched)
    saved = {n: cover.entries[n] for n in names}
    limit = reduce(Price.plus, (saved[root].best for root in touched), entry.best)
    nodes = entry.original.nodes + sum(saved[root].original.nodes for root in touched)
    limit = limit._replace(nodes=nodes)
    for candidate in entry.candidates[:TRIES]:
        if sum(term.kernel.size for term in candidate.form.terms) > SHARED:
            continue
        cover.look_through(name, candidate)
        for solve in (_put_in, _cover_again):
            found = solve(cover, name, touched, names)
            after = reduce(Price.plus, (cover.entries[root].best for root in touched), candidate.setup)
            if found and after.improves(before, limit) and not _still_read(cover, name, touched):
                return
            cover.entries.update(saved)
        cover.look_through(name, None)


def _put_in(cover: Cover, name: str, touched: list[str], names: list[str]) -> bool:
    """Put what `name` is in its place, if all regions are computed straight from what exists anyway."""
    inner = cover.exposed[name]
    for root in touched:
        entry = cover.entries[root]
        outer = entry.choice
        if outer is None or entry.candidates[:1] != [outer] or not outer.leaves:
            return False  # something else is cheaper, and may be allowed now
        form = inline(outer.form, name, inner.form, cover.measures.size)
        if form is None:
            return False
        candidate = stacked(outer, inner, form, outer.setup)
        if inner.convolutions and _convolves(outer, name):
            candidate = replace(candidate, roles=candidate.roles | {Kind.SEQUENCE})
        price = cover.price(cover.lifts[root], candidate)
        if price is None or not cover.allowed(candidate.roles):
            return False
        original = entry.original.plus(cover.entries[name].original)
        cover.entries[root] = Entry(price, original, entry.own, candidate, [candidate])
    return True


def _convolves(candidate: Candidate, name: str) -> bool:
    """Whether it reads a tensor by a convolution, not only channel by channel."""
    read = (term.kernel for term in candidate.form.terms if term.source == name)
    return candidate.convolutions and not all(isinstance(kernel, Vector) for kernel in read)


def _cover_again(cover: Cover, name: str, touched: list[str], names: list[str]) -> bool:
    """Cover the regions anew: in every other case."""
    cover.solve(names)
    return True


def _still_read(cover: Cover, name: str, touched: list[str]) -> bool:
    """Whether any chosen way of computing the regions reads `name` itself."""
    pending = list(touched)
    while pending:
        root = pending.pop()
        if root not in cover.entries:
            continue
        reads = cover.reads(root)
        if name in reads:
            return True
        pending.extend(n for n in reads if cover.regions.is_private(n))
    return False
