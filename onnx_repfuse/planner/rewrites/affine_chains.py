"""Chains of arithmetic with constants of any shape, as one Mul and one Add.

    ((2*x - 0.5) + grid) * stride  =  x * (2*stride) + (grid - 0.5)*stride        a YOLO's decoding of boxes

Covering composes what acts on channels. This composes the rest: constants per position or per element, and tensors of
which nobody knows where their channels are. Two things look like such chains and are none: `(x + 2**23) - 2**23` rounds
x, and `(x * 1e30) * 1e-30` overflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.edit_points import let_shapes_read
from onnx_repfuse.graph.no_ops import constants_beside
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.graph.zero_signs import tells_zeros_apart
from onnx_repfuse.lift.batchnorm_arithmetic import ROUNDS_BETWEEN, most_that_cancels
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.limits.refusals import chain_refusal
from onnx_repfuse.planner.rewrites.affine_nodes import factor_and_shift
from onnx_repfuse.planner.rewrites.scalar_paths import Paths
from onnx_repfuse.planner.weights.rounding import rounded
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, FloatFormat
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["chain_refusals", "merge_chains"]

Array = NDArray[np.float64]
_OPERATORS = ("Add", "Div", "Mul", "Neg", "Sub", "Sum")
MAX_ELEMENTS = 1 << 20  # of a constant that a chain becomes
MAX_GROWTH = 4  # of the elements of all constants of a chain


@dataclass(frozen=True, eq=False)
class _Affine:
    """`scale * x + shift`, of any shapes that broadcast.

    Attributes:
        magnitude: the sum of the absolute values of all terms of `shift`, where it was largest on the way.
        largest, smallest: of the absolute factors on the way.
    """

    scale: Array
    shift: Array
    magnitude: Array
    largest: float = 1.0
    smallest: float = 1.0

    def then(self, op: str, value: Array, *, is_left: bool) -> _Affine:
        """What an operator with a constant makes of it."""
        factor, shift = factor_and_shift(op, value, is_left=is_left)
        scale = factor * self.scale
        return _Affine(
            scale,
            factor * self.shift + shift,
            np.abs(factor) * self.magnitude + np.abs(shift),
            max(self.largest, float(np.abs(scale).max(initial=0.0))),
            min(self.smallest, float(np.abs(scale).min(initial=np.inf))),
        )

    def why_not(self, limits: FloatFormat) -> tuple[Reason, str] | None:
        """Why it is not what the chain computes in a float type."""
        final = np.abs(self.scale)
        if not all(np.isfinite(value).all() for value in (self.scale, self.shift, self.magnitude)):
            return Reason.NON_FINITE, "a constant is not finite"
        room = limits.largest**0.25
        if self.largest > room * max(1.0, float(final.max(initial=0.0))):
            return (
                Reason.OVERFLOW,
                "what its first factors enlarge may overflow before the others make it small",
            )
        if self.smallest * room < min(1.0, float(final.min(initial=1.0))):
            return (
                Reason.UNDERFLOW,
                "what its first factors make small may vanish before the others enlarge it",
            )
        if max(float(final.max(initial=0.0)), float(np.abs(self.shift).max(initial=0.0))) > limits.largest:
            return Reason.OVERFLOW, Reason.OVERFLOW.prose
        if limits.is_half and ((final > 0) & (final < limits.smallest_normal)).any():
            return Reason.UNDERFLOW, Reason.UNDERFLOW.prose
        allowed = most_that_cancels(limits.epsilon)
        if (self.magnitude > allowed * np.maximum(final, np.abs(self.shift))).any():
            return Reason.PRECISION, ROUNDS_BETWEEN
        return None


@dataclass(frozen=True, eq=False)
class _Chain:
    """Nodes in a row, what they compute of `source`, and the float type they do it in."""

    nodes: list[gs.Node]
    source: str
    affine: _Affine
    data_type: int
    elements: int

    @property
    def output(self) -> str:
        return str(self.nodes[-1].outputs[0].name)

    @property
    def why_not(self) -> tuple[Reason, str] | None:
        """Why it stays although fewer nodes would do."""
        return self.affine.why_not(FLOAT_FORMATS[self.data_type])

    def count(self, is_scaled_below: bool) -> int:
        """The nodes that it takes as one Mul, unless what is below takes the factor, and one Add."""
        multiplies = bool((self.affine.scale != 1).any()) and not is_scaled_below
        return int(multiplies) + int(bool(self.affine.shift.any()))

    @property
    def is_small(self) -> bool:
        """Whether its constants are not much larger than those of its nodes."""
        size = _compact(self.affine.scale).size + _compact(self.affine.shift).size
        return size <= min(MAX_ELEMENTS, MAX_GROWTH * self.elements)


def merge_chains(plan: ScopePlan, paths: Paths) -> bool:
    """Write chains of arithmetic with constants as one Mul and one Add; whether there were any.

    Args:
        plan: of the scope, which is changed.
        paths: what is known of it.
    """
    scope = plan.scope
    replacements = Replacements(plan)
    for chain in list(_chains(paths)):
        if chain.why_not is not None:
            continue
        created = _written(scope, chain)
        for node in chain.nodes[:-1]:
            let_shapes_read(scope, node.outputs[0].name, chain.source)
        replacements.fold(chain.output, {Kind.AFFINE}, chain.nodes, created)
    return replacements.write()


def chain_refusals(paths: Paths) -> Iterator[Refusal]:
    """The chains that look like one Mul and one Add, and are not."""
    for chain in _chains(paths):
        reason = chain.why_not
        if reason is not None:
            yield chain_refusal(paths.scope, chain.nodes, *reason)


def _chains(paths: Paths) -> Iterator[_Chain]:
    """The longest chains that fewer nodes could compute, of which covering cannot take every node."""
    scope = paths.scope
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return
    seen: set[int] = set()
    for first in scope.nodes:
        if id(first) in seen or not _is_link(paths, first):
            continue
        nodes = [first]
        while (following := _following(paths, nodes[-1])) is not None:
            nodes.append(following)
        seen.update(map(id, nodes))
        chain = _worth_merging(paths, nodes)
        if chain is not None:
            yield chain


def _is_link(paths: Paths, node: gs.Node) -> bool:
    if node.op not in _OPERATORS or not paths.may_go(node):
        return False
    return node.op == "Neg" or bool(_operands(paths.scope, node)[1])


def _operands(scope: Scope, node: gs.Node) -> tuple[str, list[Const]]:
    """The tensor that a link reads, and its constants: of a Sum, several."""
    if node.op == "Neg":
        return str(node.inputs[0].name), []
    return constants_beside(scope, node)


def _following(paths: Paths, node: gs.Node) -> gs.Node | None:
    """The next link, which alone reads what a link computes."""
    name = node.outputs[0].name
    consumer = paths.only_consumer(name)
    return consumer if consumer is not None and _is_link(paths, consumer) else None


def _worth_merging(paths: Paths, nodes: list[gs.Node]) -> _Chain | None:
    """The part of a chain that takes fewer nodes when it is merged, beside what covering takes into weights anyway."""
    is_lifted = [paths.lifted(node.outputs[0].name) is not None for node in nodes]
    if all(is_lifted):
        return None  # covering sees all of it
    while len(nodes) > 1 and paths.consumer_that_absorbs(nodes[-1].outputs[0].name) is not None:
        nodes = nodes[:-1]
    chain = _chain(paths.scope, nodes)
    if chain is None:
        return None
    is_absorbed = paths.absorbs_from_below(chain.source, nodes[0]) is not None
    head = next((number for number, lifted in enumerate(is_lifted[: len(nodes)]) if not lifted), len(nodes))
    before = len(nodes) - (head if is_absorbed else 0)
    takes_factor = is_absorbed and _compact(chain.affine.scale).ndim == 0
    if _changes_sign_of_zero(paths.scope, chain):
        return None
    return chain if chain.count(takes_factor) < before and chain.is_small else None


def _changes_sign_of_zero(scope: Scope, chain: _Chain) -> bool:
    """Whether it adds nothing in the end, but what is behind it may see that it made 0 of -0 on the way."""
    adds = any(node.op in ("Add", "Sub", "Sum") for node in chain.nodes)
    return adds and not chain.affine.shift.all() and tells_zeros_apart(scope, chain.output)


def _chain(scope: Scope, nodes: list[gs.Node]) -> _Chain | None:
    """What nodes in a row compute; None for fewer than two, and where its constants would be too large."""
    if len(nodes) < 2:
        return None
    affine, elements, data_type = _Affine(np.ones(()), np.zeros(()), np.zeros(())), 1, 0
    for node in nodes:
        name, constants = _operands(scope, node)
        is_left = bool(constants) and node.inputs[1].name == name
        values = [np.asarray(const.read(), np.float64) for const in constants] or [np.ones(())]
        data_type = constants[0].data_type if constants else data_type
        elements += sum(value.size for value in values)
        for value in values:
            with np.errstate(all="ignore"):
                affine = affine.then(node.op, value, is_left=is_left)
        if max(affine.scale.size, affine.shift.size) > MAX_ELEMENTS:
            return None
    if data_type not in FLOAT_FORMATS:  # of Negs alone
        data_type = scope.data_type(nodes[0].outputs[0].name) or 0
    if data_type not in FLOAT_FORMATS:
        return None
    return _Chain(nodes, _operands(scope, nodes[0])[0], affine, data_type, elements)


def _compact(value: Array) -> Array:
    """A scalar for a constant whose elements are all equal."""
    return value.ravel()[0] if value.size and (value == value.ravel()[0]).all() else value


def _written(scope: Scope, chain: _Chain) -> list[gs.Node]:
    """The nodes in place of a chain; an Identity where nothing is left."""
    scale, shift = _compact(chain.affine.scale), _compact(chain.affine.shift)
    parts = [("Mul", scale, "scale")] if (scale != 1).any() else []
    parts += [("Add", shift, "shift")] if shift.any() else []
    nodes: list[gs.Node] = []
    tensor = chain.source
    for number, (op, value, label) in enumerate(parts):
        is_last = number == len(parts) - 1
        name = chain.output if is_last else scope.fresh(f"{chain.output}_scaled")
        if not is_last:
            scope.declare_like(name, chain.output)
        const = _constant(scope, f"{chain.output}_{label}", value, chain.data_type)
        nodes.append(new_node(op, scope.fresh(f"{chain.output}_{op.lower()}"), {}, [tensor, const], [name]))
        tensor = name
    if not nodes:
        nodes = [new_node("Identity", scope.fresh(f"{chain.output}_same"), {}, [tensor], [chain.output])]
    return nodes


def _constant(scope: Scope, stem: str, value: Array, data_type: int) -> str:
    return scope.new_constant(stem, Const(value.shape, data_type, lambda: rounded(value, data_type)))
