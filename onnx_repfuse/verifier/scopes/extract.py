"""A scope as a model of its own: what it takes from outside becomes a graph input, or is computed from constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.verifier.scopes.instances import Frame
from onnx_repfuse.verifier.session import subgraphs

__all__ = ["Outside", "ScopeModel", "extract"]

_SHAPE = ("Shape", "Size")


@dataclass(frozen=True)
class Outside:
    """A tensor that a scope takes from outside.

    Attributes:
        name: in the scope's model.
        main: its name in the main graph, where its values can be read; "" if it is not there.
        declared: its type as the file declares it, which no runtime enforces for the inputs of a Loop or a function.
        is_free: it may come with other shapes than those seen in the model.
        is_slice: it is a part of the tensor of the main graph, along the first axis.
        given: its value, where it is the number of a Loop's round, or whether the Loop goes on.
    """

    name: str
    main: str
    declared: onnx.TypeProto
    is_free: bool
    is_slice: bool = False
    given: Any = None

    def seen_in(self, values: Mapping[str, Any]) -> Any:
        """Its value where the tensors of the main graph have these; None if it is not among them."""
        if self.given is not None:
            return self.given
        value = values.get(self.main)
        return value[0] if self.is_slice and value is not None and len(value) else value


@dataclass
class ScopeModel:
    """A scope as a model without graph inputs yet, and the tensors that these are to be."""

    model: onnx.ModelProto
    outside: dict[str, Outside] = field(default_factory=dict)


def extract(model: onnx.ModelProto, frames: Sequence[Frame]) -> ScopeModel:
    """The innermost of `frames` as a model. Its outputs are called by their number.

    Raises:
        LookupError: it reads a tensor that nothing computes.
    """
    return _Extraction(model, frames).result()


class _Extraction:
    def __init__(self, model: onnx.ModelProto, frames: Sequence[Frame]) -> None:
        self.source, self.frames = model, frames
        self.producers = [{name: n for n in frame.graph.node for name in n.output} for frame in frames]
        self.weights = [{t.name: t for t in frame.graph.initializer} for frame in frames]
        self.inputs = [{v.name: v for v in frame.graph.input} for frame in frames]
        self.graph = onnx.GraphProto(name="scope")
        self.outside: dict[str, Outside] = {}
        self._done: set[str] = set()
        self._is_fixed: dict[tuple[int, str], bool] = {}

    def result(self) -> ScopeModel:
        last = len(self.frames) - 1
        scope = self.frames[last].graph
        before = list(_read(scope))
        for name in before:
            self._take(name, last)
        if last:  # the main graph's are taken one by one
            own = {tensor.name for tensor in self.graph.initializer}
            self.graph.initializer.extend(t for t in scope.initializer if t.name not in own)
        self.graph.node.extend(scope.node)
        for number, value in enumerate(scope.output):
            output = f"output {number}"
            self.graph.node.add(op_type="Identity", input=[value.name], output=[output])
            self.graph.output.add(name=output)
        model = onnx.ModelProto(graph=self.graph, ir_version=max(self.source.ir_version, 4))
        model.opset_import.extend(self.frames[last].opset_import)
        for function in self.source.functions:
            model.functions.add().CopyFrom(function)
        return ScopeModel(model, self.outside)

    def _place(self, name: str, at: int) -> int:
        """The frame in which a name read in frame `at` is defined. Raises LookupError."""
        while True:
            if any(name in table[at] for table in (self.producers, self.weights, self.inputs)):
                return at
            if at == 0 or self.frames[at].is_function:
                raise LookupError(name)
            at -= 1

    def _own_name(self, name: str, at: int) -> str:
        """Its name in the model: the callers of a function may use its names for other tensors."""
        inside = any(frame.is_function for frame in self.frames[at + 1 :])
        return f"caller {at}: {name}" if inside else name

    def _take(self, name: str, reader: int) -> str:
        """Let the model have a tensor that frame `reader` reads; its name there."""
        at = self._place(name, reader)
        own = self._own_name(name, at)
        is_computed_inside = at == len(self.frames) - 1 and name in self.producers[at]
        if own in self._done or is_computed_inside:
            return own
        self._done.add(own)
        if name in self.weights[at] and not (at == 0 and self._may_be_overridden(name)):
            tensor = self.graph.initializer.add()
            tensor.CopyFrom(self.weights[at][name])
            tensor.name = own
        elif self._fixed(name, at) or self._is_between(name, at):
            self._take_computed(name, at, own)
        else:
            self.outside[own] = self._describe(own, name, at)
        return own

    def _may_be_overridden(self, name: str) -> bool:
        return self.source.ir_version >= 4 and name in self.inputs[0]

    def _is_between(self, name: str, at: int) -> bool:
        """Whether a graph between the main graph and the scope computes it, so that no other shapes can come."""
        return 0 < at < len(self.frames) - 1 and name in self.producers[at]

    def _take_computed(self, name: str, at: int, own: str) -> None:
        """What constants, or the shapes of tensors, determine is computed in the model, too."""
        argument = self.frames[at].arguments.get(name)
        node = self.producers[at].get(name)
        if node is None:
            assert argument is not None
            self.graph.node.add(op_type="Identity", input=[self._take(argument, at - 1)], output=[own])
            return
        inputs = [self._take(i, at) if i else "" for i in node.input]
        captured = [inner for graph in subgraphs(node) for inner in _captured(graph)]
        if any(self._take(inner, at) != inner for inner in captured):
            raise LookupError(name)
        copy = self.graph.node.add()
        copy.CopyFrom(node)
        copy.name = ""
        copy.input[:] = inputs
        copy.output[:] = [self._own_name(o, at) if o else "" for o in node.output]
        self._done.update(copy.output)

    def _fixed(self, name: str, at: int) -> bool:
        """Whether constants and shapes alone determine a tensor: no other value of it can come up."""
        known = self._is_fixed.get((at, name))
        if known is None:
            self._is_fixed[at, name] = False  # of a cycle
            known = self._is_fixed[at, name] = self._determined(name, at)
        return known

    def _determined(self, name: str, at: int) -> bool:
        if name in self.weights[at]:
            return not (at == 0 and self._may_be_overridden(name))
        node, frame = self.producers[at].get(name), self.frames[at]
        if node is None:  # an input: the same in every call only if it is the body of a function
            argument = frame.arguments.get(name) if frame.is_function else None
            return argument is not None and self._fixed_from(argument, at - 1)
        if subgraphs(node) or node.op_type.startswith("Random"):
            return False
        if node.op_type in _SHAPE:
            return True
        return all(self._fixed_from(i, at) for i in node.input if i)

    def _fixed_from(self, name: str, reader: int) -> bool:
        return self._fixed(name, self._place(name, reader))

    def _describe(self, own: str, name: str, at: int) -> Outside:
        value = self.inputs[at].get(name) or next(
            (v for v in self.frames[at].graph.value_info if v.name == name), onnx.ValueInfoProto()
        )
        # A function is called with anything. What a Loop takes in has a shape that follows from where it starts.
        is_free = self.frames[at].is_function and name in self.inputs[at]
        is_slice = name in self.frames[at].slices
        given = _of_round(self.frames[at], name)
        return Outside(own, self._main_name(name, at), value.type, is_free, is_slice, given)

    def _main_name(self, name: str, at: int) -> str:
        """The tensor of the main graph that it is, or starts as; "" if there is none."""
        while at > 0:
            argument = self.frames[at].arguments.get(name)
            if argument is None:
                return ""
            name, at = argument, self._place(argument, at - 1)
        return name


def _of_round(frame: Frame, name: str) -> Any:
    """What a Loop tells the body in its second round: that this is number 1, and goes on; None for other tensors."""
    if frame.node is None or frame.node.op_type != "Loop":
        return None
    for value, dtype in zip(frame.graph.input[:2], (np.int64, np.bool_), strict=False):
        if value.name == name:
            return np.ones([1] * len(value.type.tensor_type.shape.dim), dtype)
    return None


def _read(graph: onnx.GraphProto) -> dict[str, None]:
    """What a graph takes in, in order: its inputs, and what it and its subgraphs read from outside."""
    inside = {t.name for t in graph.initializer}
    names = dict.fromkeys(v.name for v in graph.input if v.name not in inside)
    inside |= {"", *names}  # an input that is left out has no name
    for node in graph.node:
        captured = [name for inner in subgraphs(node) for name in _captured(inner)]
        names.update(dict.fromkeys(name for name in (*captured, *node.input) if name not in inside))
        inside.update(node.output)
    names.update(dict.fromkeys(v.name for v in graph.output if v.name not in inside))
    return names


def _captured(graph: onnx.GraphProto) -> list[str]:
    own = {v.name for v in graph.input}
    return [name for name in _read(graph) if name not in own]
