"""An edit leaves all other protobuf messages as they are; a file appears whole or not at all."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile import save as saving
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, NewTensor
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.modelfile.serialize import serialize
from onnx_repfuse.modelfile.weightless import mark_of

RNG = np.random.default_rng(11)
W = RNG.standard_normal((32, 32)).astype(np.float32)
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def value(name, shape=(1, 32)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def branch(name, reads, writes, weight=None):
    """A subgraph that multiplies an outer value with a weight of its own, twice nested if told so."""
    inits = [] if weight is None else [numpy_helper.from_array(weight, f"{name}_w")]
    node = helper.make_node("Mul", [reads, f"{name}_w" if inits else reads], [writes], name=f"{name}_mul")
    return helper.make_graph([node], name, [], [value(writes)], inits)


def exotic(ir_version=10):
    """A model with a field of every kind, in use at every level."""
    nested = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["p"],
                ["n"],
                then_branch=branch("in", "t", "in_y", W[0]),
                else_branch=branch("no", "t", "no_y"),
            )
        ],
        "nested",
        [],
        [value("n")],
        value_info=[value("n")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["t"], name="first", doc_string="a doc"),
        helper.make_node("Constant", [], ["p"], value=helper.make_tensor("p", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(W, "k")),
        helper.make_node("MatMul", ["t", "k"], ["u"], name="second"),
        helper.make_node(
            "If",
            ["p"],
            ["v"],
            name="choice",
            then_branch=nested,
            else_branch=branch("else", "u", "else_y", W[1]),
        ),
        helper.make_node("F", ["v"], ["z"], name="call", domain="local", overload="o"),
        helper.make_node("Add", ["z", "w1"], ["y"], name="läst"),
    ]
    nodes[0].metadata_props.add(key="a", value="b")
    nodes[0].attribute.append(helper.make_attribute("note", b"\xff\xfe", doc_string="bytes"))
    inits = [numpy_helper.from_array(W + k, f"w{k}") for k in range(3)]
    inits[1].doc_string = "weights"
    inits[1].metadata_props.add(key="c", value="d")
    inits.append(helper.make_tensor("typed", TensorProto.FLOAT, [500], np.arange(500, dtype=np.float32)))
    inits.append(helper.make_tensor("words", TensorProto.STRING, [2], [("ä" * 900).encode(), b"b"]))
    values = [value("t"), value("u"), value("v"), value("z")]
    inputs = [value("x")] + ([value(t.name, list(t.dims)) for t in inits[:3]] if ir_version < 4 else [])
    graph = helper.make_graph(nodes, "main", inputs, [value("y", (32, 32))], inits, "graph doc", values)
    sparse = numpy_helper.from_array(np.array([1.5], np.float32), "sparse")
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(sparse, numpy_helper.from_array(np.array([3])), [9])
    )
    for name in ("t", "u"):
        note = graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="typed")
    graph.metadata_props.add(key="e", value="f")
    body = [
        helper.make_node("Constant", [], ["fc"], value=numpy_helper.from_array(W[:, :1].T, "fc")),
        helper.make_node("Mul", ["a", "fc"], ["fm"]),
        helper.make_node("Relu", ["fm"], ["b"]),
    ]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], body, OPSETS[:1], overload="o", doc_string="fd"
    )
    function.metadata_props.add(key="g", value="h")
    function.value_info.append(value("fm"))
    model = helper.make_model(
        graph, opset_imports=OPSETS, ir_version=ir_version, functions=[function], doc_string="doc"
    )
    model.metadata_props.add(key="i", value="j")
    model.training_info.add().initialization_binding.add(key="w0", value="t")
    model.training_info[0].algorithm.CopyFrom(branch("train", "x", "loss", W))
    return model


UNKNOWN = b"\xaa\x7d\x05hello\xa3\x7d\x08\x01\xa4\x7d"


def written(model, tmp_path, name="m.onnx", **how):
    path = tmp_path / name
    onnx.save(model, path, **how)
    if not how:
        path.write_bytes(path.read_bytes() + UNKNOWN)
    return path


@pytest.fixture
def path(tmp_path):
    return written(exotic(), tmp_path)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(path, x, **more):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, **more})[0]


def edited(document, edits):
    """The edited model, in memory."""
    return onnx.ModelProto.FromString(serialize(document, edits).to_bytes())


def doubled(name="w0n", of=W):
    return NewTensor(name, TensorProto.FLOAT, of.shape, lambda: of * 2)


FIRST = {(): Edit(rewired={0: {"w0": "w0n"}}, removed_initializers={"w0"}, new_tensors=[doubled()])}


# --- nothing changes ---


def test_without_edits_the_output_is_the_input(path, tmp_path):
    with Document.open(path) as document:
        for edits in ({}, {(): Edit()}, {("function", 0): Edit(inserted={0: []}, rewired={1: {}})}):
            assert save(document, edits, tmp_path / "o.onnx").nbytes == path.stat().st_size
            assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()


def test_an_edit_of_one_node_leaves_all_other_bytes_of_a_file_that_protobuf_wrote(path, tmp_path):
    """A renaming to a name as long changes these bytes alone, at every level."""
    with Document.open(path) as document:
        edits = {
            (): Edit(rewired={6: {"z": "Z"}}),
            (4, "then_branch", 0, "then_branch"): Edit(rewired={0: {"t": "T"}}),
        }
        save(document, edits, tmp_path / "o.onnx")
    before, after = path.read_bytes(), (tmp_path / "o.onnx").read_bytes()
    assert len(before) == len(after)
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        (ord("t"), ord("T")),
        (ord("z"), ord("Z")),
    ]


def test_the_same_edits_give_the_same_bytes(path, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        with Document.open(path) as document:
            save(document, FIRST, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def with_unknown_fields(message):
    """Give a message, and all messages in it, a field that this ONNX does not know; the number of messages."""
    count = 1
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else [value]:
                count += with_unknown_fields(part)
    message.MergeFromString(UNKNOWN)
    return count


def test_unknown_fields_survive_an_edit_at_every_level(tmp_path):
    model = exotic()
    count = with_unknown_fields(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    edits = {
        scope: Edit(new_tensors=[doubled(f"new{k}")]) for k, scope in enumerate([(), (4, "then_branch")])
    }
    with Document.open(tmp_path / "m.onnx") as document:
        for external in (False, True):
            save(document, edits, tmp_path / "o.onnx", external=external)
            result = onnx.load(tmp_path / "o.onnx")
            assert result.SerializeToString().count(UNKNOWN) == count
            for graph in (result.graph, result.graph.node[4].attribute[1].g):
                del graph.initializer[-1]
            assert external or result == model


def test_an_edit_of_a_file_in_another_order_of_fields_keeps_its_messages(tmp_path):
    """Not every exporter writes fields by number, as protobuf does."""
    model = exotic()
    halves = [onnx.ModelProto(ir_version=model.ir_version, graph=model.graph), onnx.ModelProto()]
    halves[1].CopyFrom(model)
    halves[1].ClearField("ir_version")
    halves[1].ClearField("graph")
    (tmp_path / "m.onnx").write_bytes(b"".join(half.SerializeToString() for half in reversed(halves)))
    with Document.open(tmp_path / "m.onnx") as document:
        result = edited(document, {(): Edit(new_tensors=[doubled()])})
    del result.graph.initializer[-1]
    assert result == model


# --- edits ---


def test_untouched_nodes_and_initializers_are_equal(path, tmp_path):
    with Document.open(path) as document:
        edits = {
            (): Edit(
                removed_nodes={2, 3},
                inserted={
                    3: [helper.make_node("Identity", ["t"], ["u"])],
                    7: [helper.make_node("Relu", ["z"], ["r"])],
                },
                removed_initializers={"w0"},
                new_tensors=[doubled(), doubled("tiny", W[:1, :1])],
                rewired={0: {"w0": "w0n"}},
                removed_values={"u"},
            )
        }
        save(document, edits, tmp_path / "o.onnx")
        assert edited(document, edits) == onnx.load(tmp_path / "o.onnx")
    old, new = onnx.load(path), onnx.load(tmp_path / "o.onnx")
    assert [n.op_type for n in new.graph.node] == [
        "MatMul",
        "Constant",
        "Identity",
        "If",
        "F",
        "Add",
        "Relu",
    ]
    assert list(new.graph.node[0].input) == ["x", "w0n"]
    new.graph.node[0].input[1] = "w0"
    assert [new.graph.node[k] for k in (0, 1, 3, 4, 5)] == [old.graph.node[k] for k in (0, 1, 4, 5, 6)]
    assert [t.name for t in new.graph.initializer] == ["w1", "w2", "typed", "words", "w0n", "tiny"]
    assert list(new.graph.initializer)[:4] == list(old.graph.initializer)[1:]
    np.testing.assert_array_equal(numpy_helper.to_array(new.graph.initializer[4]), W * 2)
    assert [v.name for v in new.graph.value_info] == ["t", "v", "z"]
    assert [a.tensor_name for a in new.graph.quantization_annotation] == ["t"]
    for field in ("functions", "training_info", "metadata_props", "opset_import", "doc_string", "ir_version"):
        assert getattr(new, field) == getattr(old, field)
    for field in ("sparse_initializer", "metadata_props", "doc_string", "input", "output", "name"):
        assert getattr(new.graph, field) == getattr(old.graph, field)
    assert (tmp_path / "o.onnx").read_bytes().endswith(UNKNOWN)


def test_an_edited_model_computes_what_the_edit_says(path, tmp_path):
    x = RNG.standard_normal((1, 32)).astype(np.float32)
    model = exotic()
    del model.training_info[:], model.graph.sparse_initializer[:], model.graph.node[0].attribute[:]
    model.functions[0].overload = model.graph.node[5].overload = ""
    model.ir_version = 8
    del (
        model.functions[0].value_info[:],
        model.functions[0].metadata_props[:],
        model.graph.node[0].metadata_props[:],
    )
    plain = written(model, tmp_path, "plain.onnx", save_as_external_data=False)
    with Document.open(plain) as document:
        save(document, FIRST, tmp_path / "o.onnx")
        save(document, FIRST, tmp_path / "e.onnx", external=True)
    h = np.maximum((x @ (2 * W)) * W[0] * W[:, 0], 0) + W + 1
    onnx.checker.check_model(tmp_path / "o.onnx", full_check=True)
    np.testing.assert_allclose(run(tmp_path / "o.onnx", x), h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(tmp_path / "e.onnx", x), h, rtol=1e-4, atol=1e-4)


def test_a_nested_subgraph_is_edited(path, tmp_path):
    inside = (4, "then_branch", 0, "then_branch")
    edit = Edit(
        removed_initializers={"in_w"},
        new_tensors=[doubled("in_n")],
        rewired={0: {"in_w": "in_n"}},
        inserted={0: [helper.make_node("Relu", ["t"], ["r"])], 1: [helper.make_node("Abs", ["t"], ["s"])]},
    )
    with Document.open(path) as document:
        save(document, {inside: edit}, tmp_path / "o.onnx")
    old, new = onnx.load(path), onnx.load(tmp_path / "o.onnx")
    graph = new.graph.node[4].attribute[1].g.node[0].attribute[1].g
    assert graph.name == "in"
    assert [n.op_type for n in graph.node] == ["Relu", "Mul", "Abs"]
    assert list(graph.node[1].input) == ["t", "in_n"]
    assert [t.name for t in graph.initializer] == ["in_n"]
    graph.CopyFrom(old.graph.node[4].attribute[1].g.node[0].attribute[1].g)
    assert new == old


def test_a_function_is_edited(path, tmp_path):
    edit = Edit(
        removed_nodes={0},
        new_tensors=[doubled("fn")],
        rewired={1: {"fc": "fn"}},
        removed_values={"fm"},
        inserted={3: [helper.make_node("Abs", ["a"], ["s"])]},
    )
    with Document.open(path) as document:
        save(document, {("function", 0): edit}, tmp_path / "o.onnx", external=True)
    old, new = onnx.load(path), onnx.load(tmp_path / "o.onnx")
    function = new.functions[0]
    assert [(n.op_type, list(n.input)) for n in function.node] == [
        ("Constant", []),
        ("Mul", ["a", "fn"]),
        ("Relu", ["fm"]),
        ("Abs", ["a"]),
    ]
    assert function.node[0].output[0] == "fn"
    np.testing.assert_array_equal(numpy_helper.to_array(function.node[0].attribute[0].t), W * 2)
    assert not function.value_info
    assert function.metadata_props == old.functions[0].metadata_props
    assert new.graph.node == old.graph.node


def test_an_empty_function_gets_its_constants(tmp_path):
    model = exotic()
    del model.functions[0].node[:]
    document = Document.from_model(model)
    edit = Edit(new_tensors=[doubled("b")], inserted={0: [helper.make_node("Abs", ["b"], ["c"])]})
    function = edited(document, {("function", 0): edit}).functions[0]
    assert [n.op_type for n in function.node] == ["Constant", "Abs"]


def test_consumers_inside_subgraphs_follow_a_rewiring():
    document = Document.from_model(exotic())
    model = edited(document, {(): Edit(rewired={4: {"t": "T", "u": "U", "p": "P"}})})
    node = model.graph.node[4]
    then, other = (
        next(a.g for a in node.attribute if a.name == name) for name in ("then_branch", "else_branch")
    )
    assert list(node.input) == ["P"]
    assert list(then.node[0].input) == ["P"]
    assert [list(a.g.node[0].input) for a in then.node[0].attribute] == [["T", "T"], ["T", "in_w"]]
    assert list(other.node[0].input) == ["U", "else_w"]


def test_names_defined_in_a_subgraph_hide_those_outside():
    model = exotic()
    graph = next(a.g for a in model.graph.node[4].attribute if a.name == "else_branch")
    graph.node.insert(0, helper.make_node("Relu", ["t"], ["u"]))
    graph.output[0].name = "t"
    result = edited(Document.from_model(model), {(): Edit(rewired={4: {"t": "T", "u": "U"}})})
    graph = next(a.g for a in result.graph.node[4].attribute if a.name == "else_branch")
    assert [list(n.input) for n in graph.node] == [["T"], ["u", "else_w"]]
    assert graph.output[0].name == "T"  # returned straight from outside


def test_a_graphs_attribute_is_a_scope():
    model = exotic()
    odd = helper.make_node("Odd", [], ["o"], domain="local")
    odd.attribute.append(helper.make_attribute("gs", [branch("g0", "x", "g0_y"), branch("g1", "x", "g1_y")]))
    model.graph.node.append(odd)
    result = edited(Document.from_model(model), {(7, "gs", 1): Edit(removed_nodes={0})})
    assert [len(g.node) for g in result.graph.node[7].attribute[0].graphs] == [1, 0]


def test_old_ir_versions_list_initializers_as_inputs(tmp_path):
    path = written(exotic(ir_version=3), tmp_path)
    with Document.open(path) as document:
        save(document, FIRST, tmp_path / "o.onnx")
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert [v.name for v in graph.input] == ["x", "w1", "w2", "w0n"]
    assert [d.dim_value for d in graph.input[3].type.tensor_type.shape.dim] == [32, 32]


def test_an_empty_graph_takes_new_nodes_and_tensors():
    document = Document.from_model(
        helper.make_model(helper.make_graph([], "g", [], [value("y")]), ir_version=8)
    )
    edit = Edit(new_tensors=[doubled("c")], inserted={0: [helper.make_node("Identity", ["c"], ["y"])]})
    graph = edited(document, {(): edit}).graph
    assert [n.op_type for n in graph.node] == ["Identity"]
    assert [t.name for t in graph.initializer] == ["c"]


def test_an_overridable_initializer_leaves_the_inputs_only_if_removed():
    model = exotic()
    model.graph.input.extend([value("w0", [32, 32]), value("w1", [32, 32])])
    graph = edited(Document.from_model(model), FIRST).graph
    assert [v.name for v in graph.input] == ["x", "w1"]


def test_a_node_of_the_skeleton_can_be_inserted_again(tmp_path):
    path = written(exotic(), tmp_path)
    with Document.open(path) as document:
        node = document.model.graph.node[2]
        assert mark_of(node.attribute[0].t) is not None
        result = edited(document, {(): Edit(removed_nodes={2}, inserted={0: [node]})})
    np.testing.assert_array_equal(numpy_helper.to_array(result.graph.node[0].attribute[0].t), W)


@pytest.mark.parametrize(
    "edits",
    [
        {(): Edit(removed_nodes={7})},
        {(): Edit(inserted={8: [helper.make_node("Relu", ["x"], ["q"])]})},
        {(): Edit(rewired={-1: {"x": "z"}})},
        {(0, "body"): Edit(removed_nodes={0})},
        {("function", 1): Edit(removed_nodes={0})},
    ],
)
def test_an_edit_of_something_absent_is_refused(path, tmp_path, edits):
    with Document.open(path) as document, pytest.raises(OutputError):
        save(document, edits, tmp_path / "o.onnx")
    assert files(tmp_path) == ["m.onnx"]


# --- external data ---


def external(tmp_path, **how):
    how = {"location": "m.data", "size_threshold": 100, "convert_attribute": True, **how}
    return written(exotic(), tmp_path, save_as_external_data=True, **how)


def arrays(model):
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: array.tolist() for name, array in found.items()}


def test_external_data_is_copied_along(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    path = external(tmp_path / "in", location=os.path.join("sub", "m.data"))
    with Document.open(path) as document:
        save(document, {}, tmp_path / "out" / "o.onnx")
        assert files(tmp_path / "out") == ["o.onnx", "sub/m.data"]
        save(document, {}, tmp_path / "out" / "o.onnx")
        save(document, {}, tmp_path / "in" / "o.onnx")
    assert files(tmp_path / "in") == ["m.onnx", "o.onnx", "sub/m.data"]
    assert (tmp_path / "out" / "o.onnx").read_bytes() == path.read_bytes()
    assert onnx.load(tmp_path / "out" / "o.onnx") == onnx.load(path)


def test_another_data_file_of_the_same_name_is_left_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = external(tmp_path / "in")
    (tmp_path / "out" / "m.data").write_bytes(b"weights of another model")
    with Document.open(path) as document:
        save(document, {}, tmp_path / "out" / "o.onnx")
    assert (tmp_path / "out" / "m.data").read_bytes() == b"weights of another model"
    assert files(tmp_path / "out") == ["m.data", "o.onnx", "o.onnx.data"]
    assert arrays(onnx.load(tmp_path / "out" / "o.onnx")) == arrays(onnx.load(path))


@pytest.mark.parametrize("one_file", [True, False])
def test_edited_external_data_goes_to_one_file(tmp_path, one_file):
    (tmp_path / "in").mkdir()
    path = external(tmp_path / "in", all_tensors_to_one_file=one_file)
    with Document.open(path) as document:
        assert save(document, FIRST, tmp_path / "o.onnx").nbytes == sum(
            file.stat().st_size for file in tmp_path.glob("o.*")
        )
        assert files(tmp_path) == sorted(
            ["o.onnx", "o.onnx.data", *(f"in/{f}" for f in files(tmp_path / "in"))]
        )
        assert arrays(edited(document, FIRST)) == arrays(onnx.load(tmp_path / "o.onnx"))
    new = onnx.load(tmp_path / "o.onnx", load_external_data=False)
    placed = {t.name: {e.key: e.value for e in t.external_data} for t in new.graph.initializer}
    assert placed["w0n"]["location"] == "o.onnx.data"
    assert all(int(entry["offset"]) % 4096 == 0 for entry in placed.values() if entry)
    assert new.graph.node[2].attribute[0].t.data_location == TensorProto.EXTERNAL
    expected = arrays(onnx.load(path))
    expected["w0n"] = (W * 2).tolist()
    del expected["w0"]
    assert arrays(onnx.load(tmp_path / "o.onnx")) == expected


def test_weights_go_inline_or_outside_as_asked(path, tmp_path):
    with Document.open(path) as document:
        save(document, {}, tmp_path / "e.onnx", external=True)
        save(document, {}, tmp_path / "e2.onnx", external=True)
    slim = onnx.load(tmp_path / "e.onnx", load_external_data=False)
    outside = [t.name for t in slim.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert outside == ["w0", "w1", "w2", "typed"]
    assert slim.graph.initializer[1].doc_string == "weights"
    assert arrays(onnx.load(tmp_path / "e.onnx")) == arrays(onnx.load(path))
    with Document.open(tmp_path / "e.onnx") as document:
        save(document, {}, tmp_path / "i.onnx", external=False)
        assert arrays(edited(document, {})) == arrays(onnx.load(path))
    alone = onnx.load(tmp_path / "i.onnx", load_external_data=False)
    assert all(t.data_location == TensorProto.DEFAULT for t in alone.graph.initializer)
    assert arrays(alone) == arrays(onnx.load(path))


def test_a_tied_weight_is_stored_once(tmp_path):
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    twin = model.graph.initializer.add()
    twin.CopyFrom(model.graph.initializer[1])
    twin.name = "twin"
    onnx.save(model, path)
    with Document.open(path) as document:
        save(document, FIRST, tmp_path / "o.onnx")
    new = {t.name: t for t in onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.initializer}
    assert new["twin"].external_data == new["w1"].external_data


def test_a_result_too_large_for_one_message_gets_a_data_file(path, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT", 20_000)
    with Document.open(path) as document:
        save(document, FIRST, tmp_path / "o.onnx")
        assert (tmp_path / "o.onnx.data").exists()
        assert arrays(onnx.load(tmp_path / "o.onnx"))["w0n"] == (W * 2).tolist()
        with pytest.raises(OutputError, match="too many for one file"):
            save(document, FIRST, tmp_path / "p.onnx", external=False)
    assert not (tmp_path / "p.onnx").exists()


# --- in place, whole or not at all ---


def test_saving_in_place_replaces_the_model(path, tmp_path):
    with Document.open(path) as document:
        expected = edited(document, FIRST)
        save(document, FIRST, path)
        assert edited(document, FIRST) == expected  # the document still reads what it opened
    assert onnx.load(path) == expected
    assert files(tmp_path) == ["m.onnx"]


def test_saving_in_place_gives_the_data_file_another_name(tmp_path):
    path = external(tmp_path, location="m.onnx.data")
    with Document.open(path) as document:
        expected = arrays(edited(document, FIRST))
        save(document, FIRST, path)
    assert files(tmp_path) == ["m.onnx", "m.onnx.1.data"]
    assert arrays(onnx.load(path)) == expected
    with Document.open(path) as document:
        save(document, {(): Edit(removed_initializers={"w2"})}, path)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_data_file_that_another_model_uses_stays(tmp_path):
    path = external(tmp_path, location="m.onnx.data")
    (tmp_path / "backup.onnx").write_bytes(path.read_bytes())
    before = arrays(onnx.load(tmp_path / "backup.onnx"))
    with Document.open(path) as document:
        save(document, FIRST, path)
    assert arrays(onnx.load(tmp_path / "backup.onnx")) == before


def test_a_second_run_gives_the_same_files(tmp_path):
    path = external(tmp_path)
    seen = []
    for _ in range(2):
        with Document.open(path) as document:
            save(document, FIRST, tmp_path / "o.onnx")
        seen.append({name: (tmp_path / name).read_bytes() for name in files(tmp_path)})
    assert seen[0] == seen[1]


def test_the_data_file_of_an_output_that_became_inline_is_removed(path, tmp_path):
    with Document.open(path) as document:
        save(document, {}, tmp_path / "o.onnx", external=True)
        save(document, FIRST, tmp_path / "o.onnx")
    assert files(tmp_path) == ["m.onnx", "o.onnx"]


class BrokenError(Exception):
    pass


def broken():
    raise BrokenError


@pytest.mark.parametrize("how", [None, True])
@pytest.mark.parametrize(
    ("compute", "error"),
    [
        (broken, BrokenError),
        (lambda: W[:1], OutputError),
        (lambda: W.astype(np.float64), OutputError),
        (lambda: W.tolist(), OutputError),
    ],
)
def test_a_value_that_fails_leaves_the_old_output(path, tmp_path, compute, error, how):
    (tmp_path / "o.onnx").write_bytes(b"old")
    edit = Edit(new_tensors=[doubled("a"), NewTensor("b", TensorProto.FLOAT, W.shape, compute)])
    with Document.open(path) as document, pytest.raises(error):
        save(document, {(): edit}, tmp_path / "o.onnx", external=how)
    assert files(tmp_path) == ["m.onnx", "o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == b"old"


def test_a_full_disk_leaves_nothing(path, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Document.open(path) as document:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            for how in (None, True):
                with pytest.raises(OutputError, match="cannot write"):
                    save(document, FIRST, tmp_path / "o.onnx", external=how)
            with pytest.raises(OutputError, match="cannot write"):
                save(document, {}, tmp_path / "o.onnx")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["m.onnx"]


def test_a_crash_between_data_and_model_leaves_the_old_pair(path, tmp_path, monkeypatch):
    target = tmp_path / "o.onnx"
    with Document.open(path) as document:
        save(document, {}, target, external=True)
        before = arrays(onnx.load(target))
        real = os.replace

        def replace(source, final):
            if Path(final) == target:
                raise BrokenError
            real(source, final)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(BrokenError):
            save(document, FIRST, target, external=True)
    assert arrays(onnx.load(target)) == before


def test_a_kill_in_the_middle_leaves_the_old_output(path, tmp_path):
    script = """
