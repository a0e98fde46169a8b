"""An operator applied to one option for each of its operands: a candidate for its output."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from onnx_repfuse.algebra.affine_form import Form
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.forms.compose import Parts, composed, form_of_node
from onnx_repfuse.planner.forms.value_range import check_range, data_type_of, weighed
from onnx_repfuse.planner.forms.view_sources import seen_through, tensors_read
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.search.candidates import Candidate, Option, added_up
from onnx_repfuse.records.report import Kind

__all__ = ["Combiner"]

_SEQUENCE = frozenset((Kind.SEQUENCE,))


@dataclass(eq=False)
class Combiner:
    """Makes the candidates of one scope in one round.

    Attributes:
        private: the lifted tensors that may go, see `regions`.
        banned: see `Cover`.
        inexact: output -> why a form of it is not exact, and the operand it looked through, or ''; extended.
    """

    context: Context
    sizes: Sizes
    private: Set[str]
    banned: Set[str]
    inexact: dict[str, list[tuple[Inexact, str]]]
    _data_types: dict[str, int] = field(default_factory=dict)  # answers of `data_type`

    def candidate(self, lifted: LinearOp, combination: tuple[Option, ...], parts: Parts) -> Candidate | None:
        """An operator applied to one option per operand; None where no form equals that.

        Args:
            parts: what the operator's terms became with the options of earlier combinations.
        """
        form = self._form(lifted, combination, parts)
        return None if form is None else self._joined(lifted, form, combination)

    def data_type(self, lifted: LinearOp) -> int:
        """The element type of an operator's output, or of what it reads; 0 if the file does not say."""
        known = self._data_types.get(lifted.output)
        if known is None:
            known = self._data_types[lifted.output] = data_type_of(lifted, self.context)
        return known

    def _form(self, lifted: LinearOp, combination: tuple[Option, ...], parts: Parts) -> Form | None:
        if lifted.view is not None:
            return self._behind(lifted.view, combination[0].form)
        looks_through = any(option.candidate is not None for option in combination)
        if not parts and not looks_through:
            form = form_of_node(lifted)
            if form is not None:
                return form
        try:
            return self._composed(lifted, combination, parts, looks_through=looks_through)
        except Inexact as reason:
            # Of a node as it is, only a padding that no operator writes is worth telling.
            if looks_through or lifted.padding_value is not None:
                self._note(lifted, combination, reason)
            return None

    def _behind(self, view: View, form: Form) -> Form | None:
        """A view of a form. Where parts of a channel lie apart, the source must tell how many channels there are."""
        is_told = view.parts_are_neighbours or self._reads_whole_tensors(form)
        return seen_through(form, view) if is_told else None

    def _composed(
        self, lifted: LinearOp, combination: tuple[Option, ...], parts: Parts, *, looks_through: bool
    ) -> Form | None:
        """The operator applied to forms. Raises Inexact where none equals that, or its type does not hold one."""
        rank, forms = lifted.layout[1], [option.form for option in combination]
        form = composed(lifted, forms, parts, lambda source: self.sizes.positions(source, rank))
        if form is not None and looks_through:
            reads_kernels = bool(self.banned) and weighed(lifted.output) in self.banned
            check_range(form, lifted, self.data_type(lifted), reads_kernels=reads_kernels)
        return form

    def _note(self, lifted: LinearOp, combination: tuple[Option, ...], reason: Inexact) -> None:
        """Keep why a form is not exact for the user, with the operand that it looked through."""
        pairs = zip(lifted.operands, combination, strict=True)
        through = next((operand.name for operand, option in pairs if option.candidate), "")
        self.inexact.setdefault(lifted.output, []).append((reason.with_traceback(None), through))

    def _reads_whole_tensors(self, form: Form) -> bool:
        """Whether a form reads all channels of its sources, so that they say how many there are."""
        return all(
            term.lo_in == 0
            and term.kernel.geometry.c_in == self.sizes.channels(term.source, term.kernel.geometry.layout)
            for term in form.terms
        )

    def _joined(self, lifted: LinearOp, form: Form, combination: tuple[Option, ...]) -> Candidate:
        """A form with what the combination adds up to."""
        setup, roles, nodes, below = added_up(combination, lifted.roles)
        facts = operator(lifted.node)
        convolves = facts.weight is not None and not facts.scatters
        if convolves and below:
            roles |= _SEQUENCE
        return Candidate(
            form, setup, roles, nodes, self._reads_existing(form, combination), convolves or below
        )

    def _reads_existing(self, form: Form, combination: tuple[Option, ...]) -> bool:
        """Whether the sources of a form exist, whatever is chosen for other tensors."""
        if all(option.candidate is not None and option.candidate.reads_existing for option in combination):
            return True
        return self.private.isdisjoint(tensors_read(form))
