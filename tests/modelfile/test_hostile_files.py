"""Files from strangers: one line that says what is wrong, in bounded time and memory, and nothing written."""

from __future__ import annotations

import os
import random
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import InputError, RepfuseError, UnsafePathError
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit
from onnx_repfuse.modelfile.protobuf_wire import fields, varint, write_varint
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.modelfile.serialize import serialize

W = np.arange(600, dtype=np.float32)


def graph_of(*tensors, nodes=()):
    """A graph that reads its initializers."""
    readers = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}'"]) for tensor in tensors]
    return helper.make_graph([*nodes, *readers], "g", [], [], list(tensors))


def model_of(*tensors, nodes=()):
    return helper.make_model(graph_of(*tensors, nodes=nodes), ir_version=8)


def claimed(dims, data=b"1234", data_type=TensorProto.FLOAT, name="w"):
    return TensorProto(name=name, dims=dims, data_type=data_type, raw_data=data)


def refused(model_or_bytes, tmp_path, match, error=InputError):
    """Open a model, and check that it is refused in one short line."""
    path = tmp_path / "m.onnx"
    data = model_or_bytes if isinstance(model_or_bytes, bytes) else model_or_bytes.SerializeToString()
    path.write_bytes(data)
    with pytest.raises(error, match=match) as caught:
        Document.open(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# --- not a model at all ---


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\0", "not an ONNX model"),
        (b"\xff" * 40, "more than 10 bytes"),
        (b"hello world, this is no model\n", "not an ONNX model"),
        (b"# Title\n\nSome text.\n" * 100, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not an ONNX model"),
        (b"<html><body>404</body></html>", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "not an ONNX model"),
        (b"\x08\x08", "has no graph"),
        (b"\x3a\xff\xff\xff\xff\x07", "claims"),
        (b"\x3a\x02\x3a\x7f", "not an ONNX model"),
        (b"\x3a\x04\x0a\x00\x0b", "not an ONNX model"),
        (b"\x3a\x00\x3a\x00", "two pieces"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, match):
    refused(content, tmp_path, match)


def test_other_kinds_of_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.onnx", "w") as archive:
        archive.writestr("model.onnx", model_of().SerializeToString() + bytes(5000))
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, match in [
        ("z.onnx", "not an ONNX model"),
        ("missing.onnx", "No such file"),
        ("pipe.onnx", "not a regular file"),
        (".", "is a folder"),
        ("a\0b.onnx", "null"),
        ("x" * 3000, "too long"),
    ]:
        with pytest.raises(InputError, match=match):
            Document.open(tmp_path / name)


def test_a_damaged_field_in_a_small_message_is_refused(tmp_path):
    refused(b"\x3a\x06\x0a\x04\x0a\x09ab", tmp_path, "damaged")


def test_a_truncated_file_is_refused_or_still_a_model(tmp_path):
    """A cut at a boundary of the outermost message may leave a model; anything else is refused."""
    model = model_of(numpy_helper.from_array(W, "w"), numpy_helper.from_array(W[:3], "s"))
    model.doc_string = "doc"
    data = model.SerializeToString()
    path = tmp_path / "m.onnx"
    for length in [*range(1, 60), *range(60, len(data), 97), *range(len(data) - 60, len(data))]:
        path.write_bytes(data[:length])
        try:
            with Document.open(path) as document:
                assert document.model.HasField("graph")
                for tensor in document.model.graph.initializer:
                    document.array(tensor)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_file_with_flipped_bits_is_refused_or_can_be_saved(tmp_path):
    """Whatever happens, it is an error of ours or a model that can be saved and read again."""
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(W, "i")])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(W, "k")),
    ]
    data = model_of(numpy_helper.from_array(W, "w"), helper.make_tensor("t", 1, [600], W), nodes=nodes)
    data = data.SerializeToString()
    rng = random.Random(5)
    interesting = [k for k in range(len(data)) if not any(a <= k < a + 2390 for a in _payloads(data))]
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    opened = 0
    for _ in range(600):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            broken[rng.choice(interesting)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            with Document.open(path) as document:
                opened += 1
                for tensor in document.model.graph.initializer:
                    document.array(tensor)
                save(document, {(): Edit(removed_values={"none"}, removed_initializers={"w"})}, out)
                save(document, {}, out)
                assert out.read_bytes() == bytes(broken)
        except RepfuseError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert 50 < opened < 550


def _payloads(data):
    raw, at = W.tobytes(), -1
    while (at := data.find(raw, at + 1)) >= 0:
        yield at + 5


# --- claims ---


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ([1 << 62] * 5000, "has 5000 dimensions"),
        ([1 << 50], "bytes, but holds 4"),
        ([1 << 40, 1 << 40, 1 << 40], "bytes, but holds 4"),
        ([-1], "negative dimension"),
        ([-1, -1], "negative dimension"),
        ([0, -5], "negative dimension"),
        ([2], "which is 8 bytes, but holds 4"),
        ([0], "which is 0 bytes, but holds 4"),
    ],
)
@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
def test_dims_that_do_not_fit_the_data_are_refused(tmp_path, dims, match, where):
    for data in (b"1234", bytes(range(4)) * 500):
        tensor = claimed(dims, data)
        if where == "initializer":
            model, label = model_of(tensor), "tensor 'w'"
        elif where == "constant":
            model, label = (
                model_of(nodes=[helper.make_node("Constant", [], ["c"], value=tensor)]),
                "Constant 'c'",
            )
        else:
            inner = graph_of(tensor)
            model = model_of(
                nodes=[helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
            )
            label = "tensor 'w'"
        refused(model, tmp_path, label + ".*" + match.replace("holds 4", f"holds {len(data)}"))


def test_typed_data_that_does_not_fit_the_dims_is_refused(tmp_path):
    for count in (3, 3000):
        tensor = helper.make_tensor("w", TensorProto.FLOAT, [count], np.zeros(count, np.float32))
        tensor.dims[0] = 1 << 45
        refused(model_of(tensor), tmp_path, "tensor 'w' claims FLOAT")
    tensor.dims[0] = 2999
    (tmp_path / "m.onnx").write_bytes(model_of(tensor).SerializeToString())
    with (
        pytest.raises(InputError, match="2999 values, but holds 3000"),
        Document.open(tmp_path / "m.onnx") as document,
    ):
        document.array(document.model.graph.initializer[0])


def test_a_tensor_without_data_is_refused(tmp_path):
    refused(model_of(TensorProto(name="w", dims=[3], data_type=1)), tmp_path, "is 3 values, but holds 0")
    words = helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"])
    words.dims[0] = 1 << 40
    refused(model_of(words), tmp_path, "claims STRING")


def test_unreadable_types_are_passed_on_and_refused_when_read():
    odd = [claimed([1], name="odd", data_type=99), claimed([1], name="none", data_type=0)]
    segment = claimed([1], name="part")
    segment.segment.begin, segment.segment.end = 0, 1
    document = Document.from_model(model_of(*odd, segment))
    for tensor in document.model.graph.initializer:
        with pytest.raises(InputError, match=r"type 99|UNDEFINED|one segment"):
            document.array(tensor)
    assert serialize(document, {}).to_bytes() == model_of(*odd, segment).SerializeToString()


def test_a_tensor_may_have_no_elements(tmp_path):
    document = Document.from_model(model_of(claimed([0, 5], b""), claimed([1 << 50, 0], b"", name="v")))
    assert document.array(document.model.graph.initializer[0]).shape == (0, 5)
    assert document.array(document.model.graph.initializer[1]).size == 0


# --- names ---


def test_names_that_are_not_utf8_are_refused(tmp_path):
    model = model_of(
        numpy_helper.from_array(W[:3], "NAME"), nodes=[helper.make_node("Relu", ["INPUT"], ["OUTPUT"])]
    )
    for name in (b"NAME", b"INPUT", b"OUTPUT", b"Relu"):
        data = model.SerializeToString().replace(name, b"\xff\xfe\x80\x81\x82\x83"[: len(name)])
        refused(data, tmp_path, "not UTF-8")


@pytest.mark.parametrize("name", ["", " ", "ä/ö:β-γ", "名前", "🦊" * 300, "a\nb\tc", "\0", "..", "'\"%s{}"])
def test_names_may_be_any_unicode_text(tmp_path, name):
    path = tmp_path / "m.onnx"
    onnx.save(
        model_of(numpy_helper.from_array(W, name), nodes=[helper.make_node("Relu", [name], ["y"])]), path
    )
    with Document.open(path) as document:
        (tensor,) = document.model.graph.initializer
        assert tensor.name == name
        np.testing.assert_array_equal(document.array(tensor), W)
        save(
            document,
            {(): Edit(rewired={0: {name: name + "x"}}, removed_initializers={name})},
            tmp_path / "o.onnx",
        )
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert list(graph.node[0].input) == [name + "x"]
    assert not graph.initializer


# --- depth ---


def nested(depth, payload):
    """The bytes of a model whose graphs are nested; protobuf itself would not write them so deep."""

    def field(number, body):
        return write_varint(number << 3 | 2) + write_varint(len(body)) + body

    graph = field(5, numpy_helper.from_array(payload, "w").SerializeToString())
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return b"\x08\x08" + field(7, graph)


@pytest.mark.parametrize("payload", [W, W[:2]])
@pytest.mark.parametrize("depth", [34, 60, 400, 5000])
def test_subgraphs_nested_too_deep_are_refused(tmp_path, depth, payload):
    refused(nested(depth, payload), tmp_path, r"nested deeper|damaged")


def test_subgraphs_as_deep_as_protobuf_allows_can_be_edited(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(nested(31, W))
    scope = (0, "then_branch") * 31
    with Document.open(path) as document:
        edit = Edit(removed_initializers={"w"}, inserted={0: [helper.make_node("Relu", ["x"], ["y"])]})
        save(document, {scope: edit}, tmp_path / "o.onnx")
    assert len((tmp_path / "o.onnx").read_bytes()) < 1500
    assert b"Relu" in onnx.load(tmp_path / "o.onnx").SerializeToString()


def test_malformed_groups_are_refused(tmp_path):
    refused(b"\x3a\x00" + b"\xa3\x7d" * 5000, tmp_path, "groups nested deeper")
    refused(b"\x3a\x00\xa3\x7d\xac\x7d", tmp_path, "was not begun")
    refused(b"\x3a\x00\xa3\x7d\x0a\x7f", tmp_path, "overruns")


# --- varints ---


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 32, (1 << 64) - 1])
def test_varints_are_written_and_read(value):
    data = write_varint(value)
    assert varint(data, 0, len(data)) == (value, len(data))
    with pytest.raises(InputError, match="ends in the middle"):
        varint(data, 0, len(data) - 1)


