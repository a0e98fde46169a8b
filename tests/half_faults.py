"""How many small faults of half-precision folds the probes see: `python -m tests.half_faults [COUNT]`.

Each fold is one of float16, of 3 to 64 channels, in which one weight is off by a hundredth of itself. Half of the folds
read images of any size; of the others the file fixes sizes. A short form is in the suite.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.planner.folds.fold_models import fold_models
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
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


def fixed_blocks(count: int, dtype: Any = np.float16) -> Iterator[onnx.ModelProto]:
    """Folds of which no position meets all weights: matrices per head, products over tokens, strides."""
    for seed in range(count):
        channels = CHANNELS[seed // len(_FIXED) % len(CHANNELS)]
        yield _FIXED[seed % len(_FIXED)](channels, dtype, seed)


def _per_head(channels: int, dtype: Any, seed: int, tokens: int | str = "T") -> onnx.ModelProto:
    net = Net(shape=("N", 4, tokens, channels), dtype=dtype, seed=seed)
    weight = net.const(net.rng.standard_normal((4, channels, channels)) / np.sqrt(channels))
    product = net.op("MatMul", "x", weight)
    return net.model(net.op("Mul", product, net.const(net.rng.uniform(0.5, 1.5, channels))))


def _per_head_of_fixed_tokens(channels: int, dtype: Any, seed: int) -> onnx.ModelProto:
    return _per_head(channels, dtype, seed, 16)


def _strided(channels: int, dtype: Any, seed: int, size: int = 16) -> onnx.ModelProto:
    net = Net(shape=(1, channels, size, size), dtype=dtype, seed=seed)
    pooled = net.conv_bn("x", channels, channels, 3, strides=[2, 2])
    return net.model(net.op("Flatten", net.op("Relu", pooled)) if seed % 2 else pooled)


def _strided_behind_a_view(channels: int, dtype: Any, seed: int) -> onnx.ModelProto:
    net = Net(shape=(1, channels * 256), dtype=dtype, seed=seed)
    image = net.op("Reshape", "x", net.const(np.array([1, channels, 16, 16])))
    return net.model(net.conv_bn(image, channels, channels, 3, strides=[2, 2]))


def _strided_large(channels: int, dtype: Any, seed: int) -> onnx.ModelProto:
    return _strided(channels, dtype, seed, 96)


def _over_tokens(channels: int, dtype: Any, seed: int) -> onnx.ModelProto:
    net = Net(shape=("N", 24, channels), dtype=dtype, seed=seed)
    product = net.op("MatMul", net.random(20, 24), "x")
    return net.model(net.op("Mul", product, net.const(net.rng.uniform(0.5, 1.5, (20, 1)))))


_FIXED = (
    _per_head,
    _per_head_of_fixed_tokens,
    _strided,
    _strided_behind_a_view,
    _strided_large,
    _over_tokens,
)


def case_of(model: onnx.ModelProto, *, sized: bool = False) -> FoldCase:
    """The one fold of a block."""
    plan = make_plan(Document.from_model(model), Options())
    ((planned, fold),) = plan.folds
    layouts = plan.channel_layouts[planned.scope.key]
    models = fold_models(planned, fold, layouts, model.ir_version, sized=sized)
    shapes = {value.name: planned.scope.shape(value.name) for value in models[0].graph.input}
    return FoldCase(*models, proved={name: shape for name, shape in shapes.items() if shape is not None})


def plant(case: FoldCase, seed: int, factor: float = 1.01) -> None:
    """Make one weight of the replacement wrong."""
    floats = [tensor for tensor in case.after.graph.initializer if tensor.data_type in FLOAT_FORMATS]
    kernel = max(floats, key=lambda tensor: math.prod(tensor.dims))
    weights = numpy_helper.to_array(kernel).copy()
    place = np.random.default_rng(seed).integers(weights.size)
    weights.flat[place] *= factor
    kernel.CopyFrom(numpy_helper.from_array(weights, kernel.name))


def judged(model: onnx.ModelProto, seed: int | None, structures: Structures | None = None) -> Status:
    """The verdict on the one fold of a block, with a fault if there is a seed: at any size, or at those of the file."""
    for sized in (False, True):
        case = case_of(model, sized=sized)
        if seed is not None:
            plant(case, seed)
        status = probe(case, structures=structures).status
        if status is Status.PASSED:
            break
    return status


def caught(models: Iterable[onnx.ModelProto]) -> tuple[int, int, int]:
    """(faults seen in the first fold of a structure, in a later one, right folds that do not pass)."""
    seen = seen_later = false_alarms = 0
    for seed, model in enumerate(models):
        later = Structures()
        false_alarms += sum(judged(model, None, later) is not Status.PASSED for _ in range(2))
        seen += judged(model, seed) is Status.FAILED
        seen_later += judged(model, seed, later) is Status.FAILED
    return seen, seen_later, false_alarms


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    for what, make in (("any size", blocks), ("fixed sizes", fixed_blocks)):
        start = time.perf_counter()
        seen = caught(make(total))
        print(
            f"{total} folds of {what}: faults seen in first and in later folds, false alarms: {seen}, "
            f"{time.perf_counter() - start:.1f} s"
        )
