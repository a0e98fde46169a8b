"""Steps of random graphs that make subgraphs and functions; see `tests/random_steps.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.random_builder import Builder
from tests.reference import InvalidError


def _condition(b: Builder, entered: bool) -> str:
    """A condition that is known only when the model runs."""
    before = len(b.tensors)
    mean = b.op("ReduceMean", "x", keepdims=0)
    above = b.op("Add", b.op("Abs", mean), b.const(np.array(1.0)))
    condition = b.op("And", b.const(np.array(entered)), b.op("Cast", above, to=onnx.TensorProto.BOOL))
    del b.tensors[before:]  # no step calculates with it
    return str(condition)


def capture(b: Builder, x: int, y: int) -> None:
    """An If whose branches read tensors of the outer graph."""
    name = b.pick(x)
    other = b.like(name, y)
    kind = helper.np_dtype_to_tensor_dtype(b.net.dtype)
    graphs = []
    for number, op in enumerate(("Add", "Sub")):
        made = b.net.fresh("inner")
        value = helper.make_tensor_value_info(made, kind, None)
        graphs.append(
            helper.make_graph([helper.make_node(op, [name, other], [made])], f"g{number}", [], [value])
        )
    # one dim: such an If is always taken, and `tests.random_properties` does not turn it round
    b.op("If", b.const(np.array([True])), then_branch=graphs[0], else_branch=graphs[1])


def hidden(b: Builder, x: int, axes: list[bool], op: str, first: bool) -> None:
    """A tensor from an If, whose shape inference does not know, added to one that may be wider."""
    name = b.pick(x)
    shape = b.shape(name)
    kind = helper.np_dtype_to_tensor_dtype(b.net.dtype)
    kept = [axis for axis, gone in zip(range(len(shape)), axes, strict=False) if gone]
    narrow = b.mean(name, kept, 1) if kept else name
    graphs = []
    for number, inner in enumerate(("Relu", "Neg")):
        made = b.net.fresh("hidden")
        value = helper.make_tensor_value_info(made, kind, None)
        graphs.append(
            helper.make_graph([helper.make_node(inner, [narrow], [made])], f"h{number}", [], [value])
        )
    unseen = b.op("If", _condition(b, True), then_branch=graphs[0], else_branch=graphs[1])
    scaled = b.op("Mul", unseen, b.const(np.float32(2).astype(b.net.dtype)))
    b.op(op, *((scaled, name) if first else (name, scaled)))


def branches(b: Builder, x: int, forms: tuple[int, int], entered: bool) -> None:
    """An If with linear operators in both branches, of which one is never entered."""
    name = b.image(x)
    graphs = [_linear(b, name, form, "branch") for form in forms]
    b.op("If", _condition(b, entered), then_branch=graphs[0], else_branch=graphs[1])


def rank_behind_if(b: Builder, x: int, more: int, op: str) -> None:
    """Arithmetic with a tensor from an If, which has more dims in the branch that is not entered."""
    name = b.pick(x)
    rank = len(b.shape(name))
    kind = helper.np_dtype_to_tensor_dtype(b.net.dtype)
    graphs = []
    for dims in (rank, rank + more):
        made, value = b.net.fresh("rank"), b.const(b.rng.uniform(1, 2, (1,) * dims))
        result = helper.make_tensor_value_info(made, kind, None)
        nodes = [helper.make_node("Identity", [value], [made])]
        graphs.append(helper.make_graph(nodes, f"r{dims}", [], [result]))
    unseen = b.op("If", _condition(b, True), then_branch=graphs[0], else_branch=graphs[1])
    b.op(op, name, unseen)


def loop(b: Builder, x: int, form: int, rounds: int) -> None:
    """A Loop whose body keeps the size."""
    name = b.image(x)
    kind = helper.np_dtype_to_tensor_dtype(b.net.dtype)
    number, go, state, still = (b.net.fresh(stem) for stem in ("number", "go", "state", "still"))
    body = _linear(b, state, form, "body", like=name)
    nodes = [helper.make_node("Identity", [go], [still]), *body.node]
    inputs = [
        helper.make_tensor_value_info(number, onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info(go, onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info(state, kind, None),
    ]
    outputs = [helper.make_tensor_value_info(still, onnx.TensorProto.BOOL, []), *body.output]
    b.op("Loop", b.const(np.array(rounds)), "", name, body=helper.make_graph(nodes, "loop", inputs, outputs))


def _linear(b: Builder, name: str, form: int, stem: str, like: str = "") -> onnx.GraphProto:
    """Linear operators that keep the size, with weights of the main graph."""
    channels, rank = b.fixed(like or name, 1), len(b.shape(like or name)) - 2
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attrs: Any) -> str:
        output = b.net.fresh(stem)
        nodes.append(helper.make_node(kind, list(inputs), [output], **attrs))
        return output

    def conv(source: str, k: int) -> str:
        weight = b.weight(channels, channels, *(k,) * rank)
        return op("Conv", source, weight, pads=[k // 2] * 2 * rank)

    factor = b.const(b.vector(channels).reshape(channels, *(1,) * rank))
    if form and b.net.opset < 7:
        raise InvalidError("broadcasts")
    if form == 0:
        last = op("Add", conv(name, 3), conv(name, 1))
    elif form == 1:
        last = conv(op("Mul", name, factor), 3)
    elif form == 2:
        last = op("Add", op("Mul", conv(name, 1), factor), factor)
    elif form == 3:
        last = op("Relu", op("Mul", op("Mul", name, factor), factor))
    else:
        last = op("Relu", name)
    kind = helper.np_dtype_to_tensor_dtype(b.net.dtype)
    return helper.make_graph(nodes, stem, [], [helper.make_tensor_value_info(last, kind, None)])


def call(b: Builder, x: int, form: int, number: int) -> None:
    """A call of a function whose attributes refer to those of the call."""
    name = b.image(x)
    channels, rank = b.fixed(name, 1), len(b.shape(name)) - 2
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attrs: Any) -> str:
        refers = {key: attrs.pop(key) for key in list(attrs) if isinstance(attrs[key], _Refers)}
        output = f"t{len(nodes)}"
        node = helper.make_node(kind, list(inputs), [output], **attrs)
        for key, to in refers.items():
            node.attribute.add(name=key, ref_attr_name="a", type=to.kind)
        nodes.append(node)
        return output

    def weight(k: int) -> str:
        value = b.rng.standard_normal((channels, channels, *(k,) * rank)).astype(b.net.dtype) / channels
        return op("Constant", value=numpy_helper.from_array(value))

    def vector() -> str:
        value = b.vector(channels).reshape(channels, *(1,) * rank).astype(b.net.dtype)
        return op("Constant", value=numpy_helper.from_array(value))

    types = onnx.AttributeProto
    if b.net.opset < 12 or (form == 0 and b.net.dtype != np.float32):
        raise InvalidError("value_float is of opset 12, and of float32")
    argument: Any = number
    if form == 0:
        scaled = op("Mul", "x", op("Constant", value_float=_Refers(types.FLOAT)))
        op("Conv", scaled, weight(1))
        argument = float(number) / 2
    elif form == 1:
        joined = op("Concat", op("Mul", "x", vector()), "x", axis=_Refers(types.INT))
        op("Relu", joined)
    elif form == 2:
        made = op("Conv", "x", weight(1), strides=_Refers(types.INTS))
        op("Mul", made, vector())
        argument = [number] * rank
    elif form == 3:
        made = op("Conv", op("Mul", "x", vector()), weight(3), pads=_Refers(types.INTS))
        op("Add", made, op("Conv", "x", weight(3), pads=[1] * 2 * rank))
        argument = [1] * 2 * rank
    elif form == 4:
        op("Flatten", op("Mul", "x", vector()), axis=_Refers(types.INT))
    else:
        op("Mul", op("Conv", "x", weight(3), pads=[1] * 2 * rank), vector())
    title = f"Function{len(b.net.functions)}"
    imports = [helper.make_opsetid("", b.net.opset)]
    attributes = [] if form == 5 else ["a"]
    b.net.functions.append(
        helper.make_function("own", title, ["x"], [nodes[-1].output[0]], nodes, imports, attributes)
    )
    b.op(title, name, domain="own", **({"a": argument} if attributes else {}))


class _Refers:
    """An attribute that refers to the attribute "a" of the call."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
