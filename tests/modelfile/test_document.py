"""The skeleton holds everything but large payloads, and `array` finds those wherever they are."""

from __future__ import annotations

import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile.document import INLINE_BYTES, Document
from onnx_repfuse.modelfile.dtypes import pack, unpack
from onnx_repfuse.modelfile.weightless import mark_of

RNG = np.random.default_rng(7)
LARGE = RNG.standard_normal((32, 40)).astype(np.float32)
SMALL = np.arange(6, dtype=np.float32)


def graph_of(nodes=(), initializers=(), name="g", outputs=()):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    return helper.make_graph(list(nodes), name, [], values, list(initializers))


def model_of(graph, functions=()):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def constant(array, output="c"):
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(array, output))


def saved(model, tmp_path, **how):
    onnx.save(model, tmp_path / "m.onnx", **how)
    return tmp_path / "m.onnx"


def test_large_elements_are_not_in_the_skeleton_and_can_be_read(tmp_path):
    path = saved(model_of(graph_of([], [numpy_helper.from_array(LARGE, "w")])), tmp_path)
    with Document.open(path) as document:
        (tensor,) = document.model.graph.initializer
        assert (tensor.name, tensor.data_type, list(tensor.dims)) == ("w", TensorProto.FLOAT, [32, 40])
        assert not tensor.HasField("raw_data")
        assert tensor.data_location == TensorProto.EXTERNAL
        assert [(e.key, e.value) for e in tensor.external_data] == [("repfuse", "0")]
        assert mark_of(tensor) is not None
        array = document.array(tensor)
        np.testing.assert_array_equal(array, LARGE)
        assert not array.flags.writeable
        assert not array.flags.owndata
        assert document.nbytes == path.stat().st_size


def test_small_elements_stay_in_the_skeleton(tmp_path):
    model = model_of(graph_of([constant(SMALL)], [numpy_helper.from_array(SMALL, "w")]))
    with Document.open(saved(model, tmp_path)) as document:
        assert document.model == model
        assert mark_of(document.model.graph.initializer[0]) is None
        np.testing.assert_array_equal(document.array(document.model.graph.initializer[0]), SMALL)


@pytest.mark.parametrize("count", [INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, INLINE_BYTES + 8])
def test_the_limit_counts_the_elements_alone(tmp_path, count):
    tensor = numpy_helper.from_array(np.ones(count, np.uint8), "n" * 200)
    tensor.doc_string = "d" * 3000
    with Document.open(saved(model_of(graph_of([], [tensor])), tmp_path)) as document:
        (found,) = document.model.graph.initializer
        assert (mark_of(found) is not None) == (count > INLINE_BYTES)
        assert (found.name, found.doc_string) == (tensor.name, tensor.doc_string)
        np.testing.assert_array_equal(document.array(found), np.ones(count, np.uint8))


def test_tensors_are_found_in_constants_subgraphs_and_functions(tmp_path):
    inner = graph_of([constant(LARGE + 1)], [numpy_helper.from_array(LARGE + 2, "i")], "inner", ["c"])
    outer = graph_of(
        [helper.make_node("If", ["p"], ["q"], then_branch=inner, else_branch=inner)], [], "outer"
    )
    many = helper.make_node("Odd", [], ["z"], domain="local")
    many.attribute.append(
        helper.make_attribute("ts", [numpy_helper.from_array(LARGE + k, f"t{k}") for k in (3, 4)])
    )
    many.attribute.append(helper.make_attribute("gs", [inner, outer]))
    function = helper.make_function(
        "local", "F", [], ["c"], [constant(LARGE + 5)], [helper.make_opsetid("", 17)]
    )
    model = model_of(
        graph_of([helper.make_node("If", ["p"], ["q"], then_branch=outer, else_branch=inner), many]),
        [function],
    )
    with Document.open(saved(model, tmp_path)) as document:
        assert len(document.model.SerializeToString()) < 4000
        node, many = document.model.graph.node
        branch = next(a.g for a in node.attribute if a.name == "then_branch")
        branch = next(a.g for a in branch.node[0].attribute if a.name == "else_branch")
        np.testing.assert_array_equal(document.array(branch.node[0].attribute[0].t), LARGE + 1)
        np.testing.assert_array_equal(document.array(branch.initializer[0]), LARGE + 2)
        np.testing.assert_array_equal(document.array(many.attribute[0].tensors[1]), LARGE + 4)
        np.testing.assert_array_equal(document.array(many.attribute[1].graphs[0].initializer[0]), LARGE + 2)
        np.testing.assert_array_equal(
            document.array(document.model.functions[0].node[0].attribute[0].t), LARGE + 5
        )


