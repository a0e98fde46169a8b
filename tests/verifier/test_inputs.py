"""Synthetic inputs: values and sizes; the user's own; the ulp that measures noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import InputError
from onnx_repfuse.verifier.input_sizes import ORDINARY, shapes_to_try
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds, make_feed
from onnx_repfuse.verifier.noise import nudge_feed, nudged_weights
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from onnx_repfuse.verifier.session import ValueInfo, open_session
from onnx_repfuse.verifier.user_inputs import read_inputs
from tests.verifier.small_models import build, info, relu


def shapes_of(model: onnx.ModelProto, spec: FeedSpec | None = None) -> list[tuple[int, ...]]:
    with open_session(model) as session:
        return [group.shapes["x"] for group in choose_feeds(session, spec or FeedSpec())]


def test_floats_have_both_signs() -> None:
    value = make_feed([ValueInfo("x", "tensor(float)", (1000,))], {"x": (1000,)}, 0, {})["x"]
    assert value.dtype == np.float32
    assert 300 < (value < 0).sum() < 700


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("tensor(double)", "float64"),
        ("tensor(float16)", "float16"),
        ("tensor(bfloat16)", "bfloat16"),
        ("tensor(int8)", "int8"),
        ("tensor(uint8)", "uint8"),
        ("tensor(int64)", "int64"),
        ("tensor(bool)", "bool"),
        ("tensor(string)", "object"),
        ("optional(tensor(float))", "float32"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3, 2), (0, 2)])
def test_every_type_has_synthetic_values(kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    value = make_feed([ValueInfo("x", kind, shape)], {"x": shape}, 0, {})["x"]
    assert isinstance(value, np.ndarray)
    assert value.dtype.name == dtype
    assert value.shape == shape


def test_sequences_are_lists_and_complex_inputs_need_user_data() -> None:
    value = make_feed([ValueInfo("x", "seq(tensor(float))", ())], {"x": (2,)}, 0, {})["x"]
    assert [item.shape for item in value] == [(2,), (2,)]
    with pytest.raises(InputError, match="--input-data"):
        make_feed([ValueInfo("x", "tensor(complex64)", ())], {"x": ()}, 0, {})


def test_fixed_shapes_stay() -> None:
    assert shapes_of(relu([1, 3, 8, 8])) == [(1, 3, 8, 8)]


def test_symbolic_dims_take_an_ordinary_and_a_small_odd_size_at_two_batches() -> None:
    assert shapes_of(relu(["n", 3, "h", "w"])) == [(1, 3, 64, 96), (2, 3, 17, 23)]
    assert shapes_of(relu(["n", "h", "w", 3])) == [(1, 64, 96, 3), (2, 17, 23, 3)]
    assert shapes_of(relu(["n", "t", 8])) == [(1, 16, 8), (2, 5, 8)]
    assert shapes_of(relu([None, 3, "s", "s"])) == [(1, 3, 64, 64), (2, 3, 17, 17)]


def test_one_name_means_one_size_across_inputs() -> None:
    inputs = [info(name, ["n", "t"]) for name in ("x", "z")]
    model = build(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        inputs,
        [info("y", None)],
        {},
    )
    with open_session(model) as session:
        for group in choose_feeds(session, FeedSpec()):
            assert group.shapes["x"] == group.shapes["z"]


def _added(*shapes: list[int | str]) -> onnx.ModelProto:
    inputs = [info(f"x{i}", shape) for i, shape in enumerate(shapes)]
    names = [value.name for value in inputs]
    output = [info("y", None)]
    return build([helper.make_node("Sum", names, ["y"])], inputs, output, {})


def test_dims_that_only_a_later_input_has_are_tried_as_one() -> None:
    with open_session(_added(["n", 3, "h", "w"], ["n", 3, "p", "q"], [1, 3, 1, 1])) as session:
        found = [group.shapes["x1"] for group in choose_feeds(session, FeedSpec())]
        given = [group.shapes["x1"] for group in choose_feeds(session, FeedSpec({"x1": (2, 3, 1, 1)}))]
    assert found == [(1, 3, 64, 96), (2, 3, 17, 23), (2, 3, 1, 1)]
    assert given == [(2, 3, 1, 1)] * 2
    with open_session(_added(["n", "h"], ["n", "h"])) as session:
        assert len(choose_feeds(session, FeedSpec())) == 2


def test_sizes_that_do_not_run_are_skipped() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = [info("x", ["n", 3, "h", "w"])]
    output = [info("y", None)]
    model = build(nodes, inputs, output, {"s": np.array([1, 3 * 224 * 224])})
    assert shapes_of(model) == [(1, 3, 224, 224)]


def test_volumes_are_not_tried_at_the_sizes_of_images() -> None:
    """640 cubed is 6 GB; found by random graphs."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = [info("x", ["n", 3, "d", "h", "w"])]
    output = [info("y", None)]
    assert shapes_of(build(nodes, inputs, output, {"s": np.array([1, 3 * 8**3])})) == [(1, 3, 8, 8, 8)]
    values = [
        ValueInfo("x", "tensor(float)", ("n", 3, "d", "h", "w")),
        ValueInfo("z", "tensor(float)", ("n", 3, 4096, 4096)),
    ]
    tried = [shapes["x"] for shapes in shapes_to_try(values, {}, ORDINARY)]
    assert tried
    assert max(np.prod(shape[2:]) for shape in tried) <= 1 << 20


