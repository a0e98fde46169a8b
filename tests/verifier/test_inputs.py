"""Synthetic inputs: values and sizes; the user's own; the ulp that measures noise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import InputError
from onnx_repfuse.verifier.arithmetic_weights import behind_weights
from onnx_repfuse.verifier.input_hints import InputHints, input_hints
from onnx_repfuse.verifier.input_sizes import ORDINARY, shapes_to_try
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds, make_feed
from onnx_repfuse.verifier.noise import nudge_feed, nudged_weights
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from onnx_repfuse.verifier.session import ValueInfo, open_session
from onnx_repfuse.verifier.user_inputs import read_inputs
from tests.verifier.small_models import build, info, relu
from tests.versions import since_parser


def shapes_of(model: onnx.ModelProto, spec: FeedSpec | None = None) -> list[tuple[int, ...]]:
    with open_session(model) as session:
        groups = choose_feeds(session, spec or FeedSpec(), input_hints(model, session.inputs))
        return [group.shapes["x"] for group in groups]


def test_floats_have_both_signs() -> None:
    value = make_feed([ValueInfo("x", "tensor(float)", (1000,))], {"x": (1000,)}, 0, InputHints())["x"]
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
    value = make_feed([ValueInfo("x", kind, shape)], {"x": shape}, 0, InputHints())["x"]
    assert isinstance(value, np.ndarray)
    assert value.dtype.name == dtype
    assert value.shape == shape


def test_sequences_are_lists_and_complex_inputs_need_user_data() -> None:
    value = make_feed([ValueInfo("x", "seq(tensor(float))", ())], {"x": (2,)}, 0, InputHints())["x"]
    assert [item.shape for item in value] == [(2,), (2,)]
    with pytest.raises(InputError, match="--input-data"):
        make_feed([ValueInfo("x", "tensor(complex64)", ())], {"x": ()}, 0, InputHints())


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
    np.savez(tmp_path / "unnamed.npz", array, array + 1)
    np.testing.assert_array_equal(read_inputs(tmp_path / "unnamed.npz", ["x", "z"])[0]["z"], array + 1)
    for path in (folder, folder.parent):
        (run,) = read_inputs(path, ["x", "z"])
        np.testing.assert_array_equal(run["z"], array + 1)


@pytest.mark.parametrize(
    ("keys", "inputs", "meant"),
    [
        (["imgae"], ["image"], "no such input; did you mean 'image'?"),
        (["x", "y"], ["x", "z"], "'y', but the model has no such input, only x, z"),
        (["arr_0", "arr_1"], ["x"], "'arr_0'"),
    ],
)
def test_arrays_of_an_npz_have_the_names_of_inputs(
    tmp_path: Path, keys: list[str], inputs: list[str], meant: str
) -> None:
    np.savez(tmp_path / "a.npz", **{key: np.zeros(2) for key in keys})
    with pytest.raises(InputError, match=re.escape(meant)):
        read_inputs(tmp_path / "a.npz", inputs)


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


def test_of_a_broken_tensor_the_error_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(dims=[3], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(4))
    (tmp_path / "short.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(InputError, match=r"as a tensor: .*reshape.*; as a sequence: "):
        read_inputs(tmp_path / "short.pb", ["x"])


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


MOVED_WEIGHTS = {
    "behind a Transpose": """{ v = Transpose (w) y = MatMul (x, v) }""",
    "behind two nodes": """<int64[2] s = {4, 4}> { u = Reshape (w, s) v = Identity (u) y = MatMul (x, v) }""",
    "beside another in a Concat": """<float[4,4] z = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> {
        v = Concat <axis = 1> (z, w) y = MatMul (x, v) }""",
    "captured by a branch": """{ c = Constant <value = bool {1}> () y = If (c) <
        then_branch = t () => (float[] a) { v = Transpose (w) a = MatMul (x, v) },
        else_branch = e () => (float[] b) { b = Identity (x) }> }""",
    "argument of a function": """{ y = own.product (x, w) }
        <domain: "own", opset_import: ["": 17]> product (a, b) => (c) { v = Transpose (b) c = MatMul (a, v) }""",
}  # fmt: skip
NOT_MOVED = {
    "hidden by an inner name": """{ c = Constant <value = bool {1}> () y = If (c) <
        then_branch = t () => (float[] a) { w = Neg (x) a = Mul (x, w) },
        else_branch = e () => (float[] b) { b = Max (x, w) }> }""",
    "behind a Cast": """{ v = Cast <to = 11> (w) d = Cast <to = 11> (x) y = MatMul (d, v) }""",
    "a function's threshold": """{ y = own.most (x, w) }
        <domain: "own", opset_import: ["": 17]> most (a, b) => (c) { c = Max (a, b) }""",
}


@pytest.mark.parametrize("name", [*MOVED_WEIGHTS, *NOT_MOVED])
def test_weights_are_nudged_wherever_arithmetic_reads_them(name: str) -> None:
    body = {**MOVED_WEIGHTS, **NOT_MOVED}[name]
    sixteen = ", ".join(["1.0"] * 16)
    head = '<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[4,4] x) => (float[] y) '
    constants = "float[4,4] w = {" + sixteen + "}"
    body = body.replace("<", f"<{constants}, ", 1) if body.startswith("<") else f"<{constants}> {body}"
    model = onnx.parser.parse_model(head + body)
    moved = nudged_weights(model)
    weight = (
        None if moved is None else {t.name: numpy_helper.to_array(t) for t in moved.graph.initializer}["w"]
    )
    assert (weight is not None and (weight != 1).all()) == (name in MOVED_WEIGHTS)


@since_parser
def test_weights_inside_of_subgraphs_and_functions_are_nudged() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float16[4] x) => (float16[] y, float16[] z) {
        c = Constant <value = bool {1}> ()
        s = If (c) <then_branch = t () => (float16[] a) <float16[1] w = {2}> { a = Mul (x, w) },
                    else_branch = e () => (float16[] b) { b = Identity (x) }>
        y = own.shifted (s)
        z = Identity (x) }
        <domain: "own", opset_import: ["": 17]> shifted (a) => (b) {
            k = Constant <value = float16[1] {3}> () b = Add (a, k) }"""
    )
    moved = nudged_weights(model)
    assert moved is not None
    branch = moved.graph.node[1].attribute[0].g.initializer[0]
    constant = moved.functions[0].node[0].attribute[0].t
    assert numpy_helper.to_array(branch)[0] != 2
    assert numpy_helper.to_array(constant)[0] != 3
    assert behind_weights(model, {TensorProto.FLOAT16}) == {"s", "y"}


