"""Loop and Scan bodies, branches in branches, functions in functions: folded inside, captures respected."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name: str, kind: int = FLOAT, shape: Any = (None, 4, None, None)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def inside(net: Net) -> Net:
    """A net for a body, whose names and weights are those of `net`."""
    body = Net(4)
    body.rng, body.tensors, body.count = net.rng, net.tensors, net.count + 100
    net.count += 200
    return body


def finished(net: Net, *outputs: str) -> onnx.ModelProto:
    """The model, its outputs declared as images."""
    model = net.model(*outputs)
    for i, name in enumerate(outputs):
        model.graph.output[i].CopyFrom(value(name))
    return model


def bodies(model: onnx.ModelProto) -> list[list[str]]:
    """Ops of every subgraph, depth first."""
    found = []

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    found.append([n.op_type for n in attribute.g.node if n.op_type != "Constant"])
                    visit(attribute.g)

    visit(model.graph)
    return found


def repvgg(net: Net, x: str) -> str:
    return str(net.op("Relu", net.add(net.conv_bn(x, 4, 4, 3), net.conv_bn(x, 4, 4, 1), net.bn(x, 4))))


def test_loop_body_with_weights_from_outside() -> None:
    net = Net(4)
    body = inside(net)
    y = repvgg(body, "state")
    keep = body.op("Identity", "go")
    graph = helper.make_graph(
        body.nodes,
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state")],
        [value(keep, BOOL, []), value(y)],
    )
    out = net.op("Loop", net.const(np.array(3)), net.const(np.array(True)), "x", body=graph)
    result = check(finished(net, out), {"Loop": 1})
    assert sorted(bodies(result.model)[0]) == ["Conv", "Identity", "Relu"]
    assert weights_of(result.model) == 4 * 4 * 9 + 4 + 2  # and how often it runs, and its condition


def test_loop_body_with_weights_of_its_own() -> None:
    net = Net(4)
    body = Net(4)
    body.count = 500
    y = repvgg(body, "state")
    keep = body.op("Identity", "go")
    graph = helper.make_graph(
        body.nodes,
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state")],
        [value(keep, BOOL, []), value(y)],
        body.tensors,
    )
    out = net.op("Loop", net.const(np.array(2)), net.const(np.array(True)), "x", body=graph)
    result = check(finished(net, out), {"Loop": 1})
    loop = next(n for n in result.model.graph.node if n.op_type == "Loop")
    inner = next(a.g for a in loop.attribute if a.name == "body")
    assert counts_of(inner) == {"Conv": 1, "Identity": 1, "Relu": 1}
    # weight, bias, and Loop's own two
    assert len(inner.initializer) + len(result.model.graph.initializer) == 4


def counts_of(graph: onnx.GraphProto) -> dict[str, int]:
    return counts(helper.make_model(graph))


def test_scan_body() -> None:
    """Over the batch: a scan input of rank 3 becomes an image of one."""
    net = Net(4)
    body = inside(net)
    first = body.const(np.array([0]))
    y = repvgg(body, body.op("Unsqueeze", "image", first))
    y = body.op("Squeeze", y, first)
    graph = helper.make_graph(
        body.nodes, "body", [value("image", FLOAT, [4, None, None])], [value(y, FLOAT, [4, None, None])]
    )
    out = net.op("Scan", "x", body=graph, num_scan_inputs=1)
    result = check(finished(net, out), {"Scan": 1})
    assert bodies(result.model)[0].count("Conv") == 1
    assert "BatchNormalization" not in bodies(result.model)[0]


def test_a_tensor_captured_by_a_loop_has_a_consumer() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    body = inside(net)
    total = body.op("Add", "state", y)
    keep = body.op("Identity", "go")
    graph = helper.make_graph(
        body.nodes,
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state")],
        [value(keep, BOOL, []), value(total)],
    )
    out = net.op("Loop", net.const(np.array(2)), net.const(np.array(True)), "x", body=graph)
    check(finished(net, out, net.bn(y, 4)), None, Reason.CONSUMERS)


def test_a_chain_that_ends_inside_is_not_cut() -> None:
    """The Conv stands outside, its BatchNormalization in both branches: neither may take it in."""
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    graphs = []
    for number in range(2):
        body = inside(net)
        graphs.append(helper.make_graph(body.nodes, f"b{number}", [], [value(body.bn(y, 4))]))
    net.more_inputs.append(value("choice", BOOL, []))
    out = net.op("If", "choice", then_branch=graphs[0], else_branch=graphs[1])
    model = net.model(out)
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1, "If": 1}
    assert equal(model, result.model) > 0


def test_branches_in_branches() -> None:
    net = Net(4)
    net.more_inputs.append(value("choice", BOOL, []))

    def nested(depth: int) -> onnx.GraphProto:
        body = inside(net)
        y = repvgg(body, "x")
        if depth:
            inner = body.op("If", "choice", then_branch=nested(depth - 1), else_branch=nested(depth - 1))
            y = str(body.op("Mul", y, inner))
        return helper.make_graph(body.nodes, f"depth{depth}", [], [value(y)])

    out = net.op("If", "choice", then_branch=nested(2), else_branch=nested(0))
    result = check(net.model(out), {"If": 1})
    for ops in bodies(result.model):
        assert ops.count("Conv") <= 1
        assert "BatchNormalization" not in ops


def test_names_inside_hide_names_outside() -> None:
    """A weight of the branch has the name of one outside, with other values."""
    net = Net(4)
    outer = net.conv_bn("x", 4, 4, 3)
    weight = net.nodes[0].input[1]
    body = Net(4, seed=9)
    body.count = 700
    y = body.conv_bn("x", 4, 4, 3)
    for node in body.nodes:
        for i, name in enumerate(node.input):
            if name == body.tensors[0].name:
                node.input[i] = weight
    body.tensors[0].name = weight
    graph = helper.make_graph(body.nodes, "then", [], [value(y)], body.tensors)
    plain = helper.make_graph([helper.make_node("Identity", [outer], ["same"])], "else", [], [value("same")])
    net.more_inputs.append(value("choice", BOOL, []))
    out = net.op("If", "choice", then_branch=graph, else_branch=plain)
    model = net.model(out)
    model.ir_version = 8  # older than the rule against it
    result = fuse(model)
    assert counts(result.model)["Conv"] == 1
    assert equal(model, result.model) >= 0


def test_function_whose_weights_are_constants_inside() -> None:
    net = Net(4)
    body = inside(net)
    body.tensors = []
    y = repvgg(body, "a")
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in body.tensors] + body.nodes
    net.functions.append(
        helper.make_function("own", "Block", ["a"], [y], nodes, [helper.make_opsetid("", 17)])
    )
    call = [helper.make_node("Block", ["x"], ["once"], domain="own")]
    call.append(helper.make_node("Block", ["once"], ["twice"], domain="own"))
    net.nodes += call
    result = check(net.model("twice"), {"Block": 2})
    (function,) = result.model.functions
    assert [n.op_type for n in function.node if n.op_type != "Constant"] == ["Conv", "Relu"]


def test_function_that_calls_a_function() -> None:
    net = Net(4)
    opset = helper.make_opsetid("", 17)

    def body(*call: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str]:
        inner = inside(net)
        inner.tensors = []
        y = inner.conv_bn(call[0].output[0] if call else "a", 4, 4, 3)
        constants = [helper.make_node("Constant", [], [t.name], value=t) for t in inner.tensors]
        return [*call, *constants, *inner.nodes], y

    nodes, y = body()
    net.functions.append(helper.make_function("own", "Inner", ["a"], [y], nodes, [opset]))
    nodes, y = body(helper.make_node("Inner", ["a"], ["b"], domain="own"))
    imports = [opset, helper.make_opsetid("own", 1)]
    net.functions.append(helper.make_function("own", "Outer", ["a"], [y], nodes, imports))
    net.nodes.append(helper.make_node("Outer", ["x"], ["y"], domain="own"))
    result = check(net.model("y"), {"Outer": 1})
    ops = [[n.op_type for n in f.node if n.op_type != "Constant"] for f in result.model.functions]
    assert ops == [["Conv"], ["Inner", "Conv"]]


def test_attributes_of_a_function_are_not_known() -> None:
    """A Conv whose pads are given by the caller is left alone."""
    net = Net(4)
    conv = helper.make_node("Conv", ["a", "w"], ["b"])
    reference = onnx.AttributeProto(name="pads", type=onnx.AttributeProto.INTS, ref_attr_name="pads")
    conv.attribute.append(reference)
    body = [
        helper.make_node(
            "Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32))
        ),
        helper.make_node(
            "Constant", [], ["v"], value=onnx.numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32))
        ),
        conv,
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4),
    ]
    net.functions.append(
        helper.make_function("own", "F", ["a"], ["c"], body, [helper.make_opsetid("", 17)], ["pads"])
    )
    for output, pads in (("y", [1, 1, 1, 1]), ("z", [0, 0, 0, 0])):
        net.nodes.append(helper.make_node("F", ["x"], [output], domain="own", pads=pads))
    check(net.model("y"), None)


def weights_of(model: onnx.ModelProto) -> int:
    """Elements of all initializers and Constant nodes, those of subgraphs included."""

    def inside_of(graph: onnx.GraphProto) -> int:
        count = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    count += int(np.prod(attribute.t.dims))
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    count += inside_of(attribute.g)
        return count

    return inside_of(model.graph)


def branches_that_read(net: Net, *, depth: int = 1, constants: bool = False) -> onnx.ModelProto:
    """Conv and BatchNormalization in a branch, with weights of the main graph, `depth` graphs around it."""
    then = inside(net)
    y = then.conv_bn("x", 4, 4, 3)
    nodes = then.nodes
    for level in range(depth):
        relu = helper.make_node("Relu", ["x"], [f"r{level}"])
        branches = {
            "then_branch": helper.make_graph(nodes, "t", [], [value(y)]),
            "else_branch": helper.make_graph([relu], "e", [], [value(f"r{level}")]),
        }
        y = f"chosen{level}"
        nodes = [helper.make_node("If", ["c"], [y], **branches)]
    net.nodes += nodes
    net.more_inputs.append(value("c", BOOL, []))
    if constants:
        net.nodes[:0] = [helper.make_node("Constant", [], [t.name], value=t) for t in net.tensors]
        del net.tensors[:]
    return finished(net, y)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("constants", [False, True])
def test_weights_that_only_a_folded_branch_read_leave_the_main_graph(depth: int, constants: bool) -> None:
    model = branches_that_read(Net(4), depth=depth, constants=constants)
    fused = fuse(model).model
    assert weights_of(fused) == 4 * 4 * 9 + 4
    assert equal(model, fused) > 0
    assert fuse(fused).model == fused


def test_weights_that_somebody_else_reads_stay_in_the_main_graph() -> None:
    net = Net(4)
    model = branches_that_read(net)
    weight = next(tensor.name for tensor in net.tensors if len(tensor.dims) == 4)
    model.graph.node.append(helper.make_node("Identity", [weight], ["w_out"]))
    model.graph.output.append(value("w_out", shape=(4, 4, 3, 3)))
    fused = fuse(model).model
    assert weights_of(fused) == 2 * 4 * 4 * 9 + 4
    assert equal(model, fused) > 0


def test_what_computes_a_weight_for_a_folded_branch_goes_with_it() -> None:
    net = Net(4)
    model = branches_that_read(net)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    model.graph.node.insert(0, helper.make_node("Identity", ["stored"], [weight.name]))
    weight.name = "stored"
    fused = fuse(model).model
    assert counts(fused) == {"If": 1}
    assert weights_of(fused) == 4 * 4 * 9 + 4
    assert equal(model, fused) > 0
