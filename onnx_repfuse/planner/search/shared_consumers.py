"""Joint steps: a linear tensor that several nodes read is absorbed by all of them, or by none.

A BatchNormalization read by two 1x1 Convs, a Pad shared by two Convs, `t + bn(t)`: folding it into one consumer alone
saves nothing, because it is still computed for the other. So it is tried as one step: let every consumer look through
it, cover their regions again, and keep the result if the whole got cheaper. Where each region is one form of tensors
that exist anyway, as in `x + f(x)`, it suffices to put what the tensor is into that form.

The search stays linear, as large regions and tensors of many consumers are left alone. So are forms of many nested
kernels, until these are written: if several consumers absorb a form, and one of them is the next to be absorbed, each
link of such a chain would double what is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.choice import Sampled, taps_of
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.planner.forms.compose import inline
from onnx_repfuse.planner.pricing.cost import NOTHING, Price
from onnx_repfuse.planner.search.candidates import Candidate, Entry, absorbing
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.report import Kind

__all__ = ["absorb_shared_tensors", "is_still_read", "may_be_absorbed"]

MAX_CONSUMERS = 16
MAX_REGION_NODES = 64  # of all regions that read the tensor
MAX_TOGETHER = 16  # tensors that are absorbed in one step
MAX_NESTED_KERNELS = 32


def absorb_shared_tensors(cover: Cover, changed: set[str] | None = None, *, only_now: bool = False) -> None:
    """Extend a solved cover by joint steps, in topological order.

    Args:
        changed: roots of the regions that were solved anew; steps that none of them takes part in are not tried again.
        only_now: try only what could not be tried once the cover is written, see `_may_wait`.
    """
    members = _members(cover)
    left: dict[str, list[str]] = {}  # a tensor that no step absorbed -> the regions that read it
    for name in list(cover.lifts):
        if (only_now and _may_wait(cover, name)) or not may_be_absorbed(cover, name):
            continue
        touched = _roots_of_consumers(cover, name)
        if changed is not None and changed.isdisjoint((cover.regions.roots[name], *touched)):
            continue
        _try(cover, name, {root: members[root] for root in touched})
        if name not in cover.absorbed:
            left[name] = touched
    for names, ends in _groups(left):
        _try_together(cover, names, ends, members)


def _members(cover: Cover) -> dict[str, list[str]]:
    """The tensors of each region, by its root."""
    members: dict[str, list[str]] = {}
    for name in cover.lifts:
        members.setdefault(cover.regions.roots[name], []).append(name)
    return members


def _may_wait(cover: Cover, name: str) -> bool:
    """Whether a tensor may still be absorbed once the cover is written.

    A BatchNormalization may. The one convolution that it becomes with the convolution before it may not.
    """
    choice = cover.entries[name].choice
    return choice is None or len(choice.form.terms) > 1


def may_be_absorbed(cover: Cover, name: str) -> bool:
    """Whether a tensor is cheap to compute, and all its consumers may take its form in."""
    if not _may_go(cover, name) or _would_be_repeated(cover, name):
        return False
    return all(_is_linear_in(cover, consumer, name) for consumer in cover.context.scope.consumers[name])


def _may_go(cover: Cover, name: str) -> bool:
    """Whether a tensor is shared, by few consumers, and nobody outside needs it."""
    scope = cover.context.scope
    if name in cover.banned or scope.is_seen(name) or cover.regions.is_private(name):
        return False
    # an output of a Split goes only together with the others
    is_only_output = len(cover.lifts[name].node.outputs) == 1
    return is_only_output and 1 <= len(scope.consumers.get(name, ())) <= MAX_CONSUMERS


def _would_be_repeated(cover: Cover, name: str) -> bool:
    """Whether each consumer that absorbs it would compute a convolution anew.

    Not where all of them are branches of one region, nor of a factor per channel, which goes into their weights.
    """
    if not cover.entries[name].node.macs:
        return False
    is_factor = all(isinstance(term.kernel, Vector) for term in cover.lifts[name].terms)
    return not is_factor and not _is_read_by_branches(cover, name)


def _is_linear_in(cover: Cover, consumer: gs.Node, name: str) -> bool:
    """Whether all outputs of a consumer that are used were lifted as operators of the tensor."""
    outputs = [tensor.name for tensor in consumer.outputs]
    lifted = [cover.lifts[output] for output in outputs if output in cover.lifts]
    if not lifted or not all(any(operand.name == name for operand in op.operands) for op in lifted):
        return False
    return all(output in cover.lifts for output in outputs if cover.context.scope.is_used(output))


def _is_read_by_branches(cover: Cover, name: str) -> bool:
    """Whether several nodes of one region, and no others, read a tensor."""
    consumers = {id(consumer) for consumer in cover.context.scope.consumers[name]}  # x + x reads x twice
    return len(consumers) > 1 and len(_roots_of_consumers(cover, name)) == 1


def _roots_of_consumers(cover: Cover, name: str) -> list[str]:
    """The roots of the regions that read a tensor."""
    outputs = [tensor.name for consumer in cover.context.scope.consumers[name] for tensor in consumer.outputs]
    return list(dict.fromkeys(cover.regions.roots[output] for output in outputs if output in cover.lifts))


def _try(cover: Cover, name: str, regions: dict[str, list[str]]) -> None:
    """Let regions, given as their roots with their tensors, absorb a tensor that they read, if that pays."""
    names = [member for members in regions.values() for member in members]
    if len(names) > MAX_REGION_NODES or name in names:
        return
    limit = _limit(cover, [name, *regions])
    behind = _computed_from(cover, name, regions)
    before = {member: cover.entries[member] for members in behind.values() for member in members}
    for candidate in _candidates_tried(cover.entries[name].candidates):
        if _nests_too_deep(candidate):
            continue
        cover.absorb(name, candidate)
        for solve in (_inline, _cover_again):
            if solve(cover, name, behind, limit) and _pays(cover, name, list(regions), limit):
                return
            cover.entries.update(before)
        cover.absorb(name, None)


def _pays(cover: Cover, name: str, roots: Sequence[str], limit: Price) -> bool:
    """Whether regions that took a tensor in cost less with it than before, and do without it."""
    price = _sum_of_prices(cover.absorbed[name].setup, cover, roots)
    return price.improves(limit.cost, limit) and not is_still_read(cover, name, roots)


def _candidates_tried(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Few of a tensor's candidates: the cheapest, and the cheapest by which no consumer computes a convolution anew."""
    yield from candidates[:1]
    others = candidates[1:]
    if others:
        yield next((candidate for candidate in others if not candidate.convolves), others[0])


