"""Operators that look alike, down to what their operands may be replaced by: a network repeats its blocks.

Which combinations are too dear is a matter of prices and limits, and these hang on nothing but what is compared here.
So what was of no use to the first of its kind is not tried for the next. What is tried is worked out as ever: where two
look alike and are not, because the biases of one cancel say, a cheaper way may be missed, but none is mistaken.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import prod

from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.candidates import PRODUCT, Candidate, Entry, Option
from onnx_repfuse.planner.cost import Price
from onnx_repfuse.planner.lowering import Surroundings, asked

__all__ = ["Likeness", "likeness", "of_no_use"]

WORTH = 6  # combinations, from which on it pays to compare
LONGEST = 4  # terms of a form that still may have its like

Likeness = tuple[Hashable, ...]


def likeness(
    lifted: LinearOp,
    options: list[list[Option]],
    limits: tuple[Price, Price],
    around: Surroundings,
    size_of: Callable[[Hashable, int], tuple[int, ...] | None],
) -> Likeness | None:
    """What operators that look alike have in common; None for one of a kind.

    Args:
        lifted: the operator.
        options: what each of its operands may be replaced by.
        limits: the prices a combination has to beat.
        around: their surroundings.
        size_of: positions per axis of a source, where proved.
    """
    if (
        not WORTH <= prod(map(len, options)) <= PRODUCT
        or lifted.padding_value is not None
        or lifted.inner_nodes
    ):
        return None
    if any(len(form.terms) > LONGEST for choice in options for form, _, _ in choice):
        return None
    numbers: dict[Hashable, int] = {}
    seen: list[Hashable] = [
        *limits,
        lifted.node.op,
        lifted.bias.is_zero,
        lifted.needs_equal_shapes,
        around.elements(lifted.output),
    ]
    seen += [(term.source, term.kernel.geometry, term.lo_in, term.lo_out) for term in lifted.terms]
    for choice in options:
        seen.append(len(choice))
        for form, candidate, price in choice:
            if not form.reads_tensors:
                return None
            seen += (price, form.channels, form.layout, form.bias.is_zero)
            if candidate is not None:
                seen += (candidate.roles, candidate.nodes, candidate.leaves, candidate.convolutions)
            for term in form.terms:
                number = numbers.setdefault(term.source, len(numbers))
                seen.append((number, term.lo_in, term.lo_out, asked(term, around, form.layout)))
    return *seen, *(size_of(source, lifted.layout[1]) for source in numbers)


def of_no_use(tried: dict[int, Candidate], entry: Entry, *, final: bool) -> frozenset[int]:
    """The numbers of those combinations tried that served for nothing.

    Args:
        tried: what became of them.
        entry: what came of it all.
        final: nobody will look through the tensor, so that a choice is all that counts.
    """
    if entry.choice is not None and entry.choice not in tried.values():
        return frozenset()  # a combination was of use for what it led to
    useful = [entry.choice] if entry.choice is not None and final else [entry.choice, *entry.candidates]
    return frozenset(number for number, one in tried.items() if one not in useful)
