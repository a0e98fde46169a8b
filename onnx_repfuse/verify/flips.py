"""Decisions that rounding may flip: argmax, top-k, non-maximum suppression, thresholds.

Two correct networks may decide differently where the margin is within rounding. A difference behind a
decision is accepted only if

* every tensor the deciding nodes read (they have the same names in both models) passes as an output would,
* and the original's own deciding nodes, fed with the result's tensors, give exactly the result's outputs.

Then nothing but those tensors can be the cause, and no decision with a margin above the tolerance can have
flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.verify.feeds import Scene
from onnx_repfuse.verify.judge import Sample, judge_output
from onnx_repfuse.verify.measure import difference, flatten, is_float, largest, ulp
from onnx_repfuse.verify.noise import nudge_feed, nudged_weights
from onnx_repfuse.verify.sessions import DoesNotRun, Model, load, open_model
from onnx_repfuse.verify.tapped import open_tapped, tensor_names
from onnx_repfuse.verify.verdict import Status

__all__ = ["explain", "tail"]

_DECIDES = frozenset(
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
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))


def tail(model: Model, output: str) -> tuple[onnx.ModelProto, list[str]] | None:
    """The nodes from the first decisions to `output`, as a model, and the tensors they read.

    Returns:
        None if no decision leads to `output`.
    """
    proto = load(model)
    graph = proto.graph
    maker = {name: node for node in graph.node for name in node.output if name}
    wanted, stack = set(), [output]
    while stack:
        node = maker.get(stack.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            stack.extend(_reads(node))
    constant = {tensor.name for tensor in graph.initializer}
    still, late = set(constant), set()
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        reads = [name for name in _reads(node) if name]
        if all(name in still for name in reads) or node.op_type in ("Shape", "Size"):
            still.update(node.output)  # of shapes and constants alone
        elif any(name in late for name in reads) or _decides(node):
            late.update(node.output)
            if id(node) in wanted:
                kept.append(node)
    if output not in late:
        return None
    steady = [node for node in graph.node if id(node) in wanted and set(node.output) & still]
    steady = [node for node in steady if all(name in still for name in _reads(node) if name)]
    nodes = [node for node in graph.node if id(node) in {id(one) for one in (*steady, *kept)}]
    made = {name for node in nodes for name in node.output}
    cut = sorted({name for node in nodes for name in _reads(node) if name and name not in made | constant})
    small = onnx.ModelProto(ir_version=proto.ir_version)
    small.opset_import.extend(proto.opset_import)
    small.functions.extend(proto.functions)
    small.graph.name = "tail"
    read = {name for node in nodes for name in _reads(node)}
    small.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    small.graph.node.extend(nodes)
    small.graph.output.extend(value for value in graph.output if value.name == output)
    return small, cut


def explain(original: Model, fused: Model, scenes: Sequence[Scene], output: str, threads: int = 1) -> str:
    """Why a difference in `output` is a flipped decision and no fault; "" if it may be a fault."""
    try:
        return _explain(original, fused, scenes, output, threads)
    except DoesNotRun:
        return ""


def _explain(original: Model, fused: Model, scenes: Sequence[Scene], output: str, threads: int) -> str:
    found = tail(original, output)
    if found is None:
        return ""
    model, cut = found
    if not cut or not set(cut) <= tensor_names(fused)[0]:
        return ""
    before = _read(original, scenes, cut, threads)
    after = _read(fused, scenes, [*cut, output], threads)
    by_inputs = _read(original, scenes, cut, threads, nudge=True)
    moved = nudged_weights(original)
    by_weights = _read(moved, scenes, cut, threads) if moved is not None else [{} for _ in before]
    kinds = [index for index, scene in enumerate(scenes) for _ in scene.feeds]
    for name in cut:
        samples = [
            Sample(kind, one.get(name), two.get(name), three.get(name), four.get(name))
            for kind, one, two, three, four in zip(kinds, before, after, by_inputs, by_weights, strict=True)
        ]
        if judge_output(name, samples).status is Status.FAILED:
            return ""
    _declare(model, before[0])
    with open_model(model, threads=threads) as runner:
        for row in after:
            again = flatten(runner.run({name: row[name] for name in cut}, [output]))
            if not all(_same(value, row.get(name)) for name, value in again.items()):
                return ""
    return f"rounding flips decisions on {', '.join(repr(name) for name in cut)}, which passed"


def _read(
    model: Model, scenes: Sequence[Scene], names: Sequence[str], threads: int, nudge: bool = False
) -> list[dict[str, Any]]:
    public = tensor_names(model)[1]
    rows = []
    with open_tapped(model, [name for name in names if name not in public], threads) as runner:
        inputs = {port.name for port in runner.inputs}
        for scene in scenes:
            for feed in scene.feeds:
                given = nudge_feed(feed) if nudge else feed
                read = runner.run(given, [name for name in names if name not in inputs])
                rows.append({**{n: v for n, v in given.items() if n in names}, **flatten(read)})
    return rows


def _declare(model: onnx.ModelProto, values: dict[str, Any]) -> None:
    for name, value in values.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        dims = [None] * value.ndim
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return first is second
    if not is_float(first.dtype):
        return bool(np.array_equal(first, second))
    gap = difference(first, second)
    return not gap.size or float(gap.max()) <= 8 * ulp(largest(first), first.dtype)


def _decides(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i in _INTEGERS for attribute in node.attribute)
    return node.op_type in _DECIDES


def _reads(node: onnx.NodeProto) -> list[str]:
    """Inputs, and what the node's subgraphs capture."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner |= {name for one in graph.node for name in one.output}
            names.extend(name for one in graph.node for name in _reads(one) if name not in inner)
            names.extend(value.name for value in graph.output if value.name not in inner)
    return names
