"""Subsampling moves up: where all consumers of a tensor read every g-th position only, no others are computed.

    Conv1x1, stride 2, of Relu(Conv3x3(x) + y)   ->   Conv1x1 of Relu(Conv3x3, stride 2, of x + every second of y)

The tensors of which fewer positions are computed are called *thin* (`thin_tensors`). A convolution or pool makes its
output thin by a larger stride, an element-wise operator by reading thin operands. An operand that somebody needs whole
is read through an average over windows of one position, with a stride: a copy of every g-th position. Whatever reads a
thin tensor with a stride then has a smaller one. The proof is in docs/algebra.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.facts import per_axis
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.windows import kernel_of
from onnx_repfuse.lift import Context
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.refusals import stride_refusal
from onnx_repfuse.planner.pricing.cost import CostModel
from onnx_repfuse.planner.pricing.sizes import UNKNOWN_POSITIONS
from onnx_repfuse.planner.rewrites.sampling import Strides, may_subsample, movable_pads, reads_border
from onnx_repfuse.planner.rewrites.thin_tensors import ThinTensors
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["apply_subsamplings", "subsampling_refusals"]


def apply_subsamplings(plan: ScopePlan, context: Context, model: CostModel, is_free: IsFree) -> bool:
    """Compute no positions that all consumers of a tensor skip, where that pays; whether there was anything.

    Each tensor that is read otherwise is a fold of its own. What several share counts to the first.

    Args:
        plan: of the scope, which is changed.
        context: of the scope.
        model: prices.
        is_free: whether a node may be replaced.
    """
    if not any(map(may_subsample, plan.scope.nodes)):
        return False
    replacements = Replacements(plan)
    for group in _groups(context, model, is_free):
        macs = group.macs_before, group.macs_after
        replacements.fold_together(Kind.STRIDE, group.ends, group.replaced, group.absorbed, macs)
    return replacements.write()


def subsampling_refusals(context: Context, is_free: IsFree) -> Iterator[Refusal]:
    """The 1x1 convolutions whose stride stays although the convolution before them could have it, and why."""
    scope = context.scope
    if not any(map(may_subsample, scope.nodes)):
        return
    tensors = ThinTensors(context, is_free)
    for node in scope.nodes:
        if not is_free(node) or not _keeps_stride(tensors, node):
            continue
        name = node.inputs[0].name
        if reads_border(node):
            yield stride_refusal(
                scope, node, Reason.BORDER, "its padding reads positions that are no multiple of it"
            )
        elif prod(tensors.wanted.get(name, ())) == 1 or scope.is_seen(name):
            yield stride_refusal(scope, node, Reason.CONSUMERS, f"'{name}' is needed elsewhere")


def _keeps_stride(tensors: ThinTensors, node: gs.Node) -> bool:
    """Whether a strided 1x1 convolution reads a tensor of which a convolution could compute fewer positions."""
    if node.op != "Conv" or not may_subsample(node):
        return False
    name = node.inputs[0].name
    is_of_one_tap = set(kernel_of(tensors.scope, node)) == {1}
    return is_of_one_tap and name not in tensors.thin and tensors.may_shrink(name)


def _groups(context: Context, model: CostModel, is_free: IsFree) -> Iterator[_Group]:
    """The thin tensors that are worth it."""
    tensors = ThinTensors(context, is_free)
    for nodes in tensors.groups():
        ends = [node for node in nodes if node.outputs[0].name not in tensors.thin]
        group = _Group(tensors, model, ends)
        for node in nodes:
            group.write(node)
        if group.cost_after < group.cost_before:
            yield group


@dataclass(eq=False)
class _Group:
    """Thin tensors that depend on each other, and what reads them: written node by node, with what they cost.

    Attributes:
        ends: the nodes that read thin tensors and whose outputs are not thin.
        absorbed: the nodes that go.
        replaced: id() of one of them -> what stands in its place.
        names: (tensor, strides) -> the tensor of these positions of it.
        fresh: what stands in the place of the node that is being written.
    """

    tensors: ThinTensors
    model: CostModel
    ends: list[gs.Node]
    names: dict[tuple[str, Strides], str] = field(default_factory=dict)
    replaced: dict[int, list[gs.Node]] = field(default_factory=dict)
    absorbed: list[gs.Node] = field(default_factory=list)
    fresh: list[gs.Node] = field(default_factory=list)
    cost_before: int = 0
    cost_after: int = 0
    macs_before: int = 0
    macs_after: int = 0

    @property
    def scope(self) -> Scope:
        return self.tensors.scope

    def write(self, node: gs.Node) -> None:
        """Write one node: with a thin output, or as one that reads a thin tensor."""
        output = node.outputs[0].name
        strides = self.tensors.thin.get(output)
        self.fresh = []
        name = output if strides is None else self.thin_name(output, strides)
        if strides is not None and movable_pads(self.tensors.context, node) is None:
            self.elementwise(node, name, strides)
        else:
            self.window(node, name, strides)
        self.absorbed.append(node)
        self.replaced[id(node)] = self.fresh

    def elementwise(self, node: gs.Node, name: str, strides: Strides) -> None:
        inputs = [self.positions(tensor.name, strides) for tensor in node.inputs]
        self.node(node.op, node.attrs, inputs, name)
        elements = sum(map(self.elements, self.data(node)))
        self.pay(node, elements, elements // prod(strides))

    def window(self, node: gs.Node, name: str, strides: Strides | None) -> None:
        """A convolution, pool or Slice, with other strides."""
        source = node.inputs[0].name
        read = self.tensors.thin.get(source, ())
        ones = (1,) * len(strides or read)
        read, written = read or ones, strides or ones
        picks = self.tensors.own_strides(node)
        own = picks or per_axis(node.attrs, "strides", len(ones))
        new = tuple(s * w // r for s, w, r in zip(own, written, read, strict=True))
        thinned = self.names.get((source, read), source)
        only_picks = picks and node.op != "Conv"  # a Slice, or a pool of windows of one position
        if only_picks and (node.op == "Slice" or max(new) == 1):
            self.copy(thinned, name, new)
        else:
            self.write_window(node, thinned, name, new)
        elements = self.elements(source), self.elements(node.outputs[0].name)
        after = elements[0] // prod(read) + elements[1] // prod(written)
        self.pay(node, sum(elements), after, prod(written))

    def write_window(self, node: gs.Node, source: str, output: str, strides: Strides) -> None:
        """A convolution or pool of another tensor, with other strides, and the pads that it has."""
        pads = movable_pads(self.tensors.context, node) or (0,) * 2 * len(strides)
        attributes = {key: value for key, value in node.attrs.items() if key != "auto_pad"}
        inputs = [source, *[tensor.name for tensor in node.inputs[1:]]]
        self.node(node.op, {**attributes, "pads": list(pads), "strides": list(strides)}, inputs, output)

    def pay(self, node: gs.Node, before: int, after: int, fewer: int = 1) -> None:
        """Note what a node costs that reads and writes so many elements, before and after.

        Args:
            fewer: how many times fewer positions it computes.
        """
        count = operator(node).multiply_adds
        macs = (count(self.scope, node) or 0) if count is not None else 0
        self.macs_before += macs
        self.macs_after += macs // fewer
        if count is not None:
            self.cost_before += macs * self.model.dense_mac + before * self.model.conv_element
            self.cost_after += macs // fewer * self.model.dense_mac + after * self.model.conv_element
        else:
            self.cost_before += self.model.elementwise(before)
            self.cost_after += self.model.elementwise(after)

    def positions(self, name: str, strides: Strides) -> str:
        """An operand of an element-wise operator, thinned by these strides."""
        if not name or self.scope.const(name) is not None or self.is_one_position(name, len(strides)):
            return name
        if (name, strides) not in self.names:
            known = self.tensors.thin.get(name, (1,) * len(strides))
            source = self.names.get((name, known), name)
            more = tuple(wanted // there for wanted, there in zip(strides, known, strict=True))
            self.copy(source, self.thin_name(name, strides), more)
            read, written = (self.elements(name) // prod(by) for by in (known, strides))
            self.cost_after += self.model.elementwise(read + written, 0)
        return self.names[name, strides]

    def copy(self, source: str, output: str, strides: Strides) -> None:
        """Every so-many-th position of a tensor: the average over windows of one position."""
        if max(strides) > 1:
            attributes = {"kernel_shape": [1] * len(strides), "strides": list(strides)}
            self.node("AveragePool", attributes, [source], output)
        elif source != output:
            self.node("Identity", {}, [source], output)

    def node(self, op: str, attributes: dict[str, Any], inputs: list[str], output: str) -> None:
        self.fresh.append(new_node(op, self.scope.fresh(output), dict(attributes), inputs, [output]))

    def thin_name(self, name: str, strides: Strides) -> str:
        """A name for a tensor's thin form, of which type and shape are noted."""
        scope = self.scope
        fresh = self.picked(name, strides) or scope.fresh(f"{name}_strided")
        self.names[name, strides] = fresh
        data_type, shape, assumed = scope.data_type(name) or 0, scope.shape(name), scope.assumed.get(name)
        rank = len(strides)
        if shape is not None:
            space = [
                None if dim is None else -(-dim // by) for dim, by in zip(shape[2:], strides, strict=True)
            ]
            scope.types[fresh] = (data_type, (*shape[:2], *space))
        if assumed is not None and len(assumed) == rank + 2:
            fewer = [-(-dim // by) for dim, by in zip(assumed[2:], strides, strict=True)]
            scope.assumed[fresh] = (*assumed[:2], *fewer)
        return fresh

    def picked(self, name: str, strides: Strides) -> str:
        """The output of the only end, if that gives out the thin form of this tensor as it is; else ""."""
        (end, *others), consumers = self.ends, self.scope.consumers.get(name, [])
        is_alone = not others and len(consumers) == 1 and consumers[0] is end and end.op != "Conv"
        is_same = is_alone and self.tensors.own_strides(end) == strides
        return str(end.outputs[0].name) if is_same else ""

    def is_one_position(self, name: str, rank: int) -> bool:
        """Whether a tensor is proved to have one position per channel, which is every g-th of them."""
        shape = self.scope.shape(name)
        return shape is not None and shape[2:] == (1,) * rank and name not in self.tensors.thin

    def data(self, node: gs.Node) -> Iterator[str]:
        """The tensors that an element-wise operator reads and writes, but for constants."""
        names = [tensor.name for tensor in (*node.inputs, *node.outputs)]
        return (name for name in names if name and self.scope.const(name) is None)

    def elements(self, name: str) -> int:
        """Assumed elements of a tensor."""
        layout = self.tensors.context.channel_layout(name)
        channels = 1 if layout is None else layout.channels
        return self.scope.elements(name) or UNKNOWN_POSITIONS * channels