import os, signal, sys
import onnx
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, NewTensor
from onnx_repfuse.modelfile.save import save
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
with Document.open(sys.argv[1]) as document:
    save(document, {(): Edit(new_tensors=[NewTensor("a", 1, (999,), kill)])}, sys.argv[1])
"""
    before = path.read_bytes()
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", [None, True])
def test_concurrent_runs_leave_one_whole_output(path, tmp_path, how):
    """Each writes weights of its own; what stays must be of one of them, and nothing of the others."""

    def once(k):
        with Document.open(path) as document:
            news = [
                NewTensor(f"n{j}", TensorProto.FLOAT, W.shape, lambda: np.full_like(W, k)) for j in range(3)
            ]
            save(document, {(): Edit(new_tensors=news)}, tmp_path / "o.onnx", external=how)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(once, range(40)))
    found = onnx.load(tmp_path / "o.onnx").graph.initializer
    assert len({numpy_helper.to_array(t).flat[k] for t in list(found)[-3:] for k in (0, -1)}) == 1
    assert len(files(tmp_path)) == (2 if how is None else 3)


def test_the_output_has_the_permissions_of_a_new_or_the_replaced_file(path, tmp_path):
    old = os.umask(0o027)
    try:
        with Document.open(path) as document:
            save(document, FIRST, tmp_path / "o.onnx", external=True)
            assert stat.S_IMODE((tmp_path / "o.onnx").stat().st_mode) == 0o640
            assert stat.S_IMODE((tmp_path / "o.onnx.data").stat().st_mode) == 0o640
            (tmp_path / "o.onnx").chmod(0o600)
            save(document, FIRST, tmp_path / "o.onnx")
            assert stat.S_IMODE((tmp_path / "o.onnx").stat().st_mode) == 0o600
    finally:
        os.umask(old)


@pytest.mark.parametrize("name", ["no/such/folder/o.onnx", "folder", "o\0.onnx"])
def test_an_output_that_cannot_be_written_is_refused(path, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with Document.open(path) as document, pytest.raises(OutputError, match="cannot write"):
        save(document, FIRST, tmp_path / name)
    assert files(tmp_path) == ["m.onnx"]


def test_the_output_may_not_replace_the_weights_of_the_input(tmp_path):
    path = external(tmp_path)
    with Document.open(path) as document, pytest.raises(OutputError, match="keeps its weights there"):
        save(document, FIRST, tmp_path / "m.data")


def test_memory_stays_far_under_the_size_of_the_model(tmp_path):
    """A sparse file of 400 MB, a fifth of it rewritten, in a process of its own."""
    count, size = 40, 10 << 20
    model = helper.make_model(helper.make_graph([], "g", [], []), ir_version=8)
    for k in range(count):
        tensor = model.graph.initializer.add(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[size // 4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "m.data"), ("offset", str(k * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=text)
    onnx.save(model, tmp_path / "m.onnx")
    with open(tmp_path / "m.data", "wb") as file:
        file.truncate(count * size)
    script = """
import resource, sys
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, NewTensor
from onnx_repfuse.modelfile.save import save
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
document = Document.open(sys.argv[1])
edit = Edit()
for tensor in list(document.model.graph.initializer)[::5]:
    edit.removed_initializers.add(tensor.name)
    compute = lambda tensor=tensor: document.array(tensor) * 2
    edit.new_tensors.append(NewTensor(tensor.name + "n", 1, tuple(tensor.dims), compute))
save(document, {(): edit}, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 10
    assert (tmp_path / "o.onnx.data").stat().st_size >= count * size
    assert grown < 0.25 * count * size
