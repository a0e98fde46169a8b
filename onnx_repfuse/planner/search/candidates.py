"""Candidates: the ways to compute a tensor that are weighed, and which of them are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from onnx_repfuse.algebra.affine_form import Form
from onnx_repfuse.lift import Operand
from onnx_repfuse.planner.forms.view_sources import is_viewed_form, tensors_read
from onnx_repfuse.planner.pricing.cost import Price
from onnx_repfuse.records.report import Kind

__all__ = [
    "Candidate",
    "Entry",
    "Option",
    "Way",
    "absorbing",
    "added_up",
    "combinations",
    "few_enough",
    "prune",
    "reported_kind",
    "way_of",
]

MAX_CANDIDATES = 4  # kept of a tensor
MAX_COMBINATIONS = 25  # tried of an operator's options; of more, only uniform ones are
MAX_SUMMED_TERMS = 64  # in the sums that all combinations make; where there are more,
FEW_COMBINATIONS = 4  # are tried

_REPORTED_FIRST = (
    Kind.ACTIVATION,
    Kind.STRIDE,
    Kind.PRODUCT,
    Kind.TRANSPOSE,
    Kind.MATMUL,
    Kind.INDEX,
    Kind.COMMUTE,
    Kind.CONCAT,
    Kind.POOL,
    Kind.PAD,
    Kind.SEQUENCE,
    Kind.BRANCHES,
    Kind.AFFINE,
    Kind.DEAD,
    Kind.CONSTANT,
    Kind.EQUAL,
    Kind.NO_OP,
)


def reported_kind(roles: Iterable[Kind]) -> Kind:
    """The one kind that a fold of these roles is reported as."""
    present = set(roles)
    return next((kind for kind in _REPORTED_FIRST if kind in present), Kind.AFFINE)


@dataclass(eq=False, slots=True)  # not frozen, see `algebra.affine_form`
class Candidate:
    """A form that a tensor may be computed by.

    Attributes:
        form: over tensors that are computed.
        setup: the price of its private sources.
        roles, nodes: kinds and number of the nodes it absorbs.
        reads_existing: all its sources exist anyway, whatever is chosen elsewhere.
        convolves: it absorbs a convolution or a matrix product.
        swallowed: a tensor that is not private, but that nobody needs any more.
        keeps_products: it is written with matrix products where a Conv would be cheaper.
    """

    form: Form
    setup: Price
    roles: frozenset[Kind]
    nodes: int
    reads_existing: bool
    convolves: bool
    swallowed: str = ""
    keeps_products: bool = False

    def fits(self, operand: Operand) -> bool:
        """Whether an operand is read in the layout that the form is in."""
        return self.form.layout == operand.layout and self.form.channels == operand.channels


Way = tuple[frozenset[str], bool]


def way_of(candidate: Candidate) -> Way:
    """What tells candidates of one tensor apart, in later rounds, too: what they read, and whether a view is last."""
    form = candidate.form
    return frozenset(tensors_read(form)), any(map(is_viewed_form, form.sources))


class Option(NamedTuple):
    """What an operand may be replaced by: itself, where `candidate` is None, or what it was computed by.

    `price` is that of the tensors which the form reads.
    """

    form: Form
    candidate: Candidate | None
    price: Price


@dataclass(eq=False, slots=True)
class Entry:
    """The cheapest way to compute a tensor, and what its consumer may look through.

    Attributes:
        best: the price of the choice, private sources included.
        original: the price of the node and of all private nodes below it, as they are.
        node: the price of the node alone.
        choice: None where the node stays.
        candidates: what the consumer may put in the tensor's place.
        separate: of a sum that would take more multiply-adds as one convolution, one more of these: its operands'
            convolutions, kept apart.
    """

    best: Price
    original: Price
    node: Price
    choice: Candidate | None = None
    candidates: list[Candidate] = field(default_factory=list)
    separate: Candidate | None = None


def absorbing(outer: Candidate, inner: Candidate, form: Form, setup: Price) -> Candidate:
    """What `outer` becomes when it absorbs `inner`: a form, and the price of its private sources."""
    return Candidate(
        form,
        setup,
        outer.roles | inner.roles,
        outer.nodes + inner.nodes,
        inner.reads_existing,
        outer.convolves or inner.convolves,
    )


def added_up(
    combination: tuple[Option, ...], roles: frozenset[Kind]
) -> tuple[Price, frozenset[Kind], int, bool]:
    """Of an operator of these roles and a choice for each operand: price, roles, nodes, and whether one convolves."""
    price, nodes, convolves = combination[0].price, 1, False
    for option in combination[1:]:
        price = price.plus(option.price)
    for option in combination:
        candidate = option.candidate
        if candidate is not None:
            nodes += candidate.nodes
            convolves |= candidate.convolves
            roles |= candidate.roles
    return price, roles, nodes, convolves


def few_enough(options: list[list[Option]]) -> bool:
    """Whether all combinations are tried."""
    return prod(map(len, options)) <= MAX_COMBINATIONS


def combinations(options: list[list[Option]]) -> Iterable[tuple[Option, ...]]:
    """Choices of one option per operand, the options of each being ordered by price.

    All of them where they are few, or their sums short; else the cheapest ones, the one that reaches farthest, and
    those that read one tensor wherever they can.
    """
    if len(options) == 1:
        return [(option,) for option in options[0]]
    count = prod(map(len, options))
    if not few_enough(options):
        first = tuple(choice[0] for choice in options)
        second = tuple(choice[:2][-1] for choice in options)
        return dict.fromkeys((first, _farthest(options), second, *_gathering(options)))
    if count <= FEW_COMBINATIONS or _summed_terms(options, count) <= MAX_SUMMED_TERMS:
        return product(*options)
    cheapest = [
        tuple(choice[place] for choice, place in zip(options, places, strict=True))
        for places in _nearest(tuple(map(len, options)))
    ]
    return dict.fromkeys((*cheapest, _farthest(options), *_gathering(options)))


def _farthest(options: list[list[Option]]) -> tuple[Option, ...]:
    """Of each operand the option that reads only tensors which exist anyway; where there is none, the first."""
    return tuple(next(filter(_reads_existing, choice), choice[0]) for choice in options)


def _gathering(options: list[list[Option]]) -> Iterator[tuple[Option, ...]]:
    """For each tensor that several operands may be computed from alone: those computed so, the others as they are.

    Terms of one tensor add up to one kernel, and in a Concat they are stacked, in whatever order the operands are.
    """
    alone = [_by_only_source(choice) for choice in options]
    count = Counter(source for choice in alone for source in choice)
    shared = [source for source, operands in count.items() if operands > 1]
    for source in shared[:FEW_COMBINATIONS]:
        yield tuple(found.get(source, choice[0]) for found, choice in zip(alone, options, strict=True))


def _by_only_source(choice: list[Option]) -> dict[Hashable, Option]:
    """A tensor -> the first option that reads nothing else."""
    result: dict[Hashable, Option] = {}
    for option in choice:
        sources = option.form.sources
        if len(sources) == 1:
            result.setdefault(sources[0], option)
    return result


def _reads_existing(option: Option) -> bool:
    return option.candidate is not None and option.candidate.reads_existing


@lru_cache(maxsize=1 << 8)
def _nearest(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The first places in lists of these lengths, by their sum: (0, 0), (0, 1), (1, 0), (0, 2) ..."""
    return sorted(product(*map(range, lengths)), key=sum)[:FEW_COMBINATIONS]


