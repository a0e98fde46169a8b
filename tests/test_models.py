"""The bundled exports are as models/README.md says, and all files of a network compute the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.table import FORMS, counts, file_of, table
from tests.versions import since

FOLDER = Path(__file__).parent.parent / "models"
FILES = sorted(FOLDER.glob("*.onnx"))
NAMES = sorted({path.name.split(".")[0] for path in FILES})
GEMM_OF_RANK_4 = since("ONNX Runtime before 1.22 makes a Gemm of what has four axes", onnxruntime="1.22")
ODD_SIZES = {"batch": 3, "height": 13, "width": 18}
TOLERANCE = 2e-5  # of the largest output, between a network and its author's conversion, in float32


def run(path: Path, level: ort.GraphOptimizationLevel, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": x})
    return output


def mixed_sign_input(path: Path, seed: int = 0) -> np.ndarray:
    (value,) = onnx.load(path).graph.input
    dims = value.type.tensor_type.shape.dim
    shape = [ODD_SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def forms_of(name: str) -> list[str]:
    return [form for form in FORMS if file_of(FOLDER, name, form).exists()]


def test_the_sizes_stay_within_their_limits() -> None:
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) <= 1_000_000
    assert sum(sizes) <= 8_000_000


def test_readme_states_the_counts_and_sizes() -> None:
    assert table(FOLDER) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_no_file_tells_about_the_machine() -> None:
    traces = [b"site-packages", b"/tmp/", b"/usr/", b"/root/", b"/home/", b"stack_trace"]
    assert [path.name for path in FILES if any(trace in path.read_bytes() for trace in traces)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_passes_the_checker(name: str) -> None:
    for form in forms_of(name):
        onnx.checker.check_model(file_of(FOLDER, name, form), full_check=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=GEMM_OF_RANK_4 if name == "unireplknet" else ()) for name in NAMES]
)
def test_all_forms_compute_one_function(name: str) -> None:
    x = mixed_sign_input(file_of(FOLDER, name, forms_of(name)[0]))
    disabled, everything = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    )
    outputs = [run(file_of(FOLDER, name, form), disabled, x) for form in forms_of(name)]
    outputs.append(run(file_of(FOLDER, name, forms_of(name)[0]), everything, x))
    largest = np.abs(outputs[0]).max()
    assert 0.01 < outputs[0].std() < 10
    assert largest < 50
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize("name", NAMES)
def test_the_author_merges_something(name: str) -> None:
    for suffix in ("", "_dynamo"):
        train, deploy = (file_of(FOLDER, name, form + suffix) for form in ("train", "deploy"))
        if train.exists():
            before, after = (counts(onnx.load(path)) for path in (train, deploy))
            assert after["Conv"] <= before["Conv"]
            assert after["BN"] <= before["BN"]
            assert sum(before.values()) > sum(after.values()) or name in ("tiny_vit", "pplcnet")


@pytest.mark.parametrize(
    "path", [path for path in FILES if ".train." in path.name], ids=lambda path: path.name
)
def test_nothing_is_trivially_zero_or_one(path: Path) -> None:
    """A BatchNormalization that could be dropped unnoticed would test nothing."""
    model = onnx.load(path)
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            scale, shift, mean, variance = (weights[name] for name in node.input[1:])
            assert np.ptp(scale) > 0.1 if scale.size > 1 else scale[0] not in (0, 1)
            assert np.abs(shift).max() > 0.01
            assert np.abs(mean).max() > 1e-6
            assert np.abs(variance - 1).max() > 0.01