@pytest.mark.parametrize(
    "data", [b"\x0a\x05abcd", b"\x0d\x01\x02", b"\x09\x01", b"\x08", b"\x0e", b"\x00", b"\x0a\xff"]
)
def test_fields_that_overrun_their_message_are_refused(data):
    with pytest.raises(InputError):
        list(fields(data, 0, len(data)))


# --- external data ---


def external(location="w.bin", dims=(600,), **entries):
    tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return model_of(tensor)


@pytest.fixture
def secret(tmp_path):
    """A file outside of the model's folder, and one inside."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(W.tobytes())
    (folder / "w.bin").write_bytes(W.tobytes())
    return folder


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "sub/../../secret",
        "/etc/passwd",
        "./../secret",
        "..",
        "..\\secret",
        "C:\\w.bin",
        "\\\\host\\w",
        "C:w",
    ],
)
def test_external_data_outside_of_the_folder_is_refused(secret, location):
    refused(external(location), secret, "absolute|outside", UnsafePathError)


def test_links_are_followed_inside_of_the_folder_only(secret):
    (secret / "link").symlink_to(secret.parent / "secret")
    (secret / "dir").symlink_to(secret.parent)
    (secret / "loop").symlink_to("loop")
    refused(external("link"), secret, "a link that leaves", UnsafePathError)
    refused(external("dir/secret"), secret, "a link that leaves", UnsafePathError)
    refused(external("loop"), secret, "cannot be read")
    (secret / "fine").symlink_to("w.bin")
    (secret / "m.onnx").write_bytes(external("fine").SerializeToString())
    Document.open(secret / "m.onnx").close()


def test_a_model_and_its_data_may_be_links_into_one_cache_folder(secret):
    """model.onnx and its data are both links to files of one other folder, as in a download cache."""
    blobs = secret.parent / "blobs"
    blobs.mkdir()
    (blobs / "1").write_bytes(external("weights").SerializeToString())
    (blobs / "2").write_bytes(W.tobytes())
    (secret / "m.onnx").symlink_to(blobs / "1")
    (secret / "weights").symlink_to(blobs / "2")
    with Document.open(secret / "m.onnx") as document:
        np.testing.assert_array_equal(document.array(document.model.graph.initializer[0]), W)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (external("missing.bin"), "No such file"),
        (external("."), "outside|folder|leaves"),
        (external("w.bin/x"), "cannot be read"),
        (external("sub/w.bin"), "No such file"),
        (external("n" * 5000), "too long"),
        (external(""), "without a file name"),
        (external(None), "without a file name"),
        (external("a\0b"), "without a file name"),
        (external(offset="1"), "lie outside of its data file"),
        (external(offset="999999999999"), "lie outside of its data file"),
        (external(length="2404"), "lie outside of its data file"),
        (external(length="2396"), "is 2400 bytes, but holds 2396"),
        (external(dims=[601]), "lie outside of its data file"),
        (external(dims=[1 << 50]), "lie outside of its data file"),
        (external(dims=[-600]), "negative dimension"),
        (external(offset="-1"), "offset .* is not a number"),
        (external(offset="1e3"), "offset .* is not a number"),
        (external(length="٣"), "length .* is not a number"),
        (external(length="9" * 5000), "length .* is not a number"),
        (external(length=" 1"), "length .* is not a number"),
    ],
)
def test_external_data_that_is_not_there_is_refused(secret, model, match):
    refused(model, secret, match)


def test_a_pipe_as_external_data_is_refused(secret):
    os.mkfifo(secret / "pipe")
    refused(external("pipe"), secret, "not a regular file")


def test_data_both_inside_and_outside_is_refused(secret):
    model = external()
    model.graph.initializer[0].raw_data = W.tobytes()
    refused(model, secret, "both in the file and outside")


def test_external_data_in_every_place_is_checked(secret):
    bad = external("../secret").graph.initializer[0]
    inner = helper.make_graph([], "i", [], [], [bad])
    sparse = model_of()
    sparse.graph.sparse_initializer.add().values.CopyFrom(bad)
    training = model_of()
    training.training_info.add().algorithm.CopyFrom(inner)
    function = model_of()
    body = [helper.make_node("Constant", [], ["c"], value=bad)]
    function.functions.append(helper.make_function("d", "F", [], ["c"], body, []))
    constant = model_of(nodes=body)
    branch = model_of(nodes=[helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)])
    for model in (sparse, training, function, constant, branch):
        refused(model, secret, "outside of the model's folder", UnsafePathError)


def test_a_data_file_that_shrinks_after_opening_is_refused(secret):
    (secret / "m.onnx").write_bytes(external().SerializeToString())
    with Document.open(secret / "m.onnx") as document:
        (secret / "w.bin").write_bytes(b"short")
        with pytest.raises(InputError, match="changed while it was read"):
            document.array(document.model.graph.initializer[0])
        with pytest.raises(InputError, match="changed while it was read"):
            save(document, {(): Edit(removed_values={"x"})}, secret / "o.onnx")
    assert not list(secret.glob("*o.onnx*"))


def test_a_file_that_became_shorter_is_noticed_while_it_is_copied(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(1 << 20))
    source = Source("the model", path=path)
    with open(tmp_path / "out", "wb") as out:
        source.copy_to(out, 0, 1 << 19)
        os.truncate(path, 1000)
        with pytest.raises(InputError, match="changed while it was read"):
            source.copy_to(out, 0, 1 << 20)
    source.close()