def _of(op: str, place: int, *before: str, count: int = 5, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The values of input "r", behind `before`, at one input of an operator; the others are left out."""
    names = ["x", *[""] * (count - 1)][:count]
    nodes, name = [], "r"
    for number, other in enumerate(before):
        nodes.append(
            helper.make_node(other, [name], [f"b{number}"], **({"to": 1} if other == "Cast" else {}))
        )
        name = f"b{number}"
    names[place] = name
    nodes.append(helper.make_node(op, names[: place + 1], ["y"]))
    return build(nodes, [info("x", [4]), info("r", [])], [info("y", None)], {})


@pytest.mark.parametrize(
    ("op", "place"), [("Dropout", 1), ("Bernoulli", 0), ("NonMaxSuppression", 3), ("NonMaxSuppression", 4)]
)
@pytest.mark.parametrize("before", [(), ("Identity",), ("Cast", "Squeeze")])
def test_what_has_to_be_a_fraction_is_one(op: str, place: int, before: tuple[str, ...]) -> None:
    values = [ValueInfo("r", "tensor(float)", ()), ValueInfo("x", "tensor(float)", (4,))]
    hints = input_hints(_of(op, place, *before), values)
    assert hints.fractions == {"r"}
    for kind in ("tensor(float)", "tensor(float16)"):
        drawn = [make_feed([ValueInfo("r", kind, ())], {"r": ()}, seed, hints)["r"] for seed in range(50)]
        assert min(drawn) >= 0
        assert max(drawn) < 1
        assert len({float(value) for value in drawn}) > 10


def test_a_dropout_with_its_ratio_as_an_input_runs() -> None:
    model = _of("Dropout", 1)
    assert verify_outputs(model, model)


def test_the_scales_of_a_resize_are_one() -> None:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"])]
    model = build(nodes, [info("x", [1, 3, 8, 8]), info("s", [4])], [info("y", None)], {})
    assert verify_outputs(model, model)


def sound(kernel: int, stride: int, *, rank: int = 2, samples: Any = "t") -> onnx.ModelProto:
    """Conv over samples: x (b, t), or (b, 1, t)."""
    nodes = [helper.make_node("Unsqueeze", ["x", "one"], ["u"])] if rank == 2 else []
    nodes.append(helper.make_node("Conv", ["u" if rank == 2 else "x", "w"], ["y"], strides=[stride]))
    weight = np.random.default_rng(0).standard_normal((4, 1, kernel)).astype(np.float32)
    shape = ["b", samples] if rank == 2 else ["b", 1, samples]
    constants = {"w": weight, "one": np.array([1])} if rank == 2 else {"w": weight}
    return build(nodes, [info("x", shape)], [info("y", None)], constants)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kernel", [3, 80, 400, 512, 1023, 5000, 16000, 30000])
def test_audio_gets_a_length_that_its_kernels_take(kernel: int, rank: int) -> None:
    model = sound(kernel, kernel // 2, rank=rank)
    shapes = shapes_of(model)
    assert all(shape[-1] >= kernel for shape in shapes)
    assert len(shapes) == 2, "an ordinary and a small one"
    assert verify_outputs(model, model)


@pytest.mark.parametrize("names", [(None, None, None), ("n", "t", "m")])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_recurrent_state_has_as_many_rows_as_the_batch(
    names: tuple[Any, ...], layers: int, is_first: bool
) -> None:
    """x (N, T) and state (layers, N, 8), as voice detectors take them."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["u"]),
        helper.make_node("Conv", ["u", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "two"], ["row"]),
        helper.make_node("Add", ["row", "state"], ["y"]),
        helper.make_node("Shape", ["x"], ["n"], end=1),
        helper.make_node("Concat", ["layers", "n", "eight"], ["size"], axis=0),
        helper.make_node("Reshape", ["state", "size"], ["new"]),  # only of a state with N rows
    ]
    sizes = {"one": 1, "two": 2, "eight": 8, "layers": layers}
    weights = {"w": np.ones((8, 1, 100), np.float32)}
    weights |= {name: np.array([value]) for name, value in sizes.items()}
    inputs = [info("x", [names[0], names[1]]), info("state", [layers, names[2], 8])]
    inputs = inputs[::-1] if is_first else inputs
    model = build(nodes, inputs, [info("y", None), info("new", None)], weights)
    with open_session(model) as session:
        groups = choose_feeds(session, FeedSpec(), input_hints(model, session.inputs))
    assert all(group.shapes["state"][1] == group.shapes["x"][0] for group in groups)