def _groups(left: dict[str, list[str]]) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Tensors that are needed for the same regions alone, in topological order, and the roots of these regions."""
    read_by: dict[str, list[str]] = {}  # a root -> the tensors its region reads
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, touched in left.items():
        for root in touched:
            read_by.setdefault(root, []).append(name)
        if left.keys().isdisjoint(touched):
            groups.setdefault(tuple(touched), []).append(name)
    place = {name: number for number, name in enumerate(left)}
    for ends, names in groups.items():
        found = _with_those_behind(names, ends, left, read_by)
        group = sorted(found.difference(ends), key=place.__getitem__)
        if 1 < len(group) <= MAX_TOGETHER:
            yield group, ends


def _with_those_behind(
    names: list[str], ends: tuple[str, ...], left: dict[str, list[str]], read_by: dict[str, list[str]]
) -> set[str]:
    """Tensors, and those that only they and the regions of `ends` read, as long as there are not too many."""
    found, pending = {*names, *ends}, list(names)
    while pending and len(found) <= MAX_TOGETHER + len(ends):
        for name in read_by.get(pending.pop(), ()):
            if name not in found and found.issuperset(left[name]):
                found.add(name)
                pending.append(name)
    return found


def _try_together(
    cover: Cover, names: Sequence[str], ends: Sequence[str], members: dict[str, list[str]]
) -> None:
    """Let regions absorb several tensors that they share, if that pays though none of them pays alone.

    The Slices of a Haar transform are read by several sums, and these by several others: only without all of them is
    there one Conv.

    Args:
        names: in topological order; read by one another and by the regions of `ends` alone.
        ends: roots.
        members: of each root the tensors of its region.
    """
    touched = [member for root in (*names, *ends) for member in members[root]]
    if len(touched) > MAX_REGION_NODES or not set(ends).isdisjoint(names):
        return
    limit = _limit(cover, [*names, *ends])
    before = {member: cover.entries[member] for member in touched}
    if not _pay_together(cover, names, ends, members, limit):
        cover.entries.update(before)
        for name in names:
            cover.absorb(name, None)


def _pay_together(
    cover: Cover, names: Sequence[str], ends: Sequence[str], members: dict[str, list[str]], limit: Price
) -> bool:
    """Let regions absorb tensors, see `_try_together`; whether they cost less then, and do without them."""
    setup = _absorb_all(cover, names, members)
    if setup is None:
        return False
    for root in ends:
        cover.solve(members[root])
    if any(is_still_read(cover, name, ends) for name in names):
        return False
    return _sum_of_prices(setup, cover, ends).improves(limit.cost, limit)


def _absorb_all(cover: Cover, names: Sequence[str], members: dict[str, list[str]]) -> Price | None:
    """Let the regions around tensors take them in; what these need beside. None if one has no form that may nest."""
    setup = NOTHING
    for name in names:
        cover.solve(members[name])
        candidate = next(iter(cover.entries[name].candidates), None)
        if candidate is None or _nests_too_deep(candidate):
            return None
        setup = setup.plus(candidate.setup)
        cover.absorb(name, candidate)
    return setup


def _nests_too_deep(candidate: Candidate) -> bool:
    """Whether its kernels are computed from so many others that absorbing them again and again takes too long."""
    return sum(term.kernel.size for term in candidate.form.terms) > MAX_NESTED_KERNELS


def _computed_from(cover: Cover, name: str, regions: dict[str, list[str]]) -> dict[str, list[str]]:
    """Of each region the tensors that depend on a tensor: the other ones stay what they are, whatever becomes of it."""
    found = {name}
    for members in regions.values():
        for member in members:
            if any(operand.name in found for operand in cover.lifts[member].operands):
                found.add(member)
    return {root: [member for member in members if member in found] for root, members in regions.items()}


def _limit(cover: Cover, names: Sequence[str]) -> Price:
    """What tensors cost without a step, and what must not rise: macs, nodes, convolutions.

    Nodes are counted as they are in the file, so that a step may write a node again that a region has saved.
    """
    price = _sum_of_prices(NOTHING, cover, names)
    return price._replace(nodes=sum(cover.entries[name].original.nodes for name in names))


def _sum_of_prices(first: Price, cover: Cover, roots: Sequence[str]) -> Price:
    return reduce(Price.plus, (cover.entries[root].best for root in roots), first)


def _inline(cover: Cover, name: str, behind: dict[str, list[str]], limit: Price) -> bool:
    """Put the tensor's form into what was chosen for each region, if that reads only tensors which exist anyway."""
    inner = cover.absorbed[name]
    for root in behind:
        entry = cover.entries[root]
        outer = entry.choice
        if outer is None or entry.candidates[:1] != [outer] or not outer.reads_existing:
            return False  # something else is cheaper, and may be allowed now
        candidate = _inlined(cover, outer, name, inner)
        if candidate is None or not cover.is_allowed(candidate.roles) or cover.is_refused(root, candidate):
            return False
        price = cover.price(cover.lifts[root], candidate)
        if price is None:
            return False
        original = entry.original.plus(cover.entries[name].original)
        cover.entries[root] = Entry(price, original, entry.node, candidate, [candidate])
    return True


