"""The forms of a model that the library takes, what it feeds, and where it does not write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from onnx_repfuse import FeedSpec, InputError, benchmark, compare, fuse, plan, verify
from onnx_repfuse.errors import UsageError

MODELS = Path(__file__).parents[2] / "models"
ACNET = MODELS / "acnet.train.onnx"


class Program:
    """What a `torch.onnx.ONNXProgram` has."""

    def __init__(self, path):
        self.model = onnx_ir.load(path)

    @property
    def model_proto(self):
        raise AssertionError("its weights may be larger than 2 GB")


class OldProgram:
    """One of the first versions, which held no onnx_ir.Model."""

    def __init__(self, path):
        self.model_proto = onnx.load(path)


@pytest.mark.parametrize("form", [onnx_ir.load, Program, OldProgram])
def test_takes_what_exporters_and_passes_hold(form):
    given = form(ACNET)
    assert [str(fold.kind) for fold in plan(given).folds] == ["branches"] * 4
    result = fuse(given)
    assert (result.path, result.report.model) == (None, "")
    assert [node.op_type for node in result.model.graph.node].count("Conv") == 4
    assert verify(given, result.model)
    assert compare(result.model, given)
    if form is onnx_ir.load:  # its weights are as they were
        assert (
            onnx_ir.to_proto(given).graph.initializer
            == onnx_ir.to_proto(onnx_ir.load(ACNET)).graph.initializer
        )


def test_a_model_of_onnx_ir_is_written_to_the_path_given(tmp_path):
    assert fuse(onnx_ir.load(ACNET), tmp_path / "out.onnx").path == tmp_path / "out.onnx"
    assert verify(ACNET, tmp_path / "out.onnx")


def test_messages_about_a_model_in_memory_name_no_temporary_file():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Nonsense(x) }'
    )
    for given in (model, onnx_ir.from_proto(model)):
        with pytest.raises(InputError) as caught:
            verify(given, given)
        assert "repfuse-" not in str(caught.value)


def test_neither_torch_nor_onnx_ir_is_imported():
    code = (
        "import sys, onnx_repfuse\n"
        f"onnx_repfuse.plan({str(ACNET)!r})\n"
        "try: onnx_repfuse.plan(3)\nexcept onnx_repfuse.InputError: pass\n"
        "print(*{'torch', 'onnx_ir'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_input_is_overwritten_only_on_request(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(ACNET.read_bytes())
    (tmp_path / "link.onnx").symlink_to(path)
    for output in (path, str(path), tmp_path / "link.onnx", tmp_path / ".." / tmp_path.name / "net.onnx"):
        with pytest.raises(UsageError, match="is an input: in_place=True overwrites it"):
            fuse(path, output)
    with pytest.raises(UsageError, match="is a folder: give a file"):
        fuse(path, tmp_path)
    assert path.read_bytes() == ACNET.read_bytes()
    assert fuse(path, path, in_place=True).path == path
    assert verify(ACNET, path)
    assert len(onnx.load(path).graph.node) == 8


IMAGE = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    "feeds",
    [IMAGE, {"input": IMAGE}, [{"input": IMAGE}, {"input": 2 * IMAGE}]],
    ids=["array", "dict", "runs"],
)
def test_verifies_on_arrays(feeds):
    verification = verify(ACNET, ACNET, feeds=feeds)
    assert (verification.seeds, verification.shapes) == ((), ({"input": (1, 3, 32, 32)},))
    assert compare(ACNET, ACNET, feeds=feeds)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (3, "feeds takes a dict of arrays by input name, .* not int"),
        ("batch.npy", "feeds takes a dict .* not str"),
        ([], "not an empty list"),
        ([IMAGE], "not a list of ndarray"),
        ({"inputs": IMAGE}, "no such input; did you mean 'input'"),
        ({"x": IMAGE}, "no such input, only input"),
        ({"input": object()}, "no array of numbers or strings, but object"),
        ({"input": [[1.0], [1.0, 2.0]]}, "for 'input' is no array"),
    ],
)
@pytest.mark.parametrize("work", [verify, compare, benchmark])
def test_says_what_it_feeds(feeds, message, work):
    with pytest.raises(UsageError, match=message):
        work(ACNET, ACNET, feeds=feeds)


def test_an_array_alone_is_for_one_input():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] a, float[2] b) => (float[2] y) { y = Add(a, b) }'
    )
    with pytest.raises(UsageError, match="this one has a, b"):
        verify(model, model, feeds=np.ones(2, np.float32))
    assert verify(model, model, feeds={"a": np.ones(2, np.float32)})  # b is synthetic


def test_arrays_of_another_type_are_told():
    with pytest.raises(InputError, match=r"double.*float"):
        verify(ACNET, ACNET, feeds=IMAGE.astype(np.float64))


@pytest.mark.parametrize("words", [{"data": {"input": IMAGE}}, {"data": (IMAGE,)}, {"shapes": (1, 3)}])
def test_feed_specs_refuse_slips(words):
    with pytest.raises(UsageError, match=r"FeedSpec\."):
        FeedSpec(**words)


def test_times_two_models():
    timing = benchmark(ACNET, fuse(ACNET).model, feeds=IMAGE, seconds=0)
    assert timing.word in ("faster", "equal", "slower")
    assert timing.rounds == 7
    assert timing.shapes == {"input": (1, 3, 32, 32)}
    assert timing.original[0] > 0 < timing.fused[0]
    with pytest.raises(UsageError, match="seconds"):
        benchmark(ACNET, ACNET, seconds=-1)