def test_many_strided_layers_need_a_second_of_sound() -> None:
    """As feature encoders of speech have: 400 samples for one frame, and some frames for the rest."""
    nodes, name, weights = [helper.make_node("Unsqueeze", ["x", "one"], ["c0"])], "c0", {"one": np.array([1])}
    for layer, (kernel, stride) in enumerate(
        [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2), (8, 1)]
    ):
        weights[f"w{layer}"] = np.ones((2, 1 if layer == 0 else 2, kernel), np.float32)
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer + 1}"], strides=[stride]))
        name = f"c{layer + 1}"
    nodes[-1].output[0] = "y"
    shapes = shapes_of(build(nodes, [info("x", ["b", "t"])], [info("y", None)], weights))
    assert shapes[0][1] >= 2640


@pytest.mark.parametrize(
    ("target", "shape", "found"),
    [
        ([1, 3, 777], ["n", "t"], (1, 3 * 777)),
        ([1, 3 * 60 * 60], ["n", 3, "h", "w"], (1, 3, 60, 60)),
        ([1, 3, 44 * 44], ["n", 3, "h", "w"], (1, 3, 44, 44)),
        ([1, 12, 50], ["n", 12, "t"], (1, 12, 50)),
    ],
)
def test_a_reshape_implies_a_size(target: list[int], shape: list[Any], found: tuple[int, ...]) -> None:
    model = build(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [info("x", shape)],
        [info("y", None)],
        {"s": np.array(target)},
    )
    if len(shape) == 2:  # the product of three dims is not looked for
        with pytest.raises(InputError, match="--input-shape"):
            shapes_of(model)
        return
    assert shapes_of(model)[0] == found


