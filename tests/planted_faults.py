"""How many faults planted in float32 folds the probes see: `python -m tests.planted_faults [ROUNDS]`.

A round plants ten kinds of faults in one fold each, of 3 to 64 channels; 22 rounds are 220 faults. Beside them, every
fold is judged as it is: a false alarm counts as much as a fault that is missed. Each is judged twice, as the first fold
of its structure and as a later one, of which less is tried. A short form is in the suite.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.structures import Structures
from tests.half_faults import blocks, case_of

__all__ = ["FAULTS", "missed"]

Array = NDArray[Any]
Fault = Callable[[Array, Array, np.random.Generator], None]  # changes a weight (M, C, ...) or a bias (M,)


def _add_to_one(w: Array, _: Array, rng: np.random.Generator) -> None:
    w.flat[rng.integers(w.size)] += 1e-3


def _scale_one(factor: float) -> Fault:
    def scale(w: Array, _: Array, rng: np.random.Generator) -> None:
        w.flat[rng.integers(w.size)] *= factor

    return scale


def _swap_outputs(w: Array, _: Array, rng: np.random.Generator) -> None:
    one, other = rng.choice(len(w), 2, replace=False)
    w[[one, other]] = w[[other, one]]


def _swap_inputs(w: Array, _: Array, rng: np.random.Generator) -> None:
    one, other = rng.choice(w.shape[1], 2, replace=False)
    w[:, [one, other]] = w[:, [other, one]]


def _negate(w: Array, _: Array, rng: np.random.Generator) -> None:
    w[rng.integers(len(w))] *= -1


def _shift(w: Array, _: Array, rng: np.random.Generator) -> None:
    if w.shape[2] > 1:
        w[:] = np.roll(w, 1, int(rng.integers(2, 4)))
    else:  # a 1x1 kernel has nowhere to go
        w[:] = np.roll(w, 1, 1)


def _move_bias(_: Array, b: Array, rng: np.random.Generator) -> None:
    b[rng.integers(len(b))] += np.abs(b).max() * 1e-3


def _swap_biases(_: Array, b: Array, rng: np.random.Generator) -> None:
    one, other = rng.choice(len(b), 2, replace=False)
    b[[one, other]] = b[[other, one]]


FAULTS: dict[str, Fault] = {
    "one weight + 1e-3": _add_to_one,
    "one weight times 1.001": _scale_one(1.001),
    "one weight times 1.01": _scale_one(1.01),
    "one weight gone": _scale_one(0.0),
    "two output channels swapped": _swap_outputs,
    "two input channels swapped": _swap_inputs,
    "one output channel negated": _negate,
    "kernel shifted by one": _shift,
    "one bias off by a thousandth of the largest": _move_bias,
    "two biases swapped": _swap_biases,
}


def plant(case: FoldCase, fault: Fault, rng: np.random.Generator) -> None:
    """Make the replacement of a fold wrong."""
    tensors = {len(tensor.dims): tensor for tensor in case.after.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[rank]).copy() for rank in (4, 1))
    fault(weight, bias, rng)
    for rank, array in ((4, weight), (1, bias)):
        tensors[rank].CopyFrom(numpy_helper.from_array(array, tensors[rank].name))


def missed(rounds: int) -> tuple[int, Counter[str], int]:
    """(faults planted, those that no probe sees, right folds that do not pass); each fault counts twice."""
    models: list[onnx.ModelProto] = list(blocks(rounds, np.float32))
    unseen: Counter[str] = Counter()
    alarms = 0
    for number, model in enumerate(models):
        later = (
            Structures()
        )  # the first that is judged here is right: the others are later folds of its structure
        alarms += sum(probe(case_of(model), structures=later).status is not Status.PASSED for _ in range(2))
        for kind, (name, fault) in enumerate(FAULTS.items()):
            wrong = case_of(model)
            plant(wrong, fault, np.random.default_rng([number, kind]))
            unseen[name] += probe(wrong).status is not Status.FAILED
            unseen[f"{name}, in a later fold"] += probe(wrong, structures=later).status is not Status.FAILED
    return 2 * len(models) * len(FAULTS), +unseen, alarms


if __name__ == "__main__":
    start = time.perf_counter()
    planted, unseen, alarms = missed(int(sys.argv[1]) if len(sys.argv) > 1 else 22)
    print(
        f"{planted} faults, missed: {dict(unseen) or 0}; {alarms} false alarms; {time.perf_counter() - start:.1f} s"
    )
    sys.exit(bool(alarms) or unseen.total() > 0)
