"""What is not folded comes out of a whole run as it went in: as protobuf messages, and payloads as bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from tests.build import Net, equal

ODD = [
    name for name in ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4") if hasattr(TensorProto, name)
]
BITS = {"BFLOAT16": 16, "INT4": 4, "UINT4": 4}


def note(message, key="note"):
    """Metadata on a message, where this ONNX has it."""
    if "metadata_props" in message.DESCRIPTOR.fields_by_name:
        message.metadata_props.add(key=key, value=f"of {message.DESCRIPTOR.name}")


def rich():
    """Conv + BatchNormalization, which fold, among everything a model can carry."""
    net = Net(4)
    y = net.op("Relu", net.conv_bn("x", 4, 4, 3))
    net.functions.append(
        helper.make_function(
            "local",
            "Twice",
            ["a"],
            ["b"],
            [helper.make_node("Add", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    )
    y = net.op("Twice", y, domain="local")
    sparse = TensorProto(name="sparse", data_type=TensorProto.FLOAT, dims=[2])
    sparse.raw_data = np.array([1, 2], np.float32).tobytes()
    places = numpy_helper.from_array(np.array([1, 5], np.int64), "places")
    model = net.model(net.op("Add", y, net.channel(4)))
    graph = model.graph
    graph.sparse_initializer.add(values=sparse, indices=places, dims=[8])
    rng = np.random.default_rng(3)
    for name in ODD:
        size = 5000 * BITS.get(name, 8) // 8  # large enough to be left in the file
        tensor = TensorProto(name=name, data_type=getattr(TensorProto, name), dims=[5000])
        tensor.raw_data = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        graph.initializer.append(tensor)
    graph.initializer.append(
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"])
    )
    graph.initializer.append(helper.make_tensor("typed", TensorProto.INT32, [3], [1, 2, 3]))
    graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    annotation = graph.quantization_annotation.add(tensor_name=y)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="typed")
    for node in graph.node:
        node.doc_string = f"what {node.op_type} does"
        note(node)
        for attribute in node.attribute:
            attribute.doc_string = "an attribute"
    for message in (
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
        graph,
        model.functions[0],
    ):
        message.doc_string = "said"
        note(message)
    note(model, "author")
    model.doc_string, model.producer_name, model.producer_version = "the model", "somebody", "1.2"
    model.domain, model.model_version = "example", 7
    model.opset_import.append(helper.make_opsetid("unused.domain", 3))
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.algorithm.node.append(helper.make_node("Identity", ["x"], ["loss"]))
    training.update_binding.add(key="typed", value="loss")
    return model


def by_name(messages):
    return {message.name: message for message in messages}


@pytest.mark.parametrize("way", ["file", "external", "memory"])
def test_all_that_is_not_folded_survives(tmp_path, way):
    model = rich()
    options = Options(check=False)
    if way == "memory":
        fused = fuse(model, options=options).model
    else:
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=way == "external", size_threshold=1000)
        model = onnx.load(tmp_path / "m.onnx")
        fused = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx", options).model
    kept = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    assert [getattr(model, name) for name in kept] == [getattr(fused, name) for name in kept]
    for name in ("opset_import", "metadata_props", "training_info", "functions"):
        assert list(getattr(model, name)) == list(getattr(fused, name)), name
    old, new = model.graph, fused.graph
    for name in ("name", "doc_string"):
        assert getattr(old, name) == getattr(new, name)
    for name in ("input", "output", "sparse_initializer", "quantization_annotation", "metadata_props"):
        if name in old.DESCRIPTOR.fields_by_name:
            assert list(getattr(old, name)) == list(getattr(new, name)), name
    untouched = [node for node in old.node if node.op_type not in ("Conv", "BatchNormalization")]
    assert [node for node in new.node if node.op_type != "Conv"] == untouched
    assert [node.op_type for node in new.node] == ["Conv", "Relu", "Twice", "Add"]
    values = {name for node in new.node for name in node.output}
    assert by_name(new.value_info) == {
        name: v for name, v in by_name(old.value_info).items() if name in values
    }
    left = {tensor.name for node in untouched for tensor in old.initializer if tensor.name in node.input}
    for name in (*ODD, "words", "typed", *left):
        assert by_name(old.initializer)[name] == by_name(new.initializer)[name], name
    onnx.checker.check_model(fused)


def test_a_rich_model_that_runs_is_proved(tmp_path):
    model = rich()
    for name in ("training_info", "metadata_props"):
        model.ClearField(name)
    for name in ("sparse_initializer", "quantization_annotation"):
        model.graph.ClearField(name)
    result = fuse(model)
    assert result.report.verification
    assert equal(model, result.model) > 0


def test_overloads_of_a_function_stay_apart():
    model = rich()
    again = onnx.FunctionProto()
    again.CopyFrom(model.functions[0])
    again.overload = "other"
    again.node[0].op_type = "Sub"
    model.functions.append(again)
    twice = next(node for node in model.graph.node if node.op_type == "Twice")
    twice.overload = "other"
    fused = fuse(model, options=Options(check=False)).model
    assert [function.overload for function in fused.functions] == ["", "other"]
    assert next(node for node in fused.graph.node if node.op_type == "Twice") == twice
