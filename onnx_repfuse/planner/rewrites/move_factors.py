"""Scalar factors move to where they fold: attention's `(q @ k) / sqrt(d)` goes into the projection that computes q.

The factor is written beside what absorbs it (`scalar_paths`), and the next round of covering folds it. Nothing is moved
that would not fold, and what a moved factor passes is written again under new names, as its values are others now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.edit_points import let_shapes_read
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.lift.linear_op import affine_role
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements, add_fold
from onnx_repfuse.planner.limits.refusals import sum_refusal
from onnx_repfuse.planner.rewrites.scalar_paths import Path, Paths, Step
from onnx_repfuse.planner.weights.rounding import rounded
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["factor_refusals", "move_factors"]


def move_factors(plan: ScopePlan, paths: Paths, is_allowed: Callable[[frozenset[Kind]], bool]) -> bool:
    """Move scalar factors to where the next round folds them; whether there were any.

    Args:
        plan: of the scope, which is changed.
        paths: what is known of it.
        is_allowed: whether the user allows a fold of these kinds.
    """
    scope = plan.scope
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return False
    taken: set[int] = set()
    replacements = Replacements(plan)
    for factor in paths.factors():
        path = paths.of(factor)
        if path is None or not is_allowed(_kinds(path)):
            continue
        ids = {id(node) for node in (*path.nodes, path.sink.node)}
        if ids & taken:
            continue  # another one goes there; this one in the next reading
        taken |= ids
        replacements.nodes[id(path.place)] = _Rewriting(plan, paths, path).made()
        for step in path.up:
            gone = (step.node, *step.others) if step.node.op == "Split" else step.others
            replacements.nodes.update((id(node), []) for node in gone)
    is_written = replacements.write()
    if is_written:
        scope.nodes = scope.order(scope.nodes)
    return is_written


def factor_refusals(paths: Paths) -> Iterator[Refusal]:
    """The factors of products of two tensors that stay, as something was added to the product before."""
    for factor in paths.factors():
        total = paths.sum_of_product(factor)
        if total is not None:
            yield sum_refusal(paths.scope, factor, total)


def _role(path: Path) -> Kind:
    return Kind.PRODUCT if path.passes_product else Kind.COMMUTE


def _kinds(path: Path) -> frozenset[Kind]:
    """The kinds of a fold that absorbs a factor at the end of its way."""
    return frozenset((_role(path), affine_role(path.sink.layout), *path.sink.roles))


@dataclass(eq=False)
class _Rewriting:
    """The nodes along the way of a factor, written again."""

    plan: ScopePlan
    paths: Paths
    path: Path
    created: list[gs.Node] = field(default_factory=list)

    @property
    def scope(self) -> Scope:
        return self.plan.scope

    def made(self) -> list[gs.Node]:
        """The new nodes, noted as a fold."""
        path = self.path
        tensor = str(path.factor.inputs[self.factor_place].name)
        if path.down or path.turn is not None:
            let_shapes_read(self.scope, path.factor.outputs[0].name, tensor)
        for step in path.down:
            tensor = self._copy(step.node, {step.place: tensor}, "")
        if path.turn is not None:
            product, place = path.turn.node, path.turn.place
            other = self._scaled_above(str(product.inputs[1 - place].name), "")
            self._copy(product, {place: tensor, 1 - place: other}, path.output)
        else:
            self._scaled_above(tensor, path.output)
        add_fold(self.plan, path.output, {_role(path)}, path.nodes, self.created)
        for step in path.up:
            self._note_other_parts(step)
            self._note_other_choices(step)
        return self.created

    def _note_other_choices(self, step: Step) -> None:
        """What others choose of the same tensor is chosen of another one now: a fold each."""
        parts = {node.outputs[0].name for node in (step.node, *step.others)}
        if step.others:  # an earlier factor may have left a fold for each
            self.plan.folds = [fold for fold in self.plan.folds if fold.name not in parts]
        for other in step.others:
            name = str(other.outputs[0].name)
            if self.plan.is_of_file(name):
                add_fold(self.plan, name, {_role(self.path)}, [other], [self._maker(name)], by_itself=True)

    def _note_other_parts(self, step: Step) -> None:
        """The outputs of a Split that the factor does not scale are computed otherwise, too: a fold each.

        One that this run made, for another factor, is inside of the fold that reads it.
        """
        if step.node.op != "Split":
            return
        parts = {tensor.name for tensor in step.node.outputs}
        # an earlier factor may have left a fold for each part
        self.plan.folds = [fold for fold in self.plan.folds if fold.name not in parts]
        for number, tensor in enumerate(step.node.outputs):
            is_other = number != step.output and self.plan.is_of_file(tensor.name)
            if is_other and self.scope.is_used(tensor.name):
                add_fold(
                    self.plan,
                    tensor.name,
                    {_role(self.path)},
                    [step.node],
                    [self._maker(tensor.name)],
                    by_itself=True,
                )

    def _maker(self, name: str) -> gs.Node:
        """The new node that computes a tensor."""
        return next(node for node in self.created if any(name == tensor.name for tensor in node.outputs))

    @property
    def factor_place(self) -> int:
        """The input of the factor's node that it scales."""
        place = self.paths.scaled_input(self.path.factor)
        assert place is not None
        return place

    def _scaled_above(self, tensor: str, output: str) -> str:
        """A tensor times the factor, which multiplies at the upper end of `path.up`.

        Args:
            tensor: what is scaled.
            output: the name it gets; "" for a new one.
        """
        steps = self.path.up
        if not steps:
            return self._scale(tensor, output)
        scaled = self._scale(str(steps[-1].node.inputs[steps[-1].place].name), "")
        for step in steps[:0:-1]:
            scaled = self._pass(step, scaled, "")
        return self._pass(steps[0], scaled, output)

    def _pass(self, step: Step, scaled: str, output: str) -> str:
        """The nodes of a step, which read a scaled tensor."""
        for other in step.others:
            self._node(other, {0: scaled}, other.outputs[0].name, like="")
        return self._copy(step.node, {step.place: scaled}, output, step.output)

    def _scale(self, tensor: str, output: str) -> str:
        """The factor's node, of another tensor."""
        factor, place = self.path.factor, self.factor_place
        if self.path.channels is not None:
            return self._scale_channels(tensor, output, self.path.channels)
        inputs = {place: tensor}
        const = None if len(factor.inputs) == 1 else self.scope.const(factor.inputs[1 - place].name)
        if const is not None and const.shape != ():  # it might add an axis to that tensor
            inputs[1 - place] = self._without_axes(const)
        return self._node(factor, inputs, output, like=tensor)

    def _scale_channels(self, tensor: str, output: str, channels: NDArray[np.bool_]) -> str:
        """Some channels of a tensor, scaled as the factor does."""
        scope, factor = self.scope, self.path.factor
        layout = self.paths.layouts[tensor]
        const = None if factor.op == "Neg" else scope.const(factor.inputs[1 - self.factor_place].name)
        value = -1.0 if const is None else float(const.read().astype(np.float64).item())
        data_type = layout.data_type if const is None else const.data_type
        shape = (layout.channels, *(1,) * layout.rank) if layout.channel_axis == 1 else (layout.channels,)
        values = np.where(channels, value, 1.0).reshape(shape)
        vector = Const(shape, data_type, lambda: rounded(values, data_type))
        name = scope.new_constant(f"{self.path.output}_factors", vector)
        op = "Div" if factor.op == "Div" else "Mul"
        result = output or scope.fresh(f"{tensor}_scaled")
        self.created.append(new_node(op, scope.fresh(f"{tensor}_scaled"), {}, [tensor, name], [result]))
        scope.declare_like(result, tensor)
        return result

    def _without_axes(self, const: Const) -> str:
        scalar = Const((), const.data_type, lambda: const.read().reshape(()))
        return self.scope.new_constant(f"{self.path.output}_factor", scalar)

    def _copy(self, node: gs.Node, inputs: dict[int, str], output: str, number: int = 0) -> str:
        """A node of the way, which reads other tensors; `number` is that of the output on the way."""
        before = str(node.outputs[number].name)
        name = self._node(node, inputs, output, like=before, number=number)
        if before != self.path.output:
            let_shapes_read(self.scope, before, name)
        return name

    def _node(self, node: gs.Node, inputs: dict[int, str], output: str, like: str, number: int = 0) -> str:
        """A node with some other inputs, and the output that it makes, of the shape of another tensor."""
        scope, stem = self.scope, f"{node.outputs[number].name}_moved"
        name = output or scope.fresh(stem)
        names = [inputs.get(place, tensor.name) for place, tensor in enumerate(node.inputs)]
        outputs = [name if place == number else tensor.name for place, tensor in enumerate(node.outputs)]
        self.created.append(new_node(node.op, scope.fresh(stem), dict(node.attrs), names, outputs))
        if not output:
            scope.declare_like(name, like)
        return name