TYPED = [
    (TensorProto.FLOAT, np.float32),
    (TensorProto.DOUBLE, np.float64),
    (TensorProto.INT64, np.int64),
    (TensorProto.INT32, np.int32),
    (TensorProto.INT8, np.int8),
    (TensorProto.UINT8, np.uint8),
    (TensorProto.UINT32, np.uint32),
    (TensorProto.UINT64, np.uint64),
    (TensorProto.BOOL, np.bool_),
    (TensorProto.FLOAT16, np.float16),
    (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    (TensorProto.INT4, ml_dtypes.int4),
    (TensorProto.UINT4, ml_dtypes.uint4),
    (TensorProto.COMPLEX64, np.complex64),
]
if hasattr(TensorProto, "FLOAT4E2M1"):  # from onnx 1.18 on
    TYPED.append((TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("count", [7, 2049])
@pytest.mark.parametrize(("data_type", "dtype"), TYPED)
def test_every_element_type_is_read_from_raw_and_typed_data(tmp_path, data_type, dtype, count, raw):
    values = RNG.integers(0, 7, count).astype(np.float32).astype(dtype)
    if data_type in (TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64, TensorProto.INT4):
        values[::2] = -values[::2]
    if data_type == TensorProto.COMPLEX64:
        values = values + 1j * values[::-1]
    if raw:
        tensor = helper.make_tensor("w", data_type, [count], bytes(pack(data_type, values)), raw=True)
    else:
        tensor = helper.make_tensor("w", data_type, [count], values)
    with Document.open(saved(model_of(graph_of([], [tensor])), tmp_path)) as document:
        (found,) = document.model.graph.initializer
        array = document.array(found)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array.astype(np.complex64), values.astype(np.complex64))
        if data_type != TensorProto.COMPLEX64:  # which onnx before 1.19 does not read
            theirs = numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(theirs.astype(np.complex64), array.astype(np.complex64))


@pytest.mark.parametrize("data_type", sorted(set(TensorProto.DataType.values()) - {0, TensorProto.STRING}))
def test_packing_is_undone_by_unpacking(data_type):
    size = 9 * {"COMPLEX128": 16}.get(TensorProto.DataType.Name(data_type), 8)
    octets = RNG.integers(0, 2, size).astype(np.uint8)
    name = TensorProto.DataType.Name(data_type)  # types of two bits, which older versions of onnx lack
    count = 36 if name in ("INT2", "UINT2") else 9
    try:
        whole = unpack(data_type, (count,), octets[: -(-count * _bits(data_type) // 8)])
    except InputError:
        pytest.fail("every type of this ONNX should be known")
    again = unpack(data_type, (count,), bytes(pack(data_type, whole)))
    assert again.tobytes() == whole.tobytes()


def _bits(data_type):
    from onnx_repfuse.modelfile.dtypes import bits

    return bits(data_type)


def test_typed_data_that_is_not_packed_is_read(tmp_path):
    """`float_data` without [packed=true], as protobuf allows any writer to write it."""
    values = np.arange(400, dtype=np.float32)
    tensor = TensorProto(dims=[400], data_type=TensorProto.FLOAT, name="w").SerializeToString()
    tensor += b"".join(b"\x25" + value.tobytes() for value in values)
    graph = b"\x2a" + bytes([len(tensor) & 0x7F | 0x80, len(tensor) >> 7]) + tensor
    data = b"\x08\x08\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph
    (tmp_path / "m.onnx").write_bytes(data)
    with Document.open(tmp_path / "m.onnx") as document:
        (found,) = document.model.graph.initializer
        assert mark_of(found) is not None
        np.testing.assert_array_equal(document.array(found), values)


def test_strings_stay_inline(tmp_path):
    words = np.array(["größer" * 100, "kleiner" * 200], dtype=object)
    model = model_of(graph_of([], [numpy_helper.from_array(words, "s")]))
    with Document.open(saved(model, tmp_path)) as document:
        assert document.model == model
        array = document.array(document.model.graph.initializer[0])
        assert [word.decode() for word in array] == list(words)


def test_sparse_initializers_stay_inline(tmp_path):
    values, indices = numpy_helper.from_array(LARGE.ravel(), "s"), numpy_helper.from_array(np.arange(1280))
    graph = graph_of()
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5000]))
    with Document.open(saved(model_of(graph), tmp_path)) as document:
        assert document.model.graph.sparse_initializer[0].values == values


def test_training_graphs_are_stripped(tmp_path):
    model = model_of(graph_of())
    info = model.training_info.add()
    info.algorithm.CopyFrom(graph_of([], [numpy_helper.from_array(LARGE, "step")], "a"))
    with Document.open(saved(model, tmp_path)) as document:
        (tensor,) = document.model.training_info[0].algorithm.initializer
        assert mark_of(tensor) is not None
        np.testing.assert_array_equal(document.array(tensor), LARGE)


@pytest.mark.parametrize("one_file", [True, False])
def test_external_tensors_are_marked_like_stripped_ones(tmp_path, one_file):
    tensors = [numpy_helper.from_array(LARGE + k, f"w{k}") for k in range(70)]
    path = saved(
        model_of(graph_of([], tensors)),
        tmp_path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="m.data" if one_file else None,
        size_threshold=0,
    )
    with Document.open(path) as document:
        assert document.has_external_data
        for k, tensor in enumerate(document.model.graph.initializer):
            assert [entry.key for entry in tensor.external_data] == ["repfuse"]
            np.testing.assert_array_equal(document.array(tensor), LARGE + k)
        assert document.nbytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_model_in_memory_is_not_touched():
    model = model_of(graph_of([constant(LARGE)], [numpy_helper.from_array(LARGE, "w")]))
    before = model.SerializeToString()
    document = Document.from_model(model)
    assert model.SerializeToString() == before
    assert document.path is None
    assert mark_of(document.model.graph.initializer[0]) is not None
    model.graph.initializer[0].raw_data = b""
    np.testing.assert_array_equal(document.array(document.model.graph.initializer[0]), LARGE)


def test_a_model_in_memory_has_no_folder_for_external_data(tmp_path):
    path = saved(
        model_of(graph_of([helper.make_node("Neg", ["w"], ["y"])], [numpy_helper.from_array(LARGE, "w")])),
        tmp_path,
        save_as_external_data=True,
        location="d",
    )
    with pytest.raises(InputError, match="does not come with a model from memory"):
        Document.from_model(onnx.load(path, load_external_data=False))


def test_arrays_outlive_the_document(tmp_path):
    with Document.open(
        saved(model_of(graph_of([], [numpy_helper.from_array(LARGE, "w")])), tmp_path)
    ) as document:
        array = document.array(document.model.graph.initializer[0])
        document.release()
    document.close()
    np.testing.assert_array_equal(array, LARGE)


def test_unknown_fields_are_in_the_skeleton(tmp_path):
    graph = graph_of([], [numpy_helper.from_array(LARGE, "w")]).SerializeToString() + b"\xa2\x7d\x03abc"
    group = b"\xa3\x7d\x08\x01\xa4\x7d"
    data = onnx.ModelProto(ir_version=8).SerializeToString() + b"\x3a"
    data += bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph + group + b"\xa5\x7d\x01\x02\x03\x04"
    (tmp_path / "m.onnx").write_bytes(data)
    with Document.open(tmp_path / "m.onnx") as document:
        skeleton = document.model.SerializeToString()
    assert b"\xa2\x7d\x03abc" in skeleton
    assert group in skeleton


def test_a_mark_in_a_file_is_refused(tmp_path):
    spy = TensorProto(
        name="spy", data_type=TensorProto.FLOAT, dims=[32, 40], data_location=TensorProto.EXTERNAL
    )
    spy.external_data.add(key="repfuse", value="0")
    for order in (1, -1):
        tensors = [spy, numpy_helper.from_array(LARGE, "w")][::order]
        (tmp_path / "m.onnx").write_bytes(model_of(graph_of([], tensors)).SerializeToString())
        with pytest.raises(InputError, match="repfuse"):
            Document.open(tmp_path / "m.onnx")


def test_ten_thousand_nodes_open_quickly(tmp_path):
    nodes = [helper.make_node("Relu", [f"t{k}"], [f"t{k + 1}"], name=f"relu_{k}") for k in range(10_000)]
    path = Path(saved(model_of(graph_of(nodes)), tmp_path))
    best = 1.0
    for _ in range(3):
        start = time.process_time()
        Document.open(path).close()
        best = min(best, time.process_time() - start)
    assert best < 0.5
