"""`--layers`: the first tensor that diverges is the right one, and a name that means two things does no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import fuse
from onnx_repfuse.records.comparison import Layers
from onnx_repfuse.verifier.comparing import layers as layers_module
from onnx_repfuse.verifier.comparing.shared_tensors import in_topological_order
from onnx_repfuse.verifier.comparing.two_models import compare_models
from tests.build import Net


def network(depth: int = 6, shape: Any = ("N", 4, "H", "W")) -> onnx.ModelProto:
    """Conv and Relu by turns, with a skip around each pair."""
    net = Net(4, shape=shape)
    x = "x"
    for _ in range(depth):
        x = net.op("Relu", net.add(net.conv(x, 4, 4, 3), x))
    return net.model(x)


def weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]


def broken(model: onnx.ModelProto, index: int, factor: float = 1.01) -> tuple[onnx.ModelProto, str]:
    """(a copy with one wrong weight in the Conv of that index, the tensor that this Conv computes)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = weights(copy)[index]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    (node,) = [node for node in copy.graph.node if tensor.name in node.input]
    return copy, node.output[0]


def layers_of(first: Any, second: Any, **options: Any) -> Layers:
    result = compare_models(first, second, layers=True, **options)
    assert result.layers is not None
    return result.layers


@pytest.mark.parametrize("index", [0, 3, 5])
def test_the_first_that_diverges_is_the_one_with_the_wrong_weight(index: int) -> None:
    model = network()
    other, tensor = broken(model, index)
    found = layers_of(model, other)
    first = found.first_divergence
    assert first is not None
    assert (first.tensor, first.first.op, first.first.name) == (tensor, "Conv", tensor)
    assert [layer.tensor for layer in found.tensors if layer.is_origin] == [tensor]
    assert first.max_rel > first.allowed_rel > 0
    before = found.tensors[: found.tensors.index(first)]
    assert all(layer.status == "agrees" and layer.max_abs == 0 for layer in before)
    assert [layer.tensor for layer in found.tensors] == [
        name for node in model.graph.node for name in node.output
    ]


def test_a_tolerance_that_was_given_holds_for_tensors_too() -> None:
    model = network()
    other, tensor = broken(model, 3)
    assert layers_of(model, other, atol=10.0).first_divergence is None
    first = layers_of(model, other, atol=1e-5).first_divergence
    assert first is not None
    assert (first.tensor, first.allowed) == (tensor, 1e-5)


def test_two_wrong_weights_on_two_ways_are_two_origins() -> None:
    net = Net(4, shape=("N", 4, "H", "W"))
    ways = [net.op("Relu", net.conv(net.op("Relu", net.conv("x", 4, 4, 3)), 4, 4, 3)) for _ in range(3)]
    model = net.model(net.add(*ways))
    once, first = broken(model, 0)
    twice, second = broken(once, 3)
    found = layers_of(model, twice)
    assert [layer.tensor for layer in found.tensors if layer.is_origin] == [first, second]


def test_models_that_are_equal_up_to_rounding_agree_everywhere() -> None:
    net = Net(4, shape=("N", 4, "H", "W"))
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.add(net.conv_bn(x, 4, 4, 3), net.conv_bn(x, 4, 4, 1), net.bn(x, 4)))
    model = net.model(x)
    found = layers_of(model, fuse(model).model)
    assert {layer.status for layer in found.tensors} == {"agrees"}
    assert found.first_divergence is None
    assert any(layer.max_abs > 0 for layer in found.tensors)


def test_a_name_that_means_two_things_is_no_divergence() -> None:
    """Exporters name a Conv alike, whether its normalization follows or was folded in."""
    net = Net(4, shape=("N", 4, "H", "W"))
    conv = net.conv("x", 4, 4, 3, bias=False)
    relu = net.op("Relu", net.bn(conv, 4))
    model = net.model(net.op("Relu", net.conv(relu, 4, 4, 3)))
    folded = fuse(model).model
    (node,) = [node for node in folded.graph.node if any("relu" not in name for name in node.output)][:1]
    old = node.output[0]
    for other in folded.graph.node:
        other.input[:] = [conv if name == old else name for name in other.input]
    node.output[0] = conv
    result = compare_models(model, folded, layers=True)
    assert result
    assert result.layers is not None
    statuses = {layer.tensor: layer.status for layer in result.layers.tensors}
    assert statuses[conv] == "agrees again"
    assert statuses[relu] == "agrees"
    assert result.layers.first_divergence is None