@pytest.mark.parametrize(
    ("tokens", "patch", "side"), [(50, 32, 224), (197, 16, 224), (101, 12, 120), (37, 14, 84)]
)
def test_positions_that_are_added_imply_the_size_of_an_image(tokens: int, patch: int, side: int) -> None:
    """A vision transformer: patches, a class token, and one position for each."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[patch, patch]),
        helper.make_node("Reshape", ["c", "flat"], ["f"]),
        helper.make_node("Concat", ["f", "token"], ["t"], axis=2),
        helper.make_node("Add", ["t", "p"], ["y"]),
    ]
    constants = {
        "w": rng.standard_normal((4, 3, patch, patch)).astype(np.float32),
        "flat": np.array([1, 4, -1]),
        "token": np.ones((1, 4, 1), np.float32),
        "p": rng.standard_normal((1, 4, tokens)).astype(np.float32),
    }
    assert shapes_of(build(nodes, [info("x", [1, 3, "h", "w"])], [info("y", None)], constants))[0] == (
        1,
        3,
        side,
        side,
    )


def test_the_features_of_a_classifier_imply_the_size_of_an_image() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "k"], ["y"]),
    ]
    weights = {"w": np.ones((5, 3, 4, 4), np.float32), "k": np.ones((5 * 9 * 9, 10), np.float32)}
    assert shapes_of(build(nodes, [info("x", ["n", 3, "h", "w"])], [info("y", None)], weights))[0] == (
        1,
        3,
        36,
        36,
    )


def _flat(channels: int, side: int, *before: str) -> onnx.ModelProto:
    names = ["x", *(f"b{n}" for n in range(len(before)))]
    nodes = [helper.make_node(op, [names[n]], [names[n + 1]]) for n, op in enumerate(before)]
    nodes += [helper.make_node("Flatten", [names[-1]], ["f"]), helper.make_node("Gemm", ["f", "k"], ["y"])]
    weight = np.ones((channels * side * side, 10), np.float32)
    return build(nodes, [info("x", ["n", channels, "h", "w"])], [info("y", None)], {"k": weight})


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_the_channels_of_the_input_count_where_it_is_flattened(channels: int) -> None:
    assert shapes_of(_flat(channels, 9))[0] == (1, channels, 9, 9)
    assert shapes_of(_flat(channels, 9, "Relu"))[0] == (1, channels, 9, 9)


def test_a_width_beside_a_fixed_height_is_found() -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "k"], ["y"])]
    weight = np.ones((3 * 5 * 71, 10), np.float32)
    model = build(nodes, [info("x", ["n", 3, 5, "w"])], [info("y", None)], {"k": weight})
    assert shapes_of(model)[0] == (1, 3, 5, 71)


CONV = helper.make_node("Conv", ["t", "w"], ["y"])
READERS: dict[str, tuple[list[Any], dict[str, Any], int, dict[int, int]]] = {
    "Conv": ([CONV], {"w": np.ones((4, 7, 3, 3), np.float32)}, 4, {1: 7}),
    "grouped Conv of a sound": (
        [helper.make_node("Conv", ["t", "w"], ["y"], group=2)], {"w": np.ones((4, 7, 3), np.float32)}, 3, {1: 14}
    ),
    "ConvTranspose": (
        [helper.make_node("ConvTranspose", ["t", "w"], ["y"])], {"w": np.ones((7, 4, 3, 3), np.float32)}, 4, {1: 7}
    ),
    "Gemm": ([helper.make_node("Gemm", ["t", "w"], ["y"])], {"w": np.ones((7, 4), np.float32)}, 2, {1: 7}),
    "Gemm, turned": (
        [helper.make_node("Gemm", ["t", "w"], ["y"], transB=1)], {"w": np.ones((4, 7), np.float32)}, 2, {1: 7}
    ),
    "MatMul": ([helper.make_node("MatMul", ["t", "w"], ["y"])], {"w": np.ones((7, 4), np.float32)}, 4, {3: 7}),
    "MatMul on the left": (
        [helper.make_node("MatMul", ["w", "t"], ["y"])], {"w": np.ones((4, 7), np.float32)}, 4, {2: 7}
    ),
    "BatchNormalization": (
        [helper.make_node("BatchNormalization", ["t", *"abcd"], ["y"])],
        {name: np.ones(7, np.float32) for name in "abcd"}, 4, {1: 7}
    ),
    "Transpose, Conv": (
        [helper.make_node("Transpose", ["t"], ["n"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["n", "w"], ["y"])],
        {"w": np.ones((4, 7, 3, 3), np.float32)}, 4, {3: 7}
    ),
    "Add": ([helper.make_node("Add", ["t", "w"], ["y"])], {"w": np.ones((1, 7, 1, 5), np.float32)}, 4, {1: 7, 3: 5}),
    "MaxPool": ([helper.make_node("MaxPool", ["t"], ["y"], kernel_shape=[3])], {}, 3, {}),
    "Pad": ([helper.make_node("Pad", ["t", "w"], ["y"])], {"w": np.ones(6, np.int64)}, 3, {}),
    "LayerNormalization": (
        [helper.make_node("LayerNormalization", ["t", "w"], ["y"])], {"w": np.ones(7, np.float32)}, 4, {3: 7}
    ),
    "Relu": ([helper.make_node("Relu", ["t"], ["y"])], {}, 4, {}),
}  # fmt: skip


@pytest.mark.parametrize("is_ranked", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_what_reads_an_input_tells_its_rank_and_its_channels(name: str, is_ranked: bool) -> None:
    nodes, weights, rank, sizes = READERS[name]
    nodes = [helper.make_node("Abs", ["x"], ["t"]), *nodes]
    shape = [f"d{axis}" for axis in range(rank)] if is_ranked else None
    model = build(nodes, [info("x", shape)], [info("y", None)], weights)
    for found in shapes_of(model):
        assert len(found) == rank
        assert {axis: found[axis] for axis in sizes} == sizes
    assert verify_outputs(model, model)


def test_a_name_means_what_another_input_tells() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Concat", ["x", "z"], ["y"], axis=0),
    ]
    inputs = [info("x", ["n", "c", 8, 8]), info("z", ["m", "c", 8, 8])]
    model = build(nodes, inputs, [info("c", None), info("y", None)], {"w": np.ones((4, 7, 3, 3), np.float32)})
    with open_session(model) as session:
        shapes = choose_feeds(session, FeedSpec(), input_hints(model, session.inputs))[0].shapes
    assert shapes["x"][1] == shapes["z"][1] == 7


def test_an_input_of_unknown_rank_that_runs_at_none_asks_for_its_shape() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    model = build(nodes, [info("x", None)], [info("y", None)], {"s": np.array([1, 3 * 443 * 444])})
    with pytest.raises(InputError, match=r"give --input-shape x:\.\.\.:"):
        shapes_of(model)
    assert shapes_of(model, FeedSpec({"x": (1, 3, 443, 444)})) == [(1, 3, 443, 444)]
