"""Ways to compute a tensor: candidates, and the cheapest of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod

from onnx_repfuse.algebra.affine_form import Form
from onnx_repfuse.graph.views import View
from onnx_repfuse.planner.cost import Price
from onnx_repfuse.records.report import Kind

__all__ = ["Candidate", "Entry", "Option", "chief", "combinations", "prune", "stacked"]

KEEP = 4  # candidates of a tensor
PRODUCT = 25  # combinations of an operator, if their sums have at most
TERMS = 64  # terms in all; else
CHOICES = 4  # in order of price, and the one that reaches furthest

PRIORITY = (
    Kind.ACTIVATION,
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
    return next((kind for kind in PRIORITY if kind in present), Kind.AFFINE)


@dataclass(eq=False)  # not frozen, see `algebra.form`
class Candidate:
    """A form a tensor may be computed by.

    Attributes:
        form: over materialized tensors.
        setup: of its private sources.
        roles: kinds of what it absorbs; nodes: how many nodes it absorbs.
        leaves: all its sources are tensors that exist anyway.
        convolutions: it absorbs one.
        view: taken of the form at the end.
        swallowed: a tensor that is not private but needed no more.
    """

    form: Form
    setup: Price
    roles: frozenset[Kind]
    nodes: int
    leaves: bool
    convolutions: bool
    view: View | None = None
    swallowed: str = ""


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
    candidates: list[Candidate] = field(default_factory=list)


def stacked(above: Candidate, below: Candidate, form: Form, setup: Price) -> Candidate:
    """What `above` becomes with `below` put in: a form, and what is paid for its private sources."""
    return Candidate(
        form,
        setup,
        above.roles | below.roles,
        above.nodes + below.nodes,
        below.leaves,
        above.convolutions or below.convolutions,
    )


def combinations(options: list[list[Option]]) -> Iterable[tuple[Option, ...]]:
    """Choices of one option per operand.

    All of them where they are few, or their sums short; else the first ones by their places in the lists, which are
    ordered by price, and the one that reaches furthest; and of very many, only the uniform ones.
    """
    if len(options) == 1:
        return [(option,) for option in options[0]]
    count = prod(map(len, options))
    terms = _terms(options, count) if CHOICES < count <= PRODUCT else 0
    if count <= PRODUCT and terms <= TERMS:
        return product(*options)
    deepest = tuple(
        next((o for o in choice if o[1] is not None and o[1].leaves), choice[0]) for choice in options
    )
    if count > PRODUCT:
        first = tuple(choice[min(1, len(choice) - 1)] for choice in options)
        return (tuple(choice[0] for choice in options), deepest, first)
    places = _nearest(tuple(map(len, options)))
    nearest = [tuple(choice[place] for choice, place in zip(options, one, strict=True)) for one in places]
    return nearest if deepest in nearest else [*nearest, deepest]


@lru_cache(maxsize=1 << 8)
def _nearest(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The first places in lists of these lengths, by their sum."""
    return sorted(product(*map(range, lengths)), key=sum)[:CHOICES]


def _terms(options: list[list[Option]], count: int) -> int:
    """Terms of all the sums that `count` combinations make."""
    return sum(count // len(choice) * sum(len(form.terms) for form, _, _ in choice) for choice in options)


def prune(ranked: list[tuple[int, Candidate]]) -> list[Candidate]:
    """The cheapest forms, one for each set of sources, and the one that reaches furthest."""
    ranked.sort(key=lambda pair: pair[0])
    result: dict[frozenset[Hashable], Candidate] = {}
    for _, candidate in ranked:
        result.setdefault(frozenset(candidate.form.sources), candidate)
    kept = list(result.values())
    reach = [c for c in kept[KEEP:] if c.leaves]
    return kept[:KEEP] if not reach or any(c.leaves for c in kept[:KEEP]) else [*kept[: KEEP - 1], reach[0]]
