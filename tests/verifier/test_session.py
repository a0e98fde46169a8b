"""Sessions: what a Runtime sets, and what the two backends say of a model."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import TensorProto

from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.verifier.session import DoesNotRun, open_session
from tests.verifier.small_models import relu


def test_a_runtime_sets_providers_threads_and_the_optimization_level() -> None:
    level = ort.GraphOptimizationLevel
    for runtime, expected in (
        (Runtime(), level.ORT_DISABLE_ALL),
        (Runtime().optimized(), level.ORT_ENABLE_ALL),
    ):
        with open_session(relu([2]), runtime) as session:
            assert session.engine.get_session_options().graph_optimization_level == expected
            assert session.engine.get_providers() == ["CPUExecutionProvider"]
    with open_session(relu([2]), Runtime(threads=2)) as session:
        assert session.engine.get_session_options().intra_op_num_threads == 2


def test_custom_operators_that_cannot_be_loaded_are_a_reason_of_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "missing.so"
    with pytest.raises(DoesNotRun, match=r"missing\.so") as caught:
        open_session(relu([2]), Runtime(custom_ops=(library,)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "backend"), [(TensorProto.FLOAT, "onnxruntime"), (TensorProto.BFLOAT16, "reference")]
)
def test_a_negative_dim_is_an_unknown_one(kind: int, backend: str) -> None:
    with open_session(relu([-1, 3], kind)) as session:
        assert session.backend == backend
        assert [value.shape for value in session.inputs] == [(None, 3)]
