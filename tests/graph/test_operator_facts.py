"""The short form of `python -m tests.operator_facts`: where onnx may infer what ONNX Runtime does not compute."""

from __future__ import annotations

import pytest

from tests.operator_facts import survey_of
from tests.versions import since

pytestmark = pytest.mark.filterwarnings("ignore")  # of the onnx package's own tests

IN_DOUBT = [
    "AveragePool",
    "ConvTranspose",
    "Einsum",
    "Flatten",
    "MaxPool",
    "PRelu",
    "Resize",
    "Slice",
]
IN_DOUBT += ["Squeeze", "STFT", "Unsqueeze", "Upsample"]
EVALUATED = ["Concat", "Div", "Expand", "Gather", "Pow", "Reshape", "Shape"]


MARKS = {
    "ConvTranspose": since("ONNX Runtime before 1.32 ends the process on some", onnxruntime="1.32"),
    "Einsum": since("an older ONNX Runtime does not know its newest opset", onnxruntime="1.32"),
}


@pytest.mark.parametrize(
    "operator", [pytest.param(name, marks=MARKS.get(name, ())) for name in IN_DOUBT + EVALUATED]
)
def test_what_is_held_proved_is_what_the_runtime_computes(operator: str) -> None:
    survey = survey_of(operator, most=3)
    assert not survey.differences
    assert survey.models > 5
