"""Which tensors to compute how: a dynamic program over the lifted nodes of a scope.

Take a RepVGG block, with a Relu before and behind it:

    a = Conv3x3(x)    b = Conv1x1(x)    s = Add(a, b)    n = BatchNormalization(s)    y = Relu(n)

Every node but the Relus was lifted: each output is a sum of kernels applied to operands, plus a bias. `a`, `b` and `s`
are *private*: one node reads each of them, so that node may look through it (`regions`). The program visits the lifted
tensors in topological order. For each it keeps a few *candidates*, forms that the tensor may be computed by, and the
cheapest way to compute it:

    a   Conv3x3(x)                                    the node itself
    b   Conv1x1(x)                                    the node itself
    s   a + b;  Conv3x3(x) + b;  ...;  K(x)           with K the sum of both kernels, the smaller one padded with zeros
    n   BN(s);  BN'(a, b);  ...;  K'(x) + bias        with K' = scale * K

A candidate is the tensor's own operator applied to one option for each operand: the operand itself, or a candidate of
an operand that is private (`forms.compose`). `pricing` says which nodes compute a form, and what they cost. Of `n` the
last form is one Conv, cheaper than four nodes, so it is chosen. `n` is the root of the region, as a Relu reads it.
`select` starts at such roots: `n` is computed as K'(x) + bias, and a, b and s are not computed at all.

A form is chosen only if the cost falls, and neither multiply-adds nor nodes nor convolutions rise. Costs are integers,
so rounds of covering end. Time is linear in the number of nodes: a tensor keeps few candidates, few combinations of
options are tried for an operator (`candidates`), and forms of more than `affine_form.MAX_TERMS` terms are cut. No
kernel is read here: forms carry kernels that compute themselves when they are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product

from onnx_repfuse.algebra.affine_form import Form, apart, identity, scale_out
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import Context, LinearOp, Operand
from onnx_repfuse.planner.forms.compose import Parts, writes_itself
from onnx_repfuse.planner.forms.view_sources import tensors_read
from onnx_repfuse.planner.pricing.cost import NOTHING, CostModel, Price, node_price
from onnx_repfuse.planner.pricing.lowering import Lowering, Prices
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.pricing.steps import Lowered, Step, Wanted
from onnx_repfuse.planner.search.candidates import (
    Candidate,
    Entry,
    Option,
    Way,
    combinations,
    few_enough,
    prune,
    way_of,
)
from onnx_repfuse.planner.search.combine import Combiner
from onnx_repfuse.planner.search.commute_views import restoring, under_view, why_not_before_average
from onnx_repfuse.planner.search.normalizing import Norms
from onnx_repfuse.planner.search.regions import Regions
from onnx_repfuse.records.report import Kind

__all__ = ["Cover"]

_NO_OP = frozenset((Kind.NO_OP,))
NORM, GEMM = "BatchNormalization", "Gemm"  # which others can compute: Mul and Add, MatMul and Add
PROHIBITIVE = 1 << 80  # the cost of reading a shared tensor that should have been absorbed


@dataclass(eq=False)
class Cover:
    """The program's state for one scope and round.

    Attributes:
        lifts: output -> operator, in topological order.
        is_allowed: whether the user allows a fold of these kinds.
        banned: outputs that must stay computed as they are.
        refused: outputs, and ways to compute them that are not to be chosen.
        avoided: operators that the target cannot run.
        shaped: tensors that stay because their shape is asked for.
        prices: of forms, found in earlier rounds; extended.
        entries: output -> what the program found for it.
        inexact: output -> why a form of it is not exact, and the operand it looked through, or ''.
        absorbed: a tensor that several nodes read -> the form that all of them see instead (`shared_consumers`).
    """

    context: Context
    lifts: dict[str, LinearOp]
    model: CostModel
    is_allowed: Callable[[frozenset[Kind]], bool]
    banned: frozenset[str] = frozenset()
    refused: frozenset[tuple[str, Way]] = frozenset()
    avoided: frozenset[str] = frozenset()
    shaped: frozenset[str] = frozenset()
    prices: Prices = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    inexact: dict[str, list[tuple[Inexact, str]]] = field(default_factory=dict)
    absorbed: dict[str, Candidate] = field(default_factory=dict)
    regions: Regions = field(init=False)
    sizes: Sizes = field(init=False)
    lowering: Lowering = field(init=False)
    combiner: Combiner = field(init=False)
    norms: Norms = field(init=False)
    _sources_of_absorbed: Counter[str] = field(default_factory=Counter)
    _shifted: dict[int, tuple[Form, Form | None]] = field(default_factory=dict)  # by id of a form, kept alive
    _node_prices: dict[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.regions = Regions(self.context.scope, self.lifts, self.shaped)
        self.sizes = Sizes(self.context, self.lifts, may_gemm=GEMM not in self.avoided)
        self.lowering = Lowering(self.model, self.sizes, self.prices)
        self.norms = Norms(self.context.scope, self.lifts, may_write=NORM not in self.avoided)
        private = frozenset(filter(self.regions.is_private, self.lifts))
        self.combiner = Combiner(self.context, self.sizes, private, self.banned, self.inexact)

    def resume(self, previous: Cover, changed: set[str]) -> set[str]:
        """Take over what was found for regions that did not change.

        Returns:
            the roots of the other regions.
        """
        roots = self.regions.roots
        touched = {
            roots[name]
            for name, lifted in self.lifts.items()
            if name in changed
            or previous.lifts.get(name) is not lifted
            or any(operand.name in changed for operand in lifted.operands)
        }
        self.sizes.operand_channels.update(previous.sizes.operand_channels)
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

    def absorb(self, name: str, candidate: Candidate | None) -> None:
        """Let every consumer of a tensor see this form in its place; None: no longer."""
        before = self.absorbed.pop(name, None)
        if before is not None:
            self._sources_of_absorbed.subtract(tensors_read(before.form))
        if candidate is not None:
            self.absorbed[name] = candidate
            self._sources_of_absorbed.update(tensors_read(candidate.form))

    def reads(self, name: str) -> set[str]:
        """The tensors that the chosen way to compute a tensor reads."""
        choice = self.entries[name].choice
        if choice is None:
            return {operand.name for operand in self.lifts[name].operands}
        return set(tensors_read(choice.form))

    def lower(self, lifted: LinearOp, candidate: Candidate) -> Lowered | None:
        """The steps by which a candidate computes an operator's output."""
        lowered = self.lowering.lower(candidate.form, self._wanted(lifted, candidate))
        if lowered is None or lowered.steps or not self.context.scope.is_seen(lifted.output):
            return lowered
        # the output is its source, but a graph output must keep its name
        copy = Step("Identity", (lowered.result,), candidate.form.channels, layout=candidate.form.layout)
        return Lowered((copy,), 0, self._copy(lifted).cost, 0)

    def price(self, lifted: LinearOp, candidate: Candidate) -> Price | None:
        """What `lower` would ask for, and the price of what it reads; None if it cannot be written."""
        price = self.lowering.price(candidate.form, self._wanted(lifted, candidate))
        if price is not None and not price.nodes and self.context.scope.is_seen(lifted.output):
            price = self._copy(lifted)
        return None if price is None else price.plus(candidate.setup)

    def _wanted(self, lifted: LinearOp, candidate: Candidate) -> Wanted:
        """What the steps of a candidate are to be like."""
        may_normalize = self.norms.may_compute(lifted, candidate.roles)
        return Wanted(self.sizes.elements(lifted.output), may_normalize, candidate.keeps_products)

    def _copy(self, lifted: LinearOp) -> Price:
        """Of an Identity, for a tensor that must keep its name."""
        return Price(self.model.elementwise(2 * self.sizes.elements(lifted.output), 0), 0, 1)

    def _entry(self, lifted: LinearOp) -> Entry:
        options = self._options(lifted)
        entry = self._entry_of_node(lifted)
        ranked: list[tuple[int, Candidate]] = []
        parts: Parts = {}
        must_go = bool(self._reads_absorbed(lifted)) or self._is_avoided(lifted)
        is_itself = writes_itself(lifted) and not must_go
        readings = [one for one in (lifted, lifted.also) if one is not None]
        for combination, reading in product(combinations(options), readings):
            candidate = self.combiner.candidate(reading, combination, parts)
            if candidate is None:
                continue
            if is_itself and candidate.nodes == 1:
                ranked.append((candidate.setup.cost + entry.node.cost, candidate))
                continue
            price = self._consider_with_views(lifted, reading, candidate, entry)
            if price is None:
                continue
            ranked.append((price.cost, candidate))
            if entry.separate is None and reading is lifted and price.macs > entry.original.macs:
                entry.separate = self._kept_apart(lifted, combination, candidate)
        entry.candidates = prune(ranked)
        return entry

    def _entry_of_node(self, lifted: LinearOp) -> Entry:
        """The node as it is, with what it reads computed as was chosen for that."""
        price = self._node_prices.get(lifted.output)
        if price is None:
            price = node_price(lifted, self.model, self.sizes.elements, self.context.scope.is_used)
            self._node_prices[lifted.output] = price
        best = original = price
        for operand in lifted.operands:
            below = self.entries.get(operand.name)
            if below is not None and self.regions.is_private(operand.name):
                best, original = best.plus(below.best), original.plus(below.original)
        if self._is_avoided(lifted):
            best = best._replace(cost=best.cost + PROHIBITIVE)
            original = original._replace(nodes=original.nodes + 1)
        for name in self._reads_absorbed(lifted):
            best = best._replace(cost=best.cost + PROHIBITIVE)
            original = original.plus(self.entries[name].original)
        return Entry(best, original, price)

    def _is_avoided(self, lifted: LinearOp) -> bool:
        """Whether a node has to be written otherwise, as two nodes if need be."""
        return lifted.node.op in (NORM, GEMM) and lifted.node.op in self.avoided

    def _reads_absorbed(self, lifted: LinearOp) -> set[str]:
        absorbed = self.absorbed  # mostly there are none
        return {operand.name for operand in lifted.operands} & absorbed.keys() if absorbed else set()

    def _consider_with_views(
        self, lifted: LinearOp, reading: LinearOp, candidate: Candidate, entry: Entry
    ) -> Price | None:
        """Choose a candidate of a reading, or what it becomes across views, if it is the best; its price, as below."""
        price = self._consider(lifted, candidate, entry)
        for other in () if price is None else self._across_views(reading, candidate):
            self._consider(lifted, other, entry)
        return price

    def _consider(self, lifted: LinearOp, candidate: Candidate, entry: Entry) -> Price | None:
        """Choose a candidate if it is the best so far; its price, or None if it cannot be written."""
        price = self.price(lifted, candidate)
        if price is not None:
            self._choose_if_best(lifted, candidate, price, entry)
        return price

    def _choose_if_best(self, lifted: LinearOp, candidate: Candidate, price: Price, entry: Entry) -> None:
        # convolutions must not rise (`Price.improves`): in place of matrix products, they would be refused
        if not candidate.keeps_products and price.replaces_products(entry.original):
            candidate = replace(candidate, keeps_products=True)
            price = self.price(lifted, candidate) or price
        if price.improves(entry.best.cost, entry.original) and self._may_choose(lifted, candidate):
            entry.best, entry.choice = price, candidate

    def _may_choose(self, lifted: LinearOp, candidate: Candidate) -> bool:
        if lifted.output in self.banned or self.is_refused(lifted.output, candidate):
            return False
        if not self.regions.has_one_used_output(lifted.node):
            return False
        if candidate.nodes > 1:
            return self.is_allowed(candidate.roles)
        lowered = self.lower(lifted, candidate)
        is_again = lowered is not None and lowered.only == lifted.node.op
        return not is_again and self.is_allowed(_roles_of_one(candidate, lowered))

    def is_refused(self, output: str, candidate: Candidate) -> bool:
        """Whether this way to compute a tensor was found to be more expensive at some size."""
        return bool(self.refused) and (output, way_of(candidate)) in self.refused

    def roles_of(self, lifted: LinearOp, candidate: Candidate) -> frozenset[Kind]:
        """Kinds of what a candidate absorbs: of a single node, which gives out what it reads, only `no-op`."""
        if candidate.nodes > 1:
            return candidate.roles
        return _roles_of_one(candidate, self.lower(lifted, candidate))

    def _options(self, lifted: LinearOp) -> list[list[Option]]:
        """What each operand may be replaced by.

        An operator that reads padding takes no bias from below; it may read the source shifted instead.
        """
        options = [self._options_of(operand) for operand in lifted.operands]
        separate = list(map(self._separate_options, lifted.operands))
        if any(separate):
            more = [choice + apart for choice, apart in zip(options, separate, strict=True)]
            options = more if len(more) == 1 or few_enough(more) else options
        if lifted.padding_value is None and any(t.kernel.geometry.reads_padding for t in lifted.terms):
            for operand, choice in zip(lifted.operands, options, strict=True):
                choice += self._shifted_options(operand, choice)
        return options

    def _shifted_options(self, operand: Operand, choice: list[Option]) -> list[Option]:
        """The options without a bias, of the sources shifted."""
        result: list[Option] = []
        for form, candidate, price in choice:
            shifted = None if candidate is None else self._scaled_out(form, operand, candidate)
            if shifted is not None:
                result.append(Option(shifted, candidate, price))
        return result

    def _options_of(self, operand: Operand) -> list[Option]:
        """An operand itself, which comes first, and the candidates for it."""
        name = operand.name
        self.sizes.operand_channels[name, operand.layout] = operand.channels
        absorbed = self.absorbed.get(name) if self.absorbed else None
        if absorbed is not None and absorbed.fits(operand):
            # whoever still reads the tensor ends the joint step
            return [Option(absorbed.form, absorbed, NOTHING)]
        itself = identity(name, operand.channels, operand.layout)
        entry = self.entries.get(name)
        if entry is None or not self.regions.is_private(name):
            return [Option(itself, None, NOTHING)]
        fitting = [candidate for candidate in entry.candidates if candidate.fits(operand)]
        others = [Option(candidate.form, candidate, candidate.setup) for candidate in fitting]
        return [Option(itself, None, entry.best), *others]

    def _separate_options(self, operand: Operand) -> list[Option]:
        """The one in which the terms of a sum are kept apart."""
        entry = self.entries.get(operand.name)
        separate = entry.separate if entry is not None and self.regions.is_private(operand.name) else None
        fits = separate is not None and separate.fits(operand)
        return [Option(separate.form, separate, separate.setup)] if separate is not None and fits else []

    def _scaled_out(self, form: Form, operand: Operand, candidate: Candidate) -> Form | None:
        """`scale_out`, the same object for the same form: a shift that two branches share is written once."""
        if id(form) not in self._shifted:
            normalizes = self.norms.may_compute(self.lifts[operand.name], candidate.roles)
            shifted = scale_out(form, normalizes=normalizes)
            if shifted is not None:
                total = self.sizes.channels(shifted.sources[0], form.layout)
                shifted = shifted if total == form.channels else None
            self._shifted[id(form)] = (form, shifted)
        return self._shifted[id(form)][1]

    def _across_views(self, lifted: LinearOp, candidate: Candidate) -> Iterable[Candidate]:
        """Further ways to compute a tensor that reads views, for itself alone."""
        if lifted.view is None and Kind.COMMUTE not in candidate.roles and candidate.form.reads_tensors:
            return ()
        moved: Iterable[Candidate] = under_view(candidate, self.entries, self._may_go, self._cost_below)
        refused = why_not_before_average(candidate, self.entries, self.combiner.data_type(lifted))
        if refused is not None:
            self.inexact.setdefault(lifted.output, []).append((refused, lifted.operands[0].name))
            moved = ()
        return (*moved, *restoring(lifted, candidate, self.entries, self.context.scope))

    def _cost_below(self, form: Form, view: View) -> int | None:
        """What it costs to compute a form before a view; None if it cannot be written."""
        elements = max(1, self.sizes.elements(view.operand) * form.channels // view.channels)
        price = self.lowering.price(form, Wanted(elements, may_normalize=False))
        return None if price is None else price.cost

    def _kept_apart(
        self, lifted: LinearOp, combination: tuple[Option, ...], candidate: Candidate
    ) -> Candidate | None:
        """The same sum, with a convolution for each operand, where that of all takes more multiply-adds.

        It saves nothing itself. But what follows the sum can go into each of them.
        """
        if len(candidate.form.terms) == sum(len(option.form.terms) for option in combination):
            return None  # no terms were added up
        separate = tuple(option._replace(form=apart(option.form, n)) for n, option in enumerate(combination))
        return self.combiner.candidate(lifted, separate, {})

    def _may_go(self, name: str) -> bool:
        """Whether nothing else reads a tensor, and no form that several consumers see does."""
        return self.regions.is_private(name) and not self._sources_of_absorbed[name]


def _roles_of_one(candidate: Candidate, lowered: Lowered | None) -> frozenset[Kind]:
    """See `Cover.roles_of`, of a candidate that absorbs one node."""
    return _NO_OP if lowered is not None and lowered.copied else candidate.roles