def test_a_model_that_runs_at_no_size_asks_for_one() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = [info("x", ["n", 3, "h", "w"])]
    output = [info("y", None)]
    model = build(nodes, inputs, output, {"s": np.array([1, 3 * 111 * 113])})
    with pytest.raises(InputError, match=r"--input-shape x:n,3,h,w"):
        shapes_of(model)
    assert shapes_of(model, FeedSpec({"x": (1, 3, 111, 113)})) == [(1, 3, 111, 113)]
    assert verify_outputs(model, model, spec=FeedSpec({"x": (1, 3, 111, 113)}))


def test_wrong_names_and_ranks_are_input_errors() -> None:
    with pytest.raises(InputError, match="no input 'z'"):
        shapes_of(relu([1, 3]), FeedSpec({"z": (1, 3)}))
    with pytest.raises(InputError, match="has 2 dims, but 3 were given"):
        shapes_of(relu(["n", 3]), FeedSpec({"x": (1, 3, 3)}))
    with pytest.raises(InputError, match="the data given"):
        verify_outputs(relu([1, 3]), relu([1, 3]), spec=FeedSpec(data=({"x": np.zeros((2, 3), np.float32)},)))


def test_integers_that_index_a_table_stay_within_it() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=7), helper.make_node("Gather", ["w", "i"], ["y"])]
    model = build(
        nodes,
        [info("x", ["n", "t"], TensorProto.INT32)],
        [info("y", None)],
        {"w": np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)},
    )
    result = verify_outputs(model, model)
    assert result, [verdict.message for verdict in result.outputs]


def test_user_data_replaces_synthetic_values() -> None:
    values = [{"x": np.full((2, 3), number, np.float32)} for number in (1.5, -2)]
    with open_session(relu(["n", 3])) as session:
        (group,) = choose_feeds(session, FeedSpec(data=tuple(values)))
    assert group.shapes == {"x": (2, 3)}
    assert group.seeds == (-1, -1)
    assert [row["y"][0, 0] for row in group.outputs] == [1.5, 0]


def test_inputs_are_read_from_npy_npz_and_test_data_sets(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, z=array + 1)
    np.savez(tmp_path / "one.npz", anything=array)
    folder = tmp_path / "sets" / "test_data_set_0"
    folder.mkdir(parents=True)
    for index in range(2):
        tensor = numpy_helper.from_array(array + index, "whatever")
        (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    (only,) = read_inputs(tmp_path / "a.npy", ["x"])
    np.testing.assert_array_equal(only["x"], array)
    assert set(read_inputs(tmp_path / "a.npy", ["x", "z"], "z")[0]) == {"z"}
    assert set(read_inputs(tmp_path / "a.npz", ["x", "z"])[0]) == {"x", "z"}
    assert set(read_inputs(tmp_path / "one.npz", ["x", "z"], "z")[0]) == {"z"}
    for path in (folder, folder.parent):
        (run,) = read_inputs(path, ["x", "z"])
        np.testing.assert_array_equal(run["z"], array + 1)


def test_unreadable_input_files_are_input_errors_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no numpy")
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    (tmp_path / "bad.pb").write_bytes(b"\xff\xff\xff")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "good.npy", np.zeros(2))
    for name in ("bad.npy", "bad.npz", "bad.pb", "empty", "pickled.npy", "missing.npy"):
        with pytest.raises(InputError) as caught:
            read_inputs(tmp_path / name, ["x"])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="say which input"):
        read_inputs(tmp_path / "good.npy", ["x", "z"])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_nudging_moves_by_one_ulp(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    value = np.concatenate([np.random.default_rng(0).normal(size=500), [0, np.inf, -np.inf, np.nan]]).astype(
        kind
    )
    moved = nudge_feed({"x": value})["x"]
    assert moved.dtype == kind
    np.testing.assert_array_equal(moved[-4:].astype(float), value[-4:].astype(float))
    bits = {2: np.int16, 4: np.int32, 8: np.int64}[kind.itemsize]
    assert set(np.abs(moved.view(bits)[:-4] - value.view(bits)[:-4]).tolist()) == {1}


def test_only_the_weights_of_arithmetic_are_nudged() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("Clip", ["t", "low"], ["y"]),
    ]
    inputs = [info("x", [1, 4])]
    output = [info("y", None)]
    model = build(nodes, inputs, output, {"w": np.ones((4, 4), np.float32), "low": np.float32(0.5)})
    moved = nudged_weights(model)
    assert moved is not None
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, moved))
    assert (before["w"] != after["w"]).all()
    assert before["low"] == after["low"]
    assert nudged_weights(relu([1])) is None
