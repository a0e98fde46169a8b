"""Whether a fold is as precise as its original where every tensor is stored in half precision.

GPUs and NPUs store each tensor in the model's type and sum in float32 or better. ONNX Runtime's CPU provider has no
float16 kernels for most operators: it keeps float32 between them, where neither overflow nor rounding shows. So both
sides are evaluated by the oracle with every result rounded to the type, and both are compared with float64. The root
mean square error of the fold may be twice the original's, and what the original represents must not overflow.

Inputs are normal numbers of magnitude 1, numbers from 0 to 255, as in images, and numbers in the range of the model's
own intermediates (those of `--input-data`, if given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.error_bound import SIZE_ERRORS
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.size_rules import candidate_rules
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.intermediates import Intermediates
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from onnx_repfuse.verifier.oracle.tensor import Unsupported

__all__ = ["loses_precision"]

_FACTOR = 2.0  # times the original's own error that of a fold may be
_BRIGHTEST = 255.0  # of an image's values
_ROWS = 4  # rows of random numbers are averaged over, so that one lucky rounding does not decide
Feed = dict[str, Array]


def loses_precision(case: FoldCase, intermediates: Intermediates, seed: int = 0) -> str:
    """Why a fold is not precise enough in half precision, as a clause; "" if it is, or the question does not arise.

    Args:
        case: the fold, which has passed its probes.
        intermediates: the values of its sources in the model, or why there are none.
        seed: of the random values.
    """
    types = {node.op_type for model in (case.before, case.after) for node in model.graph.node}
    if not case.float_format.is_half or "Cast" in types:  # behind a Cast, tensors are of another type
        return ""
    dtype = case.float_format.dtype
    try:
        exact = case.oracle(case.before)
        before, after = (
            Oracle(model, stored_as=dtype, arrays=case.side(model).arrays)
            for model in (case.before, case.after)
        )
    except Unsupported:
        return ""
    for what, feed in _feeds(case, exact, intermediates, np.random.default_rng(seed)):
        try:
            truth, first, second = (oracle(feed).value for oracle in (exact, before, after))
        except (Unsupported, *SIZE_ERRORS):
            continue
        why = _why_worse(case, truth, first, second)
        if why:
            return f"{why} where every tensor is stored as {dtype.name}, on {what}"
    return ""


def _why_worse(case: FoldCase, truth: Array, before: Array, after: Array) -> str:
    # Beyond a quarter of the largest value either may overflow at the end, by a rounding.
    usable = case.is_usable(truth) & np.isfinite(before)
    if not usable.any():
        return ""
    if not np.isfinite(after[usable]).all():
        return "its values overflow, and the original's do not,"
    own, fused = (_root_mean_square((value - truth)[usable]) for value in (before, after))
    # An original that is exact by luck, such as a factor of 2, still rounds what it gives out.
    floor = case.float_format.unit_roundoff * _root_mean_square(truth[usable])
    if fused <= _FACTOR * max(own, floor):
        return ""
    return f"its error is {fused / own if own else np.inf:.3g} times the original's"


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _feeds(
    case: FoldCase, exact: Oracle, intermediates: Intermediates, rng: np.random.Generator
) -> Iterator[tuple[str, Feed]]:
    """Feeds of an ordinary size with a word for each: normal numbers, an image, the model's own range."""
    shapes = _ordinary_shapes(case, exact)
    if shapes is None:
        return
    yield "inputs of magnitude 1", _filled(case, shapes, lambda name, shape: rng.standard_normal(shape))
    yield (
        "inputs from 0 to 255",
        _filled(case, shapes, lambda name, shape: rng.uniform(0.0, _BRIGHTEST, shape)),
    )
    if not isinstance(intermediates, str):
        ranges = {source.name: _range(intermediates.get(source.name, np.zeros(1))) for source in case.sources}
        yield (
            "inputs in the range of the model's own",
            _filled(case, shapes, lambda name, shape: rng.uniform(*ranges[name], shape)),
        )


def _filled(
    case: FoldCase, shapes: Mapping[str, tuple[int, ...]], draw: Callable[[str, tuple[int, ...]], Array]
) -> Feed:
    """Each source filled with what `draw` makes of its name and shape, as its type stores it."""
    return {
        source.name: draw(source.name, shapes[source.name]).astype(source.dtype) for source in case.sources
    }


def _ordinary_shapes(case: FoldCase, exact: Oracle) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the last probe that the nodes accept, with a few rows if they take any number of them."""
    for rules in candidate_rules(case):
        last = [stimulus.feed for stimulus in stimuli(case, rules) if stimulus.kind in ("noise", "halves")][
            -1:
        ]
        for feed in last:
            shapes = {name: array.shape for name, array in feed.items()}
            if all(source.batch is None for source in case.sources):
                shapes = {name: (_ROWS, *shape[1:]) for name, shape in shapes.items()}
            try:
                exact({name: np.zeros(shape) for name, shape in shapes.items()})
            except (Unsupported, *SIZE_ERRORS):
                continue
            return shapes
    return None


def _range(values: Array) -> tuple[float, float]:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)
