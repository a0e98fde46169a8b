"""Shape inference ends, and does not end the process, on whatever a plan lets it see."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TypeProto, helper

from onnx_repfuse import Options, fuse, plan, verify
from onnx_repfuse.errors import InputError, VerificationError
from onnx_repfuse.graph.enforced import is_inferable
from onnx_repfuse.records.verdict import Status
from tests.build import Net
from tests.parts import batch_norm, norm, random
from tests.versions import since

AttrType = onnx.defs.OpSchema.AttrType
# for each type of attribute, values that are ordinary, wrong, huge, and nothing
VALUES = {
    AttrType.INT: (1, -7, 1 << 62, 0),
    AttrType.INTS: ([1, 1], [-5], [1 << 62] * 2, [0, 0]),
    AttrType.FLOAT: (1.0, -1.0, 1e38, 0.0),
    AttrType.FLOATS: ([1.0], [-3.0], [1e38], [0.0, 0.0]),
    AttrType.STRING: ("a", "", ".", "......ii,...jj->...ij"),
    AttrType.STRINGS: (["a"], [""], ["b", "c"], ["b", "c"]),
}
TENSOR = helper.make_tensor_type_proto(1, [1])
KINDS: list[TypeProto | None] = [
    None,
    TypeProto(),
    TypeProto(tensor_type=TypeProto.Tensor()),
    TypeProto(tensor_type=TypeProto.Tensor(elem_type=1)),
    helper.make_tensor_type_proto(1, []),
    helper.make_tensor_type_proto(7, [1]),
    helper.make_tensor_type_proto(8, [2]),
    helper.make_tensor_type_proto(1, [1, 3, 4, None]),
    helper.make_sequence_type_proto(TENSOR),
    helper.make_map_type_proto(7, TENSOR),
    helper.make_optional_type_proto(TENSOR),
    TypeProto(sequence_type=TypeProto.Sequence()),
]


def _attributes(schema: onnx.defs.OpSchema, variant: int) -> list[AttributeProto]:
    result = []
    for name, attribute in schema.attributes.items():
        if attribute.type in VALUES:
            result.append(helper.make_attribute(name, VALUES[attribute.type][variant]))
        elif attribute.type == AttrType.TENSOR:
            result.append(helper.make_attribute(name, helper.make_tensor("t", 1, [1], [1.0])))
    return result


def _nodes(schema: onnx.defs.OpSchema) -> Iterator[tuple[onnx.NodeProto, list[TypeProto | None]]]:
    count = min(schema.max_input, max(schema.min_input, 4))
    types = [[kind] * count for kind in KINDS]
    types += [
        [KINDS[7]] * place + [kind] + [KINDS[7]] * (count - place - 1)
        for place in range(count)
        for kind in KINDS
    ]
    for variant in range(4):
        for given in types:
            inputs, outputs = (
                [f"i{n}" for n in range(count)],
                [f"o{n}" for n in range(min(schema.max_output, 3))],
            )
            node = helper.make_node(schema.name, inputs, outputs, domain=schema.domain)
            node.attribute.extend(_attributes(schema, variant))
            yield node, given


def _infer(schema: onnx.defs.OpSchema) -> None:
    for node, types in _nodes(schema):
        if not is_inferable(node):
            continue
        body = onnx.GraphProto(name="g", node=[node])
        for name, type_ in zip(node.input, types, strict=True):
            if type_ is not None:
                body.input.add(name=name, type=type_)
        made = onnx.ModelProto(ir_version=8, graph=body)
        made.opset_import.add(domain=schema.domain, version=schema.since_version)
        try:
            onnx.shape_inference.infer_shapes(made, data_prop=True)
        except Exception:  # the process goes on, that is all there is to see
            continue


def _infer_all(done: Connection) -> None:
    for schema in onnx.defs.get_all_schemas():
        if schema.domain == "":  # of others nothing is inferred
            done.send(f"{schema.name}-{schema.since_version}")
            _infer(schema)
    done.send("")


@since("onnx before 1.23 ends the process on nodes of inputs that make no sense", onnx="1.23")
def test_no_operator_ends_the_process_or_never_ends() -> None:
    """In a child process, for the latest version of each operator."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_infer_all, args=(there,))
    child.start()
    there.close()
    tried = []
    try:
        while here.poll(60) and (operator := here.recv()):
            tried.append(operator)
    except EOFError:
        pytest.fail(f"{tried[-1]} ended the process")
    finally:
        child.kill()
        child.join()
    assert len(tried) > 150
    assert not operator, f"{tried[-1]} never ends"


