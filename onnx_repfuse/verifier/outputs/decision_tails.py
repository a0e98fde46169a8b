"""Outputs that hide the values behind them: argmax, top-k, suppression, thresholds, a closing softmax or sigmoid.

The *decision tail* of such an output is the graph from its first decision on. The tensors a tail reads (the deciding
tensors) can be judged as outputs are, because they have the same names in both models. Two things follow.

* Two correct networks may decide differently where a margin is within rounding. A difference is accepted only if every
  deciding tensor passed, and the original's own tail, fed with the result's deciding tensors, gives exactly the
  result's output. Then nothing else can be the cause, and no margin above the tolerance has flipped.
* An output that cannot show a fault (the same class for every input, a saturated softmax) is judged by its deciding
  tensors instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.distance import difference, flatten, is_inexact, largest, ulp
from onnx_repfuse.verifier.session import DoesNotRun, open_session, reads

__all__ = ["DecisionTail", "explains_flips", "find_tails", "has_same_tail", "may_have_tails"]

# Operators whose output jumps where their input passes a threshold.
_DECISIONS = frozenset(
    [
        *("ArgMax", "ArgMin", "TopK", "Hardmax", "NonMaxSuppression", "NonZero", "Unique"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign"),
        *("Round", "Floor", "Ceil", "QuantizeLinear", "DynamicQuantizeLinear"),
    ]
)
_SATURATING = frozenset(["Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"])
# Operators between a closing softmax and the output, which change no value.
_DATA_MOVEMENT = frozenset(
    ["Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Slice", "Concat"]
)
_INTEGER_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BOOL", "UINT32", "UINT64")
)
_MAX_CONSTANT_ELEMENTS = 16 << 20  # of a tail
# of float outputs: alone, a kernel of the tail may round otherwise than in the whole model
_ALLOWED_ULPS = 8.0
Producers = Mapping[str, onnx.NodeProto]


@dataclass(frozen=True)
class DecisionTail:
    """The nodes from the first decisions to one output.

    Attributes:
        output: the graph output.
        model: these nodes; without graph inputs, which `explains_flips` adds.
        deciding: names of the tensors they read.
        kind: the operator that reads them, as "Sigmoid"; the first of several.
    """

    output: str
    model: onnx.ModelProto
    deciding: tuple[str, ...]

    @property
    def kind(self) -> str:
        flow = set(self.deciding)
        return str(next(node.op_type for node in self.model.graph.node if not flow.isdisjoint(node.input)))


def may_have_tails(graph: onnx.GraphProto) -> bool:
    """Whether an output is at or behind a decision; no weight needs to be loaded to say that there is none."""
    _, decided = _static_and_decided(graph)
    producers = _producers(graph)
    return any(
        output.name in decided or _behind_saturation(output.name, producers) for output in graph.output
    )


def find_tails(proto: onnx.ModelProto) -> dict[str, DecisionTail]:
    """Output name -> its tail, for the outputs that have one. External data need not be loaded."""
    static, decided = _static_and_decided(proto.graph)
    producers = _producers(proto.graph)
    tails: dict[str, DecisionTail] = {}
    for output in proto.graph.output:
        inside = decided if output.name in decided else _behind_saturation(output.name, producers)
        if inside:
            tail = _cut(proto, output, inside, static, producers)
            if tail is not None:
                tails[output.name] = tail
    return tails


def has_same_tail(graph: onnx.GraphProto, tail: DecisionTail) -> bool:
    """Whether a graph does what the tail does to tensors of the same names, so that the names mean the same there.

    Only the flow of the deciding tensors is followed. Constants may have other names.
    """
    producers = _producers(graph)
    flow = set(tail.deciding)
    for node in tail.model.graph.node:
        names = [name for name in node.input if name in flow]
        if not names:
            continue
        flow.update(node.output)
        # Names of the flow's tensors must agree, and their order: Greater(a, b) is not Greater(b, a).
        other = producers.get(next(filter(None, node.output)))
        if other is None or other.op_type != node.op_type:
            return False
        if names != [name for name in other.input if name in flow]:
            return False
    return True


def explains_flips(
    tail: DecisionTail, rows: Sequence[Mapping[str, Any]], runtime: Runtime = DEFAULT_RUNTIME
) -> bool:
    """Whether the original's tail, fed with the result's deciding tensors, gives exactly the result's output.

    Args:
        tail: of the original.
        rows: per feed, the result's deciding tensors and its output, by name.
        runtime: how the tail is run.
    """
    model = onnx.ModelProto()
    model.CopyFrom(tail.model)
    for name in tail.deciding:
        value = rows[0].get(name)
        if not isinstance(value, np.ndarray):
            return False
        data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, data_type, [None] * value.ndim))
    try:
        with open_session(model, runtime) as session:
            for row in rows:
                again = flatten(session.run({name: row[name] for name in tail.deciding}, [tail.output]))
                if not all(_is_same(value, row.get(name)) for name, value in again.items()):
                    return False
    except DoesNotRun:
        return False
    return True


def _static_and_decided(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """(tensors of shapes and constants alone, tensors at or behind a decision on a value)."""
    static = {tensor.name for tensor in graph.initializer}
    decided: set[str] = set()
    for node in graph.node:
        names = reads(node)
        # Shape reads sizes, no values.
        if node.op_type in ("Shape", "Size") or static.issuperset(names):
            static.update(node.output)
        elif _decides(node) or not decided.isdisjoint(names):
            decided.update(node.output)
    return static, decided


def _behind_saturation(output: str, producers: Producers) -> set[str]:
    """The tensors from a closing softmax or the like to the output; empty if it does not end in one."""
    behind: set[str] = set()
    saturates = False
    stack = [output]
    while stack:
        name = stack.pop()
        node = producers.get(name)
        if node is None or name in behind:  # a graph input or initializer, or seen
            continue
        if node.op_type in _SATURATING:
            behind.add(name)
            saturates = True
        elif node.op_type in _DATA_MOVEMENT:
            behind.add(name)
            # The other inputs are shapes, axes and the like.
            stack.extend(node.input if node.op_type == "Concat" else node.input[:1])
    return behind if saturates else set()


def _cut(
    proto: onnx.ModelProto,
    output: onnx.ValueInfoProto,
    inside: set[str],
    static: set[str],
    producers: Producers,
) -> DecisionTail | None:
    """The nodes that compute `output` from the tensors `inside` and constants, and what else they read.

    Returns:
        None where nothing is read, or constants are external or large.
    """

    def belongs(name: str, node: onnx.NodeProto) -> bool:
        return name in inside or (name in static and static.issuperset(reads(node)))

    nodes, outside = _backwards(output.name, producers, belongs)
    constants = [tensor for tensor in proto.graph.initializer if tensor.name in outside]
    deciding = outside - {tensor.name for tensor in constants}
    elements = sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in constants)
    external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in constants)
    if not deciding or external or elements > _MAX_CONSTANT_ELEMENTS:
        return None
    kept = [node for node in proto.graph.node if id(node) in nodes]
    model = onnx.ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=onnx.GraphProto(name="tail", node=kept, initializer=constants, output=[output]),
    )
    return DecisionTail(output.name, model, tuple(sorted(deciding)))


def _backwards(
    output: str, producers: Producers, belongs: Callable[[str, onnx.NodeProto], bool]
) -> tuple[set[int], set[str]]:
    """(ids of the nodes that lead to `output` and belong, names of what they read from elsewhere)."""
    nodes: set[int] = set()
    outside: set[str] = set()
    stack = [output]
    while stack:
        name = stack.pop()
        node = producers.get(name)
        if node is None or not belongs(name, node):
            outside.add(name)
        elif id(node) not in nodes:
            nodes.add(id(node))
            stack.extend(reads(node))
    return nodes, outside


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output if name}


def _decides(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i in _INTEGER_TYPES for attribute in node.attribute)
    return node.op_type in _DECISIONS


def _is_same(value: Any, expected: Any) -> bool:
    """Equal, or of floats within rounding."""
    if value is None or expected is None:
        return value is expected
    if (value.shape, value.dtype) != (expected.shape, expected.dtype):
        return False
    if not is_inexact(value.dtype):
        return bool(np.array_equal(value, expected))
    gap = difference(value, expected)
    return not gap.size or float(gap.max()) <= _ALLOWED_ULPS * ulp(largest(value), value.dtype)
