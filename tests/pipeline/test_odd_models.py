"""Valid models of unusual form: they end, without an internal error, and what folds is proved."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, Result, fuse
from tests.versions import since_parser

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def weight(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def fused(text: str, **weights: NDArray[np.generic]) -> Result:
    model = onnx.parser.parse_model(f"{HEAD} {text}")
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return fuse(model)


@since_parser
def test_an_if_that_decides_when_a_loop_ends_is_not_forced() -> None:
    """With its condition set to true the Loop, which has no trip count, would never end."""
    result = fused(
        """g (float[1,2,6,6] x) => (float[1,2,6,6] y) <bool c={1}, int64 three={3}, bool yes={1}, bool no={0}> {
            k0 = Conv(x, w)
            k = Conv(k0, u)
            y = Loop(, c, k) <body = b (int64 i, bool ci, float[1,2,6,6] v) => (bool co, float[1,2,6,6] r) {
                l = Less(i, three)
                co = If(l) <
                    then_branch = t () => (bool o1) { o1 = Identity(yes) },
                    else_branch = e () => (bool o2) { o2 = Identity(no) }>
                r = Tanh(v)
            }>
        }""",
        w=weight(2, 2, 1, 1),
        u=weight(2, 2, 1, 1),
    )
    assert [fold.output for fold in result.report.folds] == ["k"]


def test_a_fold_may_read_constants_only() -> None:
    result = fused(
        """g (float[1,2,3,3] z) => (float[1,2,3,3] y) {
            x = ConstantOfShape <value = float[1] {1.0}> (s)
            a = Conv(x, w)
            y = Conv(a, u)
        }""",
        s=np.array([1, 2, 3, 3]),
        w=weight(2, 2, 1, 1),
        u=weight(2, 2, 1, 1),
    )
    assert result.report.verification is not None


def test_a_call_may_have_no_outputs() -> None:
    opsets = [helper.make_opsetid("", 17)]
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(weight(2, 2, 1, 1)))
        for name in "uv"
    ]
    convs = [helper.make_node("Conv", ["x", "v"], ["p"]), helper.make_node("Conv", ["p", "u"], ["y"])]
    two = helper.make_function("local", "two", ["x"], ["y"], [*constants, *convs], opsets)
    idle = helper.make_function("local", "idle", ["x"], [], [helper.make_node("Relu", ["x"], ["q"])], opsets)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3, 3]) for name in "xy"]
    calls = [
        helper.make_node("idle", ["x"], [], domain="local"),
        helper.make_node("two", ["x"], ["y"], domain="local"),
    ]
    model = helper.make_model(
        helper.make_graph(calls, "g", info[:1], info[1:]),
        functions=[two, idle],
        opset_imports=[*opsets, helper.make_opsetid("local", 1)],
        ir_version=8,
    )
    assert [fold.output for fold in fuse(model).report.folds] == ["y"]


def test_a_graph_in_a_list_of_graphs_folds() -> None:
    """Only operators of other domains have attributes of the type GRAPHS."""
    model = onnx.parser.parse_model(
        f"""{HEAD} g (float[1,2,3,3] x) => (float[1,2,3,3] y) {{ a = Conv(x, w) y = Conv(a, u) }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(weight(2, 2, 1, 1), name) for name in "wu")
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    del inner.input[:]
    inner.name = "inner"
    inner.node[0].input[0] = "outer"
    node = helper.make_node("Several", ["outer"], ["z"], domain="mine")
    node.attribute.append(helper.make_attribute("bodies", [inner]))
    info = helper.make_tensor_value_info("outer", TensorProto.FLOAT, [1, 2, 3, 3])
    whole = helper.make_model(
        helper.make_graph([node], "g", [info], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
        ir_version=8,
    )
    body = fuse(whole, options=Options(check=False)).model.graph.node[0].attribute[0].graphs[0]
    assert [node.op_type for node in body.node] == ["Conv"]
