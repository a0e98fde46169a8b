"""Which tensors to compute how: a dynamic program over the lifted nodes of a scope.

A tensor that one node reads and nobody else sees is *private*: its reader may look through it. In topological
order every lifted tensor gets a few candidate forms - its own operator applied to the candidates of its private
operands - and the cheapest way to compute it: keep the node, or write one of the forms. Where a private tensor
ends up inside a form it is not computed at all.

Bounds: at most `candidates.KEEP` candidates a tensor, at most `candidates.PRODUCT` combinations an operator, and fewer
where sums are long; forms of more than `form.MAX_TERMS` terms are cut. So time is linear in the number of nodes.
A form is taken only if multiply-adds, nodes and convolutions do not rise and the cost falls strictly; with integer
costs that makes the fixed point end.

No kernel is read here: forms carry kernels that compute themselves later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from onnx_repfuse.algebra.affine_form import Form, identity, scale_out
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import Context, LinearOp, Operand
from onnx_repfuse.planner.candidates import Candidate, Entry, Option, combinations, prune
from onnx_repfuse.planner.commute_views import restoring, under_view
from onnx_repfuse.planner.compose import Parts, applied, as_it_stands
from onnx_repfuse.planner.cost import CostModel, Price, keep, view_cost
from onnx_repfuse.planner.lowering import Step, Surroundings, Written, estimate, lower, viewed_last
from onnx_repfuse.planner.regions import Regions
from onnx_repfuse.planner.sizes import Measures
from onnx_repfuse.planner.view_sources import seen_through
from onnx_repfuse.records.report import Kind

__all__ = ["Cover"]

PROHIBITIVE = 1 << 80


@dataclass(eq=False)
class Cover:
    """The program's state for one scope and round."""

    context: Context
    lifts: dict[str, LinearOp]
    model: CostModel
    allowed: Callable[[frozenset[Kind]], bool]
    banned: frozenset[str] = frozenset()
    entries: dict[str, Entry] = field(default_factory=dict)
    inexact: dict[str, list[tuple[Inexact, str]]] = field(default_factory=dict)
    exposed: dict[str, Candidate] = field(default_factory=dict)
    shifted: dict[int, tuple[Form, Form | None]] = field(default_factory=dict)
    shared: Counter[str] = field(default_factory=Counter)
    owns: dict[str, Price] = field(default_factory=dict)  # what nodes cost as they are
    regions: Regions = field(init=False)
    measures: Measures = field(init=False)

    def __post_init__(self) -> None:
        self.regions = Regions(self.context.scope, self.lifts)
        self.measures = Measures(self.context, self.lifts)

    def resume(self, previous: Cover, changed: set[str]) -> set[str]:
        """Take over what was found for regions that did not change; returns the roots of the others."""
        roots = self.regions.roots
        touched = {
            roots[name]
            for name, lifted in self.lifts.items()
            if name in changed
            or previous.lifts.get(name) is not lifted
            or any(operand.name in changed for operand in lifted.operands)
        }
        self.measures.known.update(previous.measures.known)
        for name in self.lifts:
            if roots[name] not in touched:
                self.entries[name] = previous.entries[name]
                if name in previous.inexact:
                    self.inexact[name] = previous.inexact[name]
        return touched

    def solve(self, names: Iterable[str]) -> None:
        """Fill `entries` for lifted tensors, in topological order."""
        for name in names:
            self.entries[name] = self._entry(self.lifts[name])

    def look_through(self, name: str, candidate: Candidate | None) -> None:
        """Let every reader of a tensor see this form in its place; None: no longer."""
        gone = self.exposed.pop(name, None)
        if candidate is not None:
            self.exposed[name] = candidate
        self.shared.subtract(map(str, gone.form.sources if gone else ()))
        self.shared.update(map(str, candidate.form.sources if candidate else ()))

    def reads(self, name: str) -> set[str]:
        """The tensors that the chosen way to compute a tensor reads."""
        choice = self.entries[name].choice
        if choice is None:
            return {operand.name for operand in self.lifts[name].operands}
        return {str(source) for source in choice.form.sources}

    @cached_property
    def _around(self) -> Surroundings:
        return Surroundings(
            self.model, self.measures.elements, self.measures.channels, self.measures.is_matrix
        )

    def write(self, lifted: LinearOp, candidate: Candidate) -> Written | None:
        """Lower a candidate for a tensor."""
        form, view, out = candidate.form, candidate.view, self.measures.elements(lifted.output)
        norm = self._norm(lifted, candidate)
        size = (
            out
            if view is None
            else max(1, out * self.measures.elements(view.operand) // self.measures.elements(view.output))
        )
        like = "" if view is None else view.operand
        written = lower(form, self._around, out_elements=size, norm=norm, like=like)
        if written is not None and view is not None:
            written = viewed_last(written, view, form.channels, view_cost(self.model, view, size, out), "")
        if written is None or written.steps or not self.context.scope.is_seen(lifted.output):
            return written
        copy = Step("Identity", (written.result,), form.channels, layout=form.layout)
        return Written((copy,), 0, self._copy(out).cost, 0)

    def price(self, lifted: LinearOp, candidate: Candidate) -> Price | None:
        """What a candidate for a tensor would cost, with what it reads; None if it cannot be written."""
        if candidate.view is not None:
            written = self.write(lifted, candidate)
            found = None if written is None else written.price
        else:
            out, norm = self.measures.elements(lifted.output), self._norm(lifted, candidate)
            found = estimate(candidate.form, self._around, out_elements=out, norm=norm)
            if found is not None and not found.nodes and self.context.scope.is_seen(lifted.output):
                found = self._copy(out)
        return None if found is None else candidate.setup.plus(found)

    def _copy(self, elements: int) -> Price:
        """Of an Identity: a tensor that must keep its name."""
        return Price(self.model.elementwise(2 * elements, 0), 0, 1)

    def _options(self, operand: Operand, pads: bool) -> list[Option]:
        """What an operand may be replaced by: (form, candidate, price); itself comes first.

        A reader that `pads` cannot take a bias; it may take the source shifted instead.
        """
        options = self._plain_options(operand)
        for form, candidate, price in list(options) if pads else ():
            shifted = self._scaled_out(form)
            if shifted is not None:
                options.append((shifted, candidate, price))
        return options

    def _scaled_out(self, form: Form) -> Form | None:
        """`scale_out`, the same object for the same form: what two branches shift alike is shifted once."""
        if id(form) not in self.shifted:
            found = scale_out(form)
            whole = (
                found is not None
                and self.measures.channels(str(found.sources[0]), form.layout) == form.channels
            )
            self.shifted[id(form)] = (form, found if whole else None)
        return self.shifted[id(form)][1]

    def _plain_options(self, operand: Operand) -> list[Option]:
        self.measures.known[operand.name, operand.layout] = operand.channels
        itself = identity(operand.name, operand.channels, operand.layout)
        entry = self.entries.get(operand.name)
        exposed = self.exposed.get(operand.name)
        if exposed is not None and _fits(exposed.form, operand):
            return [(exposed.form, exposed, Price())]  # whoever still reads it ends the joint step
        if entry is None or not self.regions.is_private(operand.name):
            return [(itself, None, Price())]
        fitting = [(c.form, c, c.setup) for c in entry.candidates if _fits(c.form, operand)]
        return [(itself, None, entry.best), *fitting]

    def _entry(self, lifted: LinearOp) -> Entry:
        pads = lifted.padding_value is None and any(
            term.kernel.geometry.reads_padding for term in lifted.terms
        )
        options = [self._options(operand, pads) for operand in lifted.operands]
        own = self._own(lifted)
        best = original = own
        for operand in lifted.operands:
            below = self.entries.get(operand.name)
            if below is not None and self.regions.is_private(operand.name):
                best, original = best.plus(below.best), original.plus(below.original)
        exposed = {o.name for o in lifted.operands} & self.exposed.keys() if self.exposed else ()
        for name in exposed:
            best = best._replace(cost=best.cost + PROHIBITIVE)  # it is there only if somebody still reads it
            original = original.plus(self.entries[name].original)
        entry = Entry(best, original, own)
        ranked: list[tuple[int, Candidate]] = []
        parts: Parts = {}
        plain = not exposed and _is_plain(lifted)
        for combination in combinations(options):
            candidate = self._candidate(lifted, combination, parts)
            if candidate is None:
                continue
            if plain and candidate.nodes == 1:
                ranked.append((candidate.setup.cost + own.cost, candidate))
                continue
            cost = self._consider(lifted, candidate, entry)
            if cost is None:
                continue
            ranked.append((cost, candidate))
            for other in self._across_views(lifted, candidate):
                self._consider(lifted, other, entry)
        entry.candidates = prune(ranked)
        return entry

    def _own(self, lifted: LinearOp) -> Price:
        """The node as it is; a joint step asks again."""
        found = self.owns.get(lifted.output)
        if found is None:
            elements, is_used = self.measures.elements, self.context.scope.is_used
            found = self.owns[lifted.output] = keep(lifted, self.model, elements, is_used)
        return found

    def _consider(self, lifted: LinearOp, candidate: Candidate, entry: Entry) -> int | None:
        """Choose a candidate if it is the best so far; its cost, or None if it cannot be written."""
        price = self.price(lifted, candidate)
        if price is None:
            return None
        if (
            price.improves(entry.best.cost, entry.original)
            and self.allowed(candidate.roles)
            and lifted.output not in self.banned
            and self.regions.is_sole(lifted.node)
        ):
            entry.best, entry.choice = price, candidate
        return price.cost

    def _across_views(self, lifted: LinearOp, candidate: Candidate) -> Iterable[Candidate]:
        """Further ways to compute a tensor that reads views, for itself alone."""
        if lifted.view is None and Kind.COMMUTE not in candidate.roles and candidate.form.reads_tensors:
            return ()
        free = under_view(
            candidate, self.entries, lambda n: self.regions.is_private(n) and not self.shared[n]
        )
        return (*free, *restoring(lifted, candidate, self.entries, self.context.scope))

    def _norm(self, lifted: LinearOp, candidate: Candidate) -> bool:
        return lifted.node.op == "BatchNormalization" or (
            Kind.AFFINE in candidate.roles and self._has_norm(lifted)
        )

    def _has_norm(self, lifted: LinearOp) -> bool:
        """Whether a BatchNormalization stands right before, through per-channel operators."""
        for _ in range(8):
            name = lifted.operands[0].name
            producer = self.context.scope.producer.get(name)
            if producer is None or any(operand.name != name for operand in lifted.operands):
                return False
            if producer.op == "BatchNormalization":
                return True
            found = self.lifts.get(name)
            if found is None:
                return False
            lifted = found
        return False

    def _candidate(self, lifted: LinearOp, combination: tuple[Option, ...], parts: Parts) -> Candidate | None:
        """An operator applied to these options; `parts` holds what its terms became with others."""
        if not parts and lifted.view is None and not any(chosen for _, chosen, _ in combination):
            itself = as_it_stands(lifted)
            if itself is not None:
                return self._joined(lifted, itself, combination)
        forms = [form for form, _, _ in combination]
        rank = lifted.layout[1]
        if lifted.view is not None:
            seen = seen_through(forms[0], lifted.view)
            return None if seen is None else self._joined(lifted, seen, combination)
        try:
            form = applied(lifted, forms, parts, lambda source: self.measures.size(source, rank))
        except Inexact as reason:
            chosen = [candidate for _, candidate, _ in combination]
            if any(chosen) or lifted.padding_value is not None:
                through = next((o.name for o, c in zip(lifted.operands, chosen, strict=True) if c), "")
                self.inexact.setdefault(lifted.output, []).append((reason.with_traceback(None), through))
            return None
        return None if form is None else self._joined(lifted, form, combination)

    def _joined(self, lifted: LinearOp, form: Form, combination: tuple[Option, ...]) -> Candidate:
        facts = operator(lifted.node)
        convolution = facts.weight is not None and not facts.scatters
        setup, nodes, below = combination[0][2], 1, False
        roles = lifted.roles
        for place, (_, candidate, price) in enumerate(combination):
            if place:
                setup = setup.plus(price)
            if candidate is not None:
                nodes += candidate.nodes
                below = below or candidate.convolutions
                roles |= candidate.roles
        if convolution and below:
            roles |= {Kind.SEQUENCE}
        leaves = all(c is not None and c.leaves for _, c, _ in combination) or not any(
            name in self.entries and self.regions.is_private(name) for name in map(str, form.sources)
        )
        return Candidate(form, setup, roles, nodes, leaves, convolution or below)


def _fits(form: Form, operand: Operand) -> bool:
    """The operand is read in the layout the form is in."""
    return form.layout == operand.layout and form.channels == operand.channels


def _is_plain(lifted: LinearOp) -> bool:
    """Written as it stands it would be the node itself again, at the same price."""
    if lifted.view is not None or lifted.inner_nodes or lifted.padding_value is not None:
        return False
    op, kernel = lifted.node.op, lifted.terms[0].kernel
    if operator(lifted.node).weight is not None:
        return not isinstance(kernel, Vector)
    if op == "BatchNormalization":
        return not lifted.bias.is_zero and not (isinstance(kernel, Vector) and kernel.is_one)
    if op not in ("Add", "Sum", "Concat") or not lifted.bias.is_zero:
        return False
    return len(lifted.terms) == len(lifted.operands) == len({o.name for o in lifted.operands}) > 1