def _waveforms() -> Iterator[onnx.ModelProto]:
    """Models of an input of unknown length, with windows larger than what is assumed, and Slices behind them."""
    for how in ("Conv", "AveragePool", "MaxPool", "Pad", "ConvTranspose", "twice"):
        net = Net(shape=("N", 1, "L"))
        bounds = [net.const(np.array([number])) for number in (0, -1, 2)]
        if how == "Pad":
            made = net.op("Pad", "x", net.const(np.array([0, 0, -300, 0, 0, 0])))
        elif how == "ConvTranspose":
            made = net.op("ConvTranspose", "x", net.random(1, 1, 3), pads=[300, 0])
        elif "Pool" in how:
            made = net.op(how, "x", kernel_shape=[600])
        else:
            made = net.conv("x", 1, 1, (100 if how == "twice" else 600,), pad=0, strides=[10])
        made = net.op("Slice", made, *bounds)
        if how == "twice":
            made = net.op("Slice", net.conv(net.op("Relu", made), 1, 1, (100,), pad=0), *bounds)
        yield net.model(net.bn(net.conv(made, 1, 4, (3,)), 4))


def _plan_waveforms(done: Connection) -> None:
    done.send([len(plan(made).folds) for made in _waveforms()])


def test_a_slice_of_what_inference_takes_for_a_negative_size() -> None:
    """In a child process, which it ended."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_plan_waveforms, args=(there,))
    child.start()
    there.close()
    assert here.recv() == [1] * 6
    child.join()


def _same(made: onnx.ModelProto) -> None:
    result = fuse(made)
    assert result.model is not None
    assert result.model.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)


def _model(inputs: dict[str, TypeProto], nodes: list[onnx.NodeProto], output: TypeProto) -> onnx.ModelProto:
    body = helper.make_graph(
        nodes,
        "g",
        [onnx.ValueInfoProto(name=name, type=type_) for name, type_ in inputs.items()],
        [onnx.ValueInfoProto(name="y", type=output)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=9)


def test_a_model_of_maps_stays_as_it_is() -> None:
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", int64_vocabulary=[0, 1])
    x = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    _same(_model({"x": x}, [node], helper.make_tensor_type_proto(1, [1, 2])))


def test_a_model_of_sequences_stays_as_it_is() -> None:
    nodes = [
        helper.make_node("Constant", [], ["i"], value_int=0),
        helper.make_node("SequenceAt", ["s", "i"], ["t"]),
        helper.make_node("RegexFullMatch", ["t"], ["y"], pattern="a.*"),
    ]
    words = helper.make_tensor_type_proto(onnx.TensorProto.STRING, None)
    s = helper.make_sequence_type_proto(words)
    _same(_model({"s": s}, nodes, helper.make_tensor_type_proto(onnx.TensorProto.BOOL, [2])))


@pytest.mark.parametrize("equation", ["......ii,...jj->...ij", ".,.->.", "a......,b->ab", "ij->......"])
def test_an_einsum_whose_equation_makes_no_sense_does_not_hang(equation: str) -> None:
    """Whatever is said of the model, it is said at once."""
    square = helper.make_tensor_type_proto(1, [3, 3, 3])
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    with suppress(InputError, VerificationError):
        _same(_model({"a": square, "b": square}, [node], square))


def test_beside_an_equation_on_which_onnxruntime_never_ends_a_block_is_folded_and_proved_alone() -> None:
    square = helper.make_tensor_type_proto(1, [3, 3, 3])
    nodes = [
        helper.make_node("Einsum", ["a", "a"], ["e"], equation="......ii,...jj->...ij"),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        batch_norm("c", "y"),
    ]
    made = _model({"a": square, "x": helper.make_tensor_type_proto(1, [1, 3, 4, 4])}, nodes,
                  helper.make_tensor_type_proto(1, [1, 4, 4, 4]))  # fmt: skip
    made.graph.output.append(onnx.ValueInfoProto(name="e", type=square))
    weights = {"w": random(4, 3, 1, 1), **norm(4)}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in weights.items())
    report = fuse(made).report
    assert len(report.folds) == 1
    assert report.verification is not None
    assert report.verification.status is Status.NOT_OBSERVED
    assert "never ends" in report.verification.verdicts[0].message
    with pytest.raises(InputError, match="never ends"):
        verify(made, made)


def test_a_sequence_beside_a_block_does_not_keep_it_from_being_folded() -> None:
    nodes = [
        helper.make_node("SequenceAt", ["s", "zero"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["u"]),
        helper.make_node("Conv", ["u", "w"], ["c"]),
        batch_norm("c", "y"),
    ]
    tensor = helper.make_tensor_type_proto(1, [1, 3, 4, 4])
    made = _model(
        {"s": helper.make_sequence_type_proto(tensor), "x": tensor},
        nodes,
        helper.make_tensor_type_proto(1, [1, 4, 4, 4]),
    )
    weights = {"zero": np.array(0), "w": random(4, 3, 1, 1), **norm(4)}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    assert len(fuse(made, options=Options(check=False)).report.folds) == 1
