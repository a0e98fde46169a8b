"""A cyclic graph is an invalid model, whether or not anything would be folded."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import Options, fuse, plan
from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile.node_order import check_acyclic
from tests.build import Net


def model(nodes: list[onnx.NodeProto], functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    inputs = [info("x", TensorProto.FLOAT, [4]), info("flag", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", TensorProto.FLOAT, [4])])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=imports, functions=functions)


def branch(node: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        [node], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])]
    )


ADD, RELU = helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])
LOOP = helper.make_node("Add", ["x", "inner"], ["inner"])
CAPTURE = helper.make_node("Relu", ["y"], ["inner"])
PLAIN = helper.make_node("Relu", ["x"], ["inner"])


@pytest.mark.parametrize(
    "cyclic",
    [
        model([ADD, RELU]),
        model([RELU, ADD]),
        model([helper.make_node("Add", ["x", "y"], ["y"])]),
        model([helper.make_node("If", ["flag"], ["y"], then_branch=branch(LOOP), else_branch=branch(PLAIN))]),
        model(
            [helper.make_node("If", ["flag"], ["y"], then_branch=branch(PLAIN), else_branch=branch(CAPTURE))]
        ),
        model(
            [helper.make_node("f", ["x"], ["y"], domain="own")],
            (helper.make_function("own", "f", ["x"], ["y"], [ADD, RELU], [helper.make_opsetid("", 17)]),),
        ),
    ],
    ids=["pair", "unsorted", "own_input", "inside_a_branch", "through_a_capture", "function"],
)
def test_cycles_are_input_errors_everywhere(cyclic: onnx.ModelProto) -> None:
    for attempt in (plan, fuse, lambda m: fuse(m, options=Options(check=False))):
        with pytest.raises(InputError, match="cycle"):
            attempt(cyclic)


def test_a_cycle_beside_folds_is_found_before_they_are_made() -> None:
    net = Net(4)
    x = net.conv_bn("x", 4, 4, 3)
    y = net.op("Add", x, "later")
    later = net.op("Relu", y)
    net.nodes[-2].input[1] = later
    cyclic = helper.make_model(net.graph((later,)), ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(InputError, match="waits for its own output"):
        fuse(cyclic)


def test_unsorted_nodes_and_hidden_names_are_no_cycles() -> None:
    first, second = helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])
    check_acyclic(model([first, second]))
    # The branch's "y" is its own, though the node's output has the same name outside.
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["inner"])],
        "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    check_acyclic(model([helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)]))


def test_a_long_chain_takes_no_recursion() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5000)]
    check_acyclic(model(nodes[::-1]))
    nodes.append(helper.make_node("Relu", ["t5000"], ["t0"]))
    with pytest.raises(InputError):
        check_acyclic(model(nodes))
