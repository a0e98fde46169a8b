"""Sessions: what a Runtime sets, and what the two backends say of a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.verifier import intermediates, session
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs
from onnx_repfuse.verifier.session import DoesNotRun, NoImplementation, open_session
from tests.build import Net
from tests.verifier.small_models import build, info, relu
from tests.versions import since_bfloat16


def test_a_runtime_sets_providers_threads_and_the_optimization_level() -> None:
    level = ort.GraphOptimizationLevel
    for runtime, expected in (
        (Runtime(), level.ORT_DISABLE_ALL),
        (Runtime().optimized(), level.ORT_ENABLE_ALL),
    ):
        with open_session(relu([2]), runtime) as session:
            assert session.engine.get_session_options().graph_optimization_level == expected
            assert session.engine.get_session_options().enable_cpu_mem_arena == runtime.is_optimized
            assert session.engine.get_providers() == ["CPUExecutionProvider"]
    with open_session(relu([2]), Runtime(threads=2)) as session:
        assert session.engine.get_session_options().intra_op_num_threads == 2


def test_whole_models_reuse_memory_and_their_outputs_have_their_own() -> None:
    """Outputs that lay in the session's memory would keep all of it."""
    with open_session(relu([2]), Runtime().reusing_memory()) as session:
        options = session.engine.get_session_options()
        assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (True, False)
        (value,) = session.run({"x": np.array([-1, 1], np.float32)}).values()
        assert value.flags.owndata
        assert value.tolist() == [0, 1]


def test_custom_operators_that_cannot_be_loaded_are_a_reason_of_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "missing.so"
    with pytest.raises(DoesNotRun, match=r"missing\.so") as caught:
        open_session(relu([2]), Runtime(custom_ops=(library,)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("main", ["", "import onnxruntime; "])
def test_what_the_runtime_logs_does_not_reach_the_terminal(tmp_path: Path, main: str) -> None:
    """RoiAlign of opset 10 warns about its result while its kernel is made, which no session option silences."""
    node = helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], mode="max", output_height=2, output_width=2)
    boxes = {"r": np.array([[0, 0, 4, 4]], np.float32), "b": np.zeros(1, np.int64)}
    path = tmp_path / "roi.onnx"
    onnx.save(build([node], [info("x", [1, 3, 8, 8])], [info("y", None)], boxes, opset=10), path)
    code = f"{main}from onnx_repfuse import verify; import sys; assert verify(sys.argv[1], sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_the_runtime_starts_no_threads_of_its_own_to_send_events() -> None:
    """One did, from 1.29 on. Whoever has set the variable keeps it, and nobody finds it set who had not."""
    code = "import os, onnx_repfuse.quiet_runtime; "
    code += "print(len(os.listdir('/proc/self/task')), os.environ.get('ORT_DISABLE_TELEMETRY'))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    del environment["ORT_DISABLE_TELEMETRY"]

    def run(**more: str) -> str:
        command, env = [sys.executable, "-c", code], {**environment, **more}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert run() == "1 None"
    assert run(ORT_DISABLE_TELEMETRY="1") == "1 1"


@pytest.mark.parametrize("external", [False, True])
def test_a_large_file_is_read_with_its_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    weight = np.arange(512, dtype=np.float32)
    path = tmp_path / "large.onnx"
    model = build(nodes, [info("x", [512])], [info("y", [512])], {"w": weight})
    onnx.save(model, path, save_as_external_data=external, location="large.data", size_threshold=0)
    monkeypatch.setattr(intermediates, "_MAX_FILE_IN_MEMORY", 0)
    with open_with_extra_outputs(path, ["m"]) as session:
        values = session.run({"x": np.ones(512, np.float32)})
    assert np.array_equal(values["m"], weight)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        (TensorProto.FLOAT, "onnxruntime"),
        pytest.param(TensorProto.BFLOAT16, "reference", marks=since_bfloat16),
    ],
)
def test_a_negative_dim_is_an_unknown_one(kind: int, backend: str) -> None:
    with open_session(relu([-1, 3], kind)) as session:
        assert session.backend == backend
        assert [value.shape for value in session.inputs] == [(None, 3)]


@since_bfloat16  # the newest stands for the older, which cannot write such a model either
def test_what_an_older_onnx_cannot_compute_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator of onnx before 1.19 would take the bits of bfloat16 for numbers."""
    net = Net(4, shape=("N", 4), dtype=ml_dtypes.bfloat16)
    model = net.model(net.op("Gemm", "x", net.random(4, 4)))
    monkeypatch.setattr(session, "_EVALUATES_BFLOAT16", False)
    with pytest.raises(NoImplementation, match=r"bfloat16, which onnx .* does not compute"):
        open_session(model)


def test_a_model_in_memory_brings_its_data_where_a_folder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ONNX Runtime before 1.22."""
    net = Net(4)
    place = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(net.model(net.conv("x", 4, 4, 3)), tmp_path / "m.onnx", **place)
    feed = {"x": np.ones((1, 4, 5, 5), np.float32)}
    with open_session(tmp_path / "m.onnx") as opened:
        wanted = opened.run(feed)
    for takes in {False, session._TAKES_A_FOLDER}:
        monkeypatch.setattr(session, "_TAKES_A_FOLDER", takes)
        with open_session((tmp_path / "m.onnx").read_bytes(), folder=tmp_path) as opened:
            results = opened.run(feed)
        for name, value in wanted.items():
            np.testing.assert_array_equal(results[name], value)