def _summed_terms(options: list[list[Option]], count: int) -> int:
    """Terms of all the sums that `count` combinations make: each option occurs in `count / len(choice)` of them."""
    return sum(count // len(choice) * sum(len(option.form.terms) for option in choice) for choice in options)


def prune(ranked: list[tuple[int, Candidate]]) -> list[Candidate]:
    """The cheapest candidates, one for each set of sources, and among them one that reaches farthest.

    Args:
        ranked: costs with candidates; sorted in place.
    """
    if len(ranked) == 1:
        return [ranked[0][1]]
    # Of one price, first those of few sources: what absorbs them finds terms of one source to add up.
    # Then those that reach farther: what follows can go into all that they absorb.
    ranked.sort(key=lambda pair: (pair[0], len(pair[1].form.sources), -pair[1].nodes))
    distinct: dict[frozenset[Hashable], Candidate] = {}
    for _, candidate in ranked:
        distinct.setdefault(frozenset(candidate.form.sources), candidate)
    candidates = list(distinct.values())
    kept, rest = candidates[:MAX_CANDIDATES], candidates[MAX_CANDIDATES:]
    if rest and not any(candidate.reads_existing for candidate in kept):
        kept[-1] = next((candidate for candidate in rest if candidate.reads_existing), kept[-1])
    return kept
