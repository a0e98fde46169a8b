"""A weight that folds made for several consumers is written once, if it is the same for all, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, counts, equal
from tests.parts import Weights, batch_norm, graph, info, model, node, norm, random


def _weights(made: onnx.ModelProto, op: str) -> list[str]:
    """The names of the weights of all nodes of an operator in the result, which computes the same."""
    result = fuse(made)
    assert result.model is not None
    assert equal(made, result.model) > 0
    again = fuse(result.model).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()
    assert "BatchNormalization" not in counts(result.model)
    sizes = result.report.after.parameters, sum(int(np.prod(t.dims)) for t in result.model.graph.initializer)
    assert sizes[0] == sizes[1]
    return [name for n in result.model.graph.node if n.op_type == op for name in n.input[1:]]


def _heads(op: str, weights: Weights, params: list[str], **attributes: Any) -> onnx.ModelProto:
    """One operator by one weight for each of several inputs, each with a BatchNormalization of its own parameters."""
    nodes, inputs, outputs = [], [], []
    for number, prefix in enumerate(params):
        nodes.append(node(op, f"x{number} w", f"c{number}", **attributes))
        nodes.append(
            node(
                "BatchNormalization",
                f"c{number} " + " ".join(f"{prefix}{p}" for p in ("ps", "pb", "pm", "pv")),
                f"y{number}",
            )
        )
        inputs.append(info(f"x{number}", ["n", 4, f"h{number}", "w_"] if op.startswith("Conv") else ["n", 4]))
        outputs.append(info(f"y{number}", None))
    return model(graph(nodes, outputs, weights, inputs))


A = norm(4)
B = {f"b{name}": value for name, value in norm(4).items()}


@pytest.mark.parametrize(
    ("op", "shape", "made"),
    [
        ("Conv", (4, 4, 3, 3), "Conv"),
        ("ConvTranspose", (4, 4, 2, 2), "ConvTranspose"),
        ("Gemm", (4, 4), "Gemm"),
    ],
)
def test_a_head_for_several_inputs_has_one_weight(op: str, shape: tuple[int, ...], made: str) -> None:
    names = _weights(_heads(op, {"w": random(*shape), **A}, ["", "", ""]), made)
    assert len(set(names)) == 2  # the weight and the bias


def test_other_statistics_make_other_weights() -> None:
    names = _weights(_heads("Conv", {"w": random(4, 4, 3, 3), **A, **B}, ["", "b", ""]), "Conv")
    assert len(names) == 6
    assert len(set(names)) == 4
    assert names[:2] == names[4:]


def test_the_bias_alone_may_be_equal() -> None:
    weights = {"w": random(4, 4, 3, 3), **A, **{f"b{name}": value for name, value in A.items()}}
    weights["bps"] = A["ps"] * np.float32(2)
    weights["bpb"], weights["bpm"] = A["pb"], A["pm"] / np.float32(2)
    names = _weights(_heads("Conv", weights, ["", "b"]), "Conv")
    assert len(set(names)) == 3


def test_a_matrix_read_both_ways_is_two() -> None:
    nodes = [
        node("Gemm", "x w", "c"),
        batch_norm("c", "y"),
        node("Gemm", "z w", "d", transB=1),
        batch_norm("d", "y2"),
    ]
    made = model(
        graph(
            nodes,
            [info("y", None), info("y2", None)],
            {"w": random(4, 4), **A},
            [info("x", ["n", 4]), info("z", ["m", 4])],
        )
    )
    names = _weights(made, "Gemm")
    assert len(names) == 4
    assert len(set(names)) == 3  # the bias is the same


def test_equal_branches_of_equal_weights() -> None:
    """A block of several branches that a network applies twice."""
    net = Net(4)
    first = len(net.tensors)
    nodes = len(net.nodes)
    y = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))
    block, tensors = net.nodes[nodes:], net.tensors[first:]
    assert tensors
    y = net.op("Relu", y)
    renamed = {"x": y}
    for one in block:
        copy = onnx.NodeProto()
        copy.CopyFrom(one)
        copy.ClearField("name")
        copy.input[:] = [renamed.get(name, name) for name in one.input]
        renamed[one.output[0]] = copy.output[0] = net.fresh("second")
        net.nodes.append(copy)
    made = net.model(net.op("Sigmoid", copy.output[0]))
    names = _weights(made, "Conv")
    assert len(names) == 4
    assert len(set(names)) == 2


def test_planning_reads_no_kernel_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_repfuse.algebra.kernels import Scaled

    def rows(self: Scaled, lo: int, hi: int) -> None:
        raise AssertionError("a folded weight was computed")

    made = _heads("Conv", {"w": random(4, 4, 3, 3), **A}, ["", ""])
    report = fuse(made, options=Options(check=False)).report
    monkeypatch.setattr(Scaled, "rows", rows)
    from onnx_repfuse import plan

    assert plan(made).after.parameters == report.after.parameters
