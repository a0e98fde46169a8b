"""Constants that nodes compute: Constant nodes, and whatever nodes compute from constants alone.

Which nodes these are is found without a value: shape and data type come from shape inference. A value is computed by a
runtime (`evaluate`) when somebody asks for it. Those that are cheap are computed together, in one session, and kept.

What constants may grow to is bounded here, for planning and saving alike: see `MAX_GROWN_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.enforced import is_inferable, refers_to_call
from onnx_repfuse.graph.evaluate import COMPUTED_TYPES, evaluate
from onnx_repfuse.graph.old_opsets import OLDEST, in_oldest
from onnx_repfuse.graph.operators.facts import HAVE_SUBGRAPHS
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, ONNX_DOMAINS, Const, Shape, static
from onnx_repfuse.graph.shape_inference import types_of
from onnx_repfuse.modelfile.dtypes import numpy_dtype, stored_size
from onnx_repfuse.records.reasons import Reason

__all__ = ["ConstantNodes", "from_attributes", "why_not_constant"]

Values = NDArray[Any]
Types = Mapping[str, tuple[int, Shape | None]]
# What one node may make of its constants beyond their size, and all nodes of a scope together: an Expand of a scalar to
# a billion elements decides nothing. What is no larger than what it is made of is a weight that is transposed or cast.
MAX_GROWN_BYTES = 64 << 20
# of the largest tensor on the way to a value that is computed together with others
MAX_CHEAP_ELEMENTS = 1 << 10
_SIMPLE_VALUES = {  # attribute of a Constant node -> field of the AttributeProto, dtype
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
}
_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
# A quantized weight stays one: its file is small, and runtimes compute in integers with it.
_QUANTIZES = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
# Runtimes divide by these, and by integers, and a zero ends the process.
_DIVISORS = {
    "block_size",
    "blocksize",
    "dilations",
    "group",
    "kernel_shape",
    "num_groups",
    "num_outputs",
    "strides",
}
_DIVISIONS = {"Div", "Mod"}


def why_not_constant(node: onnx.NodeProto) -> str:
    """Why a node is not taken for a constant, though all that it reads is constant: a clause, or ''."""
    if node.domain not in ONNX_DOMAINS:
        return "ONNX does not define it"
    if refers_to_call(node):
        return "an attribute of it is known only when the function is called"
    if node.op_type in _RANDOM or _may_drop(node):
        return "it is random"
    holds_graph = any(attribute.type in _GRAPHS for attribute in node.attribute)
    if holds_graph or node.op_type in HAVE_SUBGRAPHS:
        return "it has subgraphs"
    if node.op_type in _QUANTIZES:
        return "it is quantized"
    return ""


def _may_drop(node: onnx.NodeProto) -> bool:
    """Whether it is a Dropout that may run in training mode."""
    if node.op_type != "Dropout":
        return False
    if len(node.input) > 2:  # `training_mode`, from opset 12 on
        return True
    # before opset 7 an attribute, which is 0 by default
    return 0 in [attribute.i for attribute in node.attribute if attribute.name == "is_test"]


def _divides_by_attribute(node: onnx.NodeProto) -> bool:
    """Whether an attribute that runtimes divide by is zero, or less."""
    return any(
        min([attribute.i] if attribute.type == onnx.AttributeProto.INT else attribute.ints, default=1) < 1
        for attribute in node.attribute
        if attribute.name in _DIVISORS
    )


def _sized(known: Types, names: Sequence[str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and size of every one of these tensors; empty unless all are known, and of types that are computed."""
    sized: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name in names:
        kind, shape = known.get(name, (0, None))
        size = static(shape)
        if size is None or kind not in COMPUTED_TYPES:
            return {}
        sized[name] = kind, size
    return sized


