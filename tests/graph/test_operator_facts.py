"""The short form of `python -m tests.operator_facts`: where onnx may infer what ONNX Runtime does not compute."""

from __future__ import annotations

import pytest

from tests.operator_facts import survey_of

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


@pytest.mark.parametrize("operator", IN_DOUBT + EVALUATED)
def test_what_is_held_proved_is_what_the_runtime_computes(operator: str) -> None:
    survey = survey_of(operator, most=3)
    assert not survey.differences
    assert survey.models > 5