def test_slices_change_nothing_but_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(shape=(1, 4, 16, 16))
    other, _ = broken(model, 2)
    whole = layers_of(model, other)
    assert whole.slices == 1
    opened: list[int] = []
    real = layers_module.open_with_extra_outputs
    monkeypatch.setattr(
        layers_module,
        "open_with_extra_outputs",
        lambda m, names, runtime: (opened.append(len(names)), real(m, names, runtime))[1],
    )
    monkeypatch.setattr(layers_module, "MAX_SLICE_BYTES", 3 * 4 * (4 * 4 * 16 * 16))
    sliced = layers_of(model, other)
    assert sliced.slices == 6
    assert max(opened) == 3  # no session has more outputs than a slice
    assert sliced.tensors == whole.tensors


@pytest.mark.parametrize("swap", [False, True])
def test_layers_of_float16_are_judged_by_its_noise(swap: bool) -> None:
    full = network()
    half = onnx.ModelProto()
    half.CopyFrom(full)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    found = layers_of(*((half, full) if swap else (full, half)))
    assert {layer.status for layer in found.tensors} == {"agrees"}
    assert all(0 < layer.max_rel < layer.allowed_rel for layer in found.tensors)
    wrong, tensor = broken(half, 3, -1)
    found = layers_of(*((wrong, full) if swap else (full, wrong)))
    assert found.first_divergence is not None
    assert found.first_divergence.tensor == tensor


def test_other_shapes_types_and_random_numbers_are_not_compared() -> None:
    def model(last: list[onnx.NodeProto]) -> onnx.ModelProto:
        nodes = [helper.make_node("Relu", ["x"], ["r"]), *last, helper.make_node("Neg", ["r"], ["y"])]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, [3, 5])], [value("y", TensorProto.FLOAT, [3, 5])]
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    random = helper.make_node("RandomNormalLike", ["r"], ["n"])
    first = model(
        [helper.make_node("Transpose", ["r"], ["s"]), helper.make_node("Floor", ["r"], ["t"]), random]
    )
    second = model([helper.make_node("Abs", ["r"], ["s"]), helper.make_node("IsNaN", ["r"], ["t"]), random])
    found = {layer.tensor: layer for layer in layers_of(first, second).tensors}
    assert found["s"].message == "it has shape [5, 3] and [3, 5]"
    assert found["t"].message == "it has type float32 and bool"
    assert found["n"].message == "it depends on random numbers"
    assert [found[name].status for name in ("r", "y")] == ["agrees"] * 2


def test_outputs_of_other_names_are_compared_by_order() -> None:
    first = network(2)
    second, tensor = broken(first, 1)
    old = second.graph.output[0].name
    second.graph.node[-1].output[0] = second.graph.output[0].name = "elsewhere"
    found = layers_of(first, second, by_order=True)
    assert found.tensors[-1].tensor == old
    assert found.tensors[-1].second.op == "Relu"
    assert found.first_divergence is not None
    assert found.first_divergence.tensor == tensor


def test_a_model_that_does_not_run_has_no_layers() -> None:
    second = network()
    second.graph.node[0].op_type = "NoSuchOp"
    found = layers_of(network(), second)
    assert found.tensors == ()
    assert "does not run" in found.notes[0]


def test_nodes_are_sorted_where_the_file_does_not() -> None:
    nodes = list(network(3).graph.node)
    names = [node.output[0] for node in nodes]
    assert [node.output[0] for node in in_topological_order(nodes)] == names
    assert [node.output[0] for node in in_topological_order(nodes[::-1])] == names
    circle = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["a"])]
    assert in_topological_order(circle) == circle


def test_a_name_that_another_one_begins_with_is_another_tensor() -> None:
    """Exporters call tensors `input` and `input.1`."""
    model = network(2)
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    names = {relus[0]: "y", relus[1]: "y.1"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.output[0].name = "y.1"
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model.graph.output[1].type.tensor_type.ClearField("shape")
    other, tensor = broken(model, 1)
    result = compare_models(model, other, layers=True)
    assert result.layers is not None
    assert result.layers.first_divergence is not None
    assert result.layers.first_divergence.tensor == tensor
    assert [layer.status for layer in result.layers.tensors if layer.tensor == "y"] == ["agrees"]