def _inlined(cover: Cover, outer: Candidate, name: str, inner: Candidate) -> Candidate | None:
    form = inline(outer.form, name, inner.form, cover.sizes.positions)
    if form is None:
        return None
    candidate = absorbing(outer, inner, form, outer.setup)
    if inner.convolves and _convolves(outer, name):
        return replace(candidate, roles=candidate.roles | {Kind.SEQUENCE})
    return candidate


def _convolves(candidate: Candidate, name: str) -> bool:
    """Whether it reads a tensor by a convolution, not only channel by channel."""
    kernels = [taps_of(term.kernel) for term in candidate.form.terms if term.source == name]
    return candidate.convolves and not all(isinstance(kernel, (Vector, Sampled)) for kernel in kernels)


def _cover_again(cover: Cover, name: str, behind: dict[str, list[str]], limit: Price) -> bool:
    """Cover the regions anew: in every other case. Most steps do not pay, and the first regions tell.

    Of the others only what reads the tensor itself is covered then, so that the user is told where it is not exact.
    """
    price, pays = cover.absorbed[name].setup, True
    for root, members in behind.items():
        for member in members:
            reads = any(operand.name == name for operand in cover.lifts[member].operands)
            if pays or reads:
                cover.solve([member])
            # no form takes the tensor in: then nothing that follows can do without it
            pays = pays and not (reads and not cover.entries[member].candidates)
        price = price.plus(cover.entries[root].best)
        pays = pays and price.improves(limit.cost, limit)
    return pays


def is_still_read(cover: Cover, name: str, roots: Sequence[str]) -> bool:
    """Whether what was chosen for the regions reads the tensor itself somewhere."""
    pending = list(roots)
    while pending:
        root = pending.pop()
        if root not in cover.entries:
            continue
        sources = cover.reads(root)
        if name in sources:
            return True
        pending.extend(source for source in sources if cover.regions.is_private(source))
    return False