@dataclass(eq=False)
class ConstantNodes:
    """The nodes of one scope that read constants alone, and those of their values that were computed.

    Attributes:
        opset: version of the ONNX operator set in force.
        constants: what is constant, by tensor name; `add` puts more into it.
        nodes: in the order they were added, which is topological.
        place: tensor -> place in `nodes` of the one that computes it.
        values: values that were computed and are kept.
        cheap: tensors to be computed with the first of them that somebody asks for.
        grown: bytes that all nodes made beyond what they read.
        has_waiting: a node was left because its shape is not known, see `add`.
    """

    opset: int
    constants: dict[str, Const]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    cheap: list[str] = field(default_factory=list)
    grown: int = 0
    has_waiting: bool = False

    def add(self, node: onnx.NodeProto, types: Types, *, waits: bool) -> list[str]:
        """Note a node all of whose inputs are constants.

        Args:
            node: without documentation.
            types: inferred, of its outputs.
            waits: leave a node whose shape is not known, which it takes a run of the node to know.

        Returns:
            The outputs that are constants from now on; none where nothing certain can be said.
        """
        names = [name for name in node.output if name]
        given = self._operands(node) if names else None
        if given is None:
            return []
        known: Types = {name: types.get(name, (0, None)) for name in names}
        now = any(not kind or static(shape) is None for kind, shape in known.values())
        if now and waits:
            self.has_waiting = True
            return []
        sized = _sized(self._inferred_alone(node, given) if now else known, names)
        return names if sized and self._put(node, given, sized, now=now) else []

    def _put(
        self,
        node: onnx.NodeProto,
        given: Sequence[Const],
        sized: Mapping[str, tuple[int, tuple[int, ...]]],
        *,
        now: bool,
    ) -> bool:
        """Note the outputs of a node as constants; False if they are too large, or cannot be computed `now`."""
        inner = max([const.effort for const in given], default=0)
        effort = max(inner, *(prod(shape) for _, shape in sized.values()))
        if now and effort > MAX_FOLDED_ELEMENTS:
            return False  # a weight, which would take its memory while planning
        if not self._has_room(given, sized) or not self._note(node, given):
            return False
        for name, (kind, shape) in sized.items():
            self.constants[name] = Const(shape, kind, partial(self.read, name), inner=inner)
        if effort <= MAX_CHEAP_ELEMENTS:
            self.cheap += sized
        if now and any(self.constants[name].computed() is None for name in sized):
            # inferred from its values, without the doubts that shape inference is held against
            for name in sized:
                del self.constants[name], self.place[name]
            return False
        return True

    def _operands(self, node: onnx.NodeProto) -> list[Const] | None:
        """The constants that a node reads; None where what it makes of them is not certain, or not to be computed."""
        if why_not_constant(node) or _divides_by_attribute(node):
            return None
        given = [self.constants[name] for name in node.input if name]
        if not all(map(_can_be_given, given)) or self._divides_by_zero(node):
            return None
        return given

    def _note(self, node: onnx.NodeProto, given: Sequence[Const]) -> bool:
        """Put a node among those that can be run; False below the oldest opset, where there is no such operator."""
        nodes = [node] if self.opset >= OLDEST else in_oldest(node, [len(const.shape) for const in given])
        for one in nodes:
            self.place.update((name, len(self.nodes)) for name in one.output if name)
            self.nodes.append(one)
        return bool(nodes)

    def _has_room(self, given: Iterable[Const], made: Mapping[str, tuple[int, Sequence[int]]]) -> bool:
        grown = sum(stored_size(kind, shape) or 0 for kind, shape in made.values())
        # of Concat(c, c), once
        read = {id(const): stored_size(const.data_type, const.shape) or 0 for const in given}
        grown = max(0, grown - sum(read.values()))
        if self.grown + grown > MAX_GROWN_BYTES:
            return False
        self.grown += grown
        return True

    def _inferred_alone(self, node: onnx.NodeProto, given: Sequence[Const]) -> Types:
        """What shape inference says of a node when it sees the values that the node reads."""
        if not is_inferable(node) or any(const.effort > MAX_FOLDED_ELEMENTS for const in given):
            return {}
        graph = onnx.GraphProto(name="one", node=[node])
        for name in dict.fromkeys(node.input):
            if not name:
                continue
            value = self.constants[name].computed()
            if value is None:
                return {}
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
        model = onnx.ModelProto(graph=graph, ir_version=8)
        model.opset_import.add(domain="", version=self.opset)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError):
            return {}
        return dict(types_of(inferred))

    def _divides_by_zero(self, node: onnx.NodeProto) -> bool:
        """Whether integers are divided by zero, or by -1, which the smallest of them does not survive either."""
        if node.op_type not in _DIVISIONS or len(node.input) < 2:
            return False
        divisor = self.constants[node.input[1]]
        if numpy_dtype(divisor.data_type).kind not in "iu":
            return False
        if divisor.effort > MAX_FOLDED_ELEMENTS:
            return True  # nobody divides integers by so many; to look at all would take their memory
        value = divisor.computed()
        if value is None or not value.all():
            return True
        return bool((value.astype(np.int64) == -1).any())

    def read(self, name: str) -> Values:
        """The value of a tensor, read-only.

        Raises:
            Inexact: it cannot be computed, or has another type or shape than was inferred.
        """
        if name in self.cheap:
            together, self.cheap = self.cheap, []
            with suppress(Inexact):  # if one of them has no value, each is computed by itself from now on
                self.values.update(self._compute(together))
        if name in self.values:
            return self.values[name]
        value = self._compute([name])
        if self.constants[name].effort <= MAX_CHEAP_ELEMENTS:
            self.values.update(value)
        return value[name]

    def _compute(self, names: Sequence[str]) -> dict[str, Values]:
        nodes = self._needed(names)
        computed = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input} - computed - {""}
        given = {
            name: self.values[name] if name in self.values else self.constants[name].read()
            for name in sorted(read)
        }
        types = {name: self.constants[name].data_type for name in (*read, *names)}
        values = evaluate(nodes, given, {name: types[name] for name in names}, types, max(self.opset, OLDEST))
        for name, value in values.items():
            if value.shape != self.constants[name].shape:
                # what was proved with the inferred shape would not hold
                raise Inexact(Reason.SHAPE, f"the constant '{name}' has another shape than was inferred")
            value.setflags(write=False)
        return values

    def _needed(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that compute these tensors from what is stored or known, in topological order."""
        pending, found = list(names), set[int]()
        while pending:
            name = pending.pop()
            place = self.place.get(name)
            if place is None or name in self.values or place in found:
                continue
            found.add(place)
            pending += self.nodes[place].input
        return [self.nodes[place] for place in sorted(found)]


def _can_be_given(const: Const) -> bool:
    """Whether a runtime may be given it: strings decide nothing, and of nothing at all some kernels take a mean."""
    if const.data_type not in COMPUTED_TYPES:
        return False
    return const.size > 0 or numpy_dtype(const.data_type).kind in "biu"


def from_attributes(node: onnx.NodeProto, read: Callable[[onnx.TensorProto], Values]) -> Const | None:
    """The value of a Constant node in any of its attribute forms; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
            tensor = attribute.t
            return Const(tuple(tensor.dims), tensor.data_type, partial(read, tensor))
        if attribute.name in _SIMPLE_VALUES:
            field_name, dtype = _SIMPLE_VALUES[attribute.name]
            value = np.array(getattr(attribute, field_name), dtype)
            data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            return Const(value.shape, data_type, partial(np.copy, value))
    return None
