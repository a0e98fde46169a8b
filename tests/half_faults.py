"""How many small faults of half-precision folds the probes see: `python -m tests.half_faults [COUNT]`.

Each fold is one of float16, of 3 to 64 channels, in which one weight is off by a hundredth of itself. A short form is
in the suite.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.planner.folds.fold_models import fold_models
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.structures import Structures
from tests.build import Net

CHANNELS = (3, 8, 16, 32, 48, 64)


def blocks(count: int, dtype: Any = np.float16) -> Iterator[onnx.ModelProto]:
    """Conv with BatchNormalization, and parallel branches, in turns."""
    for seed in range(count):
        channels = CHANNELS[seed % len(CHANNELS)]
        net = Net(channels, dtype=dtype, seed=seed)
        total = net.conv_bn("x", channels, channels, 3 if seed % 5 else 1, strides=[1 + seed % 2] * 2)
        if seed % 3 == 1:
            total = net.add(total, net.conv_bn("x", channels, channels, 1, strides=[1 + seed % 2] * 2))
        elif seed % 3 == 2 and not seed % 2:
            total = net.add(total, net.bn("x", channels))
        yield net.model(net.op("Relu", total))


def case_of(model: onnx.ModelProto) -> FoldCase:
    """The one fold of a block."""
    plan = make_plan(Document.from_model(model), Options())
    ((planned, fold),) = plan.folds
    layouts = plan.channel_layouts[planned.scope.key]
    return FoldCase(*fold_models(planned, fold, layouts, model.ir_version))


def plant(case: FoldCase, seed: int, factor: float = 1.01) -> None:
    """Make one weight of the replacement wrong."""
    kernel = next(tensor for tensor in case.after.graph.initializer if len(tensor.dims) == 4)
    weights = numpy_helper.to_array(kernel).copy()
    place = np.random.default_rng(seed).integers(weights.size)
    weights.flat[place] *= factor
    kernel.CopyFrom(numpy_helper.from_array(weights, kernel.name))


def caught(count: int) -> tuple[int, int, int]:
    """(faults seen in the first fold of a structure, in a later one, right folds that do not pass)."""
    seen = seen_later = false_alarms = 0
    for seed, model in enumerate(blocks(count)):
        later = Structures()
        false_alarms += sum(
            probe(case_of(model), structures=later).status is not Status.PASSED for _ in range(2)
        )
        wrong = case_of(model)
        plant(wrong, seed)
        seen += probe(wrong).status is Status.FAILED
        seen_later += probe(wrong, structures=later).status is Status.FAILED
    return seen, seen_later, false_alarms


if __name__ == "__main__":
    start = time.perf_counter()
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(
        f"{total} folds: faults seen in first and in later folds, false alarms: {caught(total)}, "
        f"{time.perf_counter() - start:.1f} s"
    )
