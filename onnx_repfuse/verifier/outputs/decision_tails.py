"""Outputs that hide what decides them: argmax, top-k, suppression, thresholds, and a closing softmax or sigmoid.

The *tail* of such an output is what comes after its first decision, and the tensors the tail reads can be judged
as outputs are. They have the same names in both models. Two things follow.

* Two correct networks may decide differently where a margin is within rounding. A difference is accepted only
  if every tensor that decides passed and the original's own tail, fed with the result's tensors, gives exactly
  the result's output: then nothing else can be the cause, and no margin above the tolerance has flipped.
* An output that cannot show a fault (the same class for every input, a saturated softmax) is judged by the
  tensors that decide it instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.distance import difference, flatten, is_inexact, largest, ulp
from onnx_repfuse.verifier.session import DoesNotRun, open_session

__all__ = ["Tail", "explains", "tails"]

_DECIDE = frozenset(
    [
        "ArgMax",
        "ArgMin",
        "TopK",
        "NonMaxSuppression",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Equal",
        "NonZero",
        "Round",
        "Floor",
        "Ceil",
        "Sign",
        "Hardmax",
        "Unique",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
    ]
)
_SQUASH = frozenset(["Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"])
_PLACE = frozenset(
    ["Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Slice", "Concat"]
)
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))
_LIMIT = 16 << 20  # elements of constants in a tail


@dataclass(frozen=True)
class Tail:
    """The nodes from the first decisions to one output.

    Attributes:
        output: the graph output.
        model: these nodes; without graph inputs, which `explains` adds.
        reads: the tensors they read, by name.
    """

    output: str
    model: onnx.ModelProto
    reads: tuple[str, ...]

    def is_in(self, graph: onnx.GraphProto) -> bool:
        """Whether another graph does the same to tensors of these names, so that they mean the same there."""
        maker = {name: node for node in graph.node for name in node.output if name}
        flow = set(self.reads)
        for node in self.model.graph.node:
            used = [name for name in node.input if name in flow]
            if not used:
                continue  # constants: their names may differ
            flow.update(node.output)
            other = maker.get(next(name for name in node.output if name))
            if other is None or other.op_type != node.op_type:
                return False
            if [name for name in other.input if name in flow] != used:
                return False
        return True


def tails(proto: onnx.ModelProto) -> dict[str, Tail]:
    """Output name -> its tail, for the outputs that have one. External data need not be loaded."""
    graph = proto.graph
    constant = {tensor.name for tensor in graph.initializer}
    still, late = set(constant), set()
    for node in graph.node:
        reads = _reads(node)
        if all(name in still for name in reads) or node.op_type in ("Shape", "Size"):
            still.update(node.output)  # of shapes and constants alone
        elif any(name in late for name in reads) or _decides(node):
            late.update(node.output)
    maker = {name: node for node in graph.node for name in node.output if name}
    found: dict[str, Tail] = {}
    for value in graph.output:
        if value.name in late:
            inside = late
        else:
            inside = _squashed(value.name, maker)
            if not inside:
                continue
        tail = _cut(proto, value, inside, still, maker)
        if tail is not None:
            found[value.name] = tail
    return found


def explains(tail: Tail, rows: Sequence[Mapping[str, Any]], runtime: Runtime = DEFAULT_RUNTIME) -> bool:
    """Whether the tail, fed with a model's deciding tensors, gives exactly that model's output.

    Args:
        tail: of the original.
        rows: per feed, the other model's values of `tail.reads` and of its output.
        runtime: how it is run.
    """
    model = onnx.ModelProto()
    model.CopyFrom(tail.model)
    for name in tail.reads:
        value = rows[0].get(name)
        if not isinstance(value, np.ndarray):
            return False
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    try:
        with open_session(model, runtime) as runner:
            for row in rows:
                again = flatten(runner.run({name: row[name] for name in tail.reads}, [tail.output]))
                if not all(_same(value, row.get(name)) for name, value in again.items()):
                    return False
    except DoesNotRun:
        return False
    return True


def _cut(
    proto: onnx.ModelProto,
    value: onnx.ValueInfoProto,
    inside: set[str],
    still: set[str],
    maker: Mapping[str, onnx.NodeProto],
) -> Tail | None:
    """The nodes that make `value` out of `inside` and constants, and what else they read."""
    graph = proto.graph
    constant = {tensor.name for tensor in graph.initializer}
    keep: set[int] = set()
    reads: set[str] = set()
    stack = [value.name]
    while stack:
        name = stack.pop()
        node = maker.get(name)
        if node is None or not (name in inside or (name in still and _closed(node, still))):
            if name not in constant:
                reads.add(name)
        elif id(node) not in keep:
            keep.add(id(node))
            stack.extend(_reads(node))
    nodes = [node for node in graph.node if id(node) in keep]
    named = {name for node in nodes for name in _reads(node)}
    weights = [tensor for tensor in graph.initializer if tensor.name in named]
    external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights)
    if not reads or external or sum(int(np.prod(t.dims, dtype=np.int64)) for t in weights) > _LIMIT:
        return None
    model = onnx.ModelProto(ir_version=proto.ir_version)
    model.opset_import.extend(proto.opset_import)
    model.functions.extend(proto.functions)
    model.graph.name = "tail"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    model.graph.output.append(value)
    return Tail(value.name, model, tuple(sorted(reads)))


def _closed(node: onnx.NodeProto, still: set[str]) -> bool:
    return all(name in still for name in _reads(node))


def _squashed(output: str, maker: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The tensors from a closing softmax or the like to the output; empty if it does not end in one."""
    found, stack, squashed = set(), [output], False
    while stack:
        name = stack.pop()
        node = maker.get(name)
        if node is None or name in found:
            continue
        if node.op_type in _SQUASH:
            found.add(name)
            squashed = True
        elif node.op_type in _PLACE:
            found.add(name)
            stack.extend(node.input[:1] if node.op_type != "Concat" else node.input)
    return found if squashed else set()


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return first is second
    if not is_inexact(first.dtype):
        return bool(np.array_equal(first, second))
    gap = difference(first, second)
    return not gap.size or float(gap.max()) <= 8 * ulp(largest(first), first.dtype)


def _decides(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i in _INTEGERS for attribute in node.attribute)
    return node.op_type in _DECIDE


def _reads(node: onnx.NodeProto) -> list[str]:
    """Inputs, and what the node's subgraphs capture."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner |= {name for one in graph.node for name in one.output}
            names.extend(name for one in graph.node for name in _reads(one) if name not in inner)
            names.extend(value.name for value in graph.output if value.name not in inner)
    return names
