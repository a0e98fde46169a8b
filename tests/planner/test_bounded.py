"""Planning a small file takes little memory, whatever it asks for; `python -m tests.bounded` has the long form."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import onnx_repfuse
from onnx_repfuse.records.reasons import Reason
from tests import bounded

SCRIPT = """
import sys
from tests import bounded
bounded.limit_memory()
import onnx_repfuse
onnx_repfuse.plan(bounded.MODELS[sys.argv[1]]())
"""
FAST = [
    "wide border",
    "border of many axes",
    "pad-conv",
    "dilated-conv",
    "pool-pool",
    "sum of unlike dilations",
]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
@pytest.mark.parametrize("name", FAST)
def test_a_small_file_is_planned_in_little_memory(name: str) -> None:
    assert name in bounded.MODELS
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_wide_tensors_of_a_long_chain_stay_for_a_reason() -> None:
    wide = {name: np.resize(value, 1 << 14) for name, value in bounded.NORM.items()}
    link = ("BatchNormalization", ". s b m v", {})
    few, many = (
        onnx_repfuse.plan(bounded.chain(link, nodes=nodes, constants=wide, shape=("N", 1 << 14, 8, 8)))
        for nodes in (100, 300)
    )
    assert (len(few.folds), len(many.folds)) == (1, 0)
    assert {refusal.reason for refusal in many.refusals} == {Reason.COST}
