"""How far the original itself is from float64, on feeds where the result fails.

The noise of a model shows how independent roundings add up. Equal terms (weights of one value on a constant image)
round one way, in the original as in a correct result, and moving each by an ulp of its own does not show that. The
original's own error does. It takes an evaluation of the model in float64, so it is measured only before a result fails.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx_repfuse.errors import InputError
from onnx_repfuse.verifier.distance import difference, flatten, is_inexact
from onnx_repfuse.verifier.inputs import FeedKey
from onnx_repfuse.verifier.outputs.baseline import Baseline, Row
from onnx_repfuse.verifier.outputs.float64_study import evaluate
from onnx_repfuse.verifier.session import file_size, load

__all__ = ["measure_own_errors"]

_LARGEST_FILE = 64 << 20  # bytes; in float64 a model takes several times its size, and numpy takes its time


def measure_own_errors(baseline: Baseline, keys: Iterable[FeedKey]) -> bool:
    """Measure the original's error from float64 on some feeds; whether there was anything to measure.

    Models in half precision have a float32 twin instead. A model that float64 evaluation does not know has no error.
    """
    missing = [key for key in keys if key not in baseline.own_errors and key not in baseline.twin]
    if not missing or file_size(baseline.original) > _LARGEST_FILE:
        return False
    model = load(baseline.original)
    for key in missing:
        try:
            truth = flatten(evaluate(model, baseline.feed(key)))
        except InputError:
            truth = {}
        baseline.own_errors[key] = _errors(baseline.values[key], truth)
    return any(baseline.own_errors[key] for key in missing)


def _errors(values: Row, truth: Row) -> Row:
    """How far floats are from float64; None for a tensor that has another shape there."""
    errors: Row = {}
    for name, value in values.items():
        exact = truth.get(name)
        if value is None or exact is None or not is_inexact(value.dtype):
            continue
        errors[name] = difference(exact, value) if exact.shape == value.shape else None
    return errors
