"""How far a correct fold may be from what its original nodes compute.

Computed in floating point, a sum of n products obeys

    |fl(sum w x) - sum w x| <= gamma_n m,    gamma_n = n u / (1 - n u),    m = sum |w| |x|

(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, section 3.1). Here u is the unit
roundoff of the format (2^-24 for float32), n the number of terms (`Truth.terms`) and m their magnitude
(`Truth.magnitude`). The bound is reached only if every rounding goes the same way. Independent roundings grow with the
square root of n (section 2.8 there; N. J. Higham and T. Mary, A New Approach to Probabilistic Rounding Error Analysis,
SIAM J. Sci. Comput. 41, 2019). At n = 4608 (3x3, 512 channels) gamma_n m would hide a weight that is off by 0.01. So

    runtime against float64:        (c sqrt(n) + nodes) u m,    c = 1; each node rounds its result once more
    after against before, float64:  2 u m(after) + u m(before); weights are rounded where they are folded

Half precision has sharper bounds, of sums of squares. docs/verification.md derives all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, FloatFormat
from onnx_repfuse.verifier.distance import Array, difference, largest, ulp
from onnx_repfuse.verifier.folds.blocks import Block, blocks, part_of
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.noise import flush_tolerance, noise_tolerance
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from onnx_repfuse.verifier.session import DoesNotRun, open_session

__all__ = ["SIZE_ERRORS", "Evaluation", "Side", "folding_bound", "measured_bound", "runtime_bound"]

# what the oracle raises where sizes do not fit the nodes
SIZE_ERRORS = (ValueError, IndexError, ZeroDivisionError)
_C = 1.0  # c above
_FLOAT64_FACTOR = 4.0  # the oracle's own rounding error is 4 sqrt(n) u m at most, with float64's u
_SIGMAS = 4.0  # standard deviations, where squares are summed
_UNDERFLOWS = 16.0  # smallest positive values by which underflow may change each term
_U64 = FLOAT_FORMATS[onnx.TensorProto.DOUBLE].unit_roundoff
_U32 = FLOAT_FORMATS[onnx.TensorProto.FLOAT].unit_roundoff


@dataclass(frozen=True)
class Evaluation:
    """What the oracle says of one side of a fold for one feed: arrays of value's shape, or broadcastable.

    Attributes:
        value: the truth.
        magnitude: m, sum |w| |x|; float32, all others are float64.
        terms: n, the number of non-zero terms.
        nodes: how many nodes the side has.
        float_format: of the fold.
        squares: sqrt(sum w^2 x^2); None unless the format is shorter than float32.
        stored: the root of the sum of the squares of all results that are stored on the way; None likewise.
        flushed: what may be lost because weights that are too small to show became zero.
    """

    value: Array
    magnitude: Array
    terms: Array
    nodes: int
    float_format: FloatFormat
    squares: Array | None
    stored: Array | None
    flushed: float = 0.0

    def part(self, block: Block) -> Evaluation:
        """Of a block of the value."""
        squares, stored = (None if a is None else part_of(a, block) for a in (self.squares, self.stored))
        value, magnitude, terms = (part_of(a, block) for a in (self.value, self.magnitude, self.terms))
        return replace(self, value=value, magnitude=magnitude, terms=terms, squares=squares, stored=stored)

    def largest(self, axes: tuple[int, ...]) -> Evaluation:
        """The largest magnitude along some axes, which stay with size 1, for the largest bound. The value is lost.

        Only of formats that are not short, and not along the rows, which may sum different numbers of terms.
        """
        assert self.squares is None
        magnitude = self.magnitude.max(axes, keepdims=True)
        return replace(self, value=magnitude, magnitude=magnitude)

    @property
    def negligible(self) -> Evaluation:
        """The same with magnitudes of 0, for bounds without it."""
        return replace(self, magnitude=np.zeros((1,) * self.magnitude.ndim, np.float32))

    @property
    def underflow(self) -> Array:
        """What may be lost where terms are smaller than the format's normal values, or weights became zero."""
        lost = self.float_format.smallest * _UNDERFLOWS * (self.terms + 1.0)
        return np.asarray(lost + self.flushed)


class Side:
    """One of a fold's two models, ready to be evaluated.

    Raises:
        Unsupported: the oracle does not know its operators.
    """

    def __init__(self, case: FoldCase, model: onnx.ModelProto) -> None:
        self.float_format = case.float_format
        self.flushed = flush_tolerance(case.flushed)
        self.nodes = len(model.graph.node)
        self.oracle = case.oracle(model)
        # There u m is not small beside a fault. Errors of independent roundings add up in squares.
        is_short = self.float_format.unit_roundoff > _U32
        arrays = case.side(model).arrays
        self.squares = Oracle(model, 2, arrays=arrays) if is_short else None
        self.stored = Oracle(model, 2, storage=True, arrays=arrays) if is_short else None

    def evaluate(
        self, feed: Mapping[str, Array], *, needs_values: bool = True, needs_magnitudes: bool = True
    ) -> Evaluation:
        """Evaluate one feed, or its magnitudes alone; those that are not needed count as 0, which allows no error.

        Raises:
            Unsupported, or one of SIZE_ERRORS.
        """
        truth = self.oracle(feed, needs_values=needs_values, needs_magnitudes=needs_magnitudes)
        magnitude = truth.magnitude if needs_magnitudes else np.zeros((1,) * truth.value.ndim, np.float32)
        squares, stored = (
            None if oracle is None else np.sqrt(oracle(feed).magnitude.astype(np.float64))
            for oracle in (self.squares, self.stored)
        )
        flushed = (
            self.flushed * (1.0 + max(map(largest, feed.values()), default=0.0)) if self.flushed else 0.0
        )
        return Evaluation(
            truth.value, magnitude, truth.terms, self.nodes, self.float_format, squares, stored, flushed
        )


def folding_bound(before: Evaluation, after: Evaluation) -> Array:
    """What rounding the folded weights may change, when both sides are computed in float64.

    Once rounded, |W' - W| <= u |W|. A weight folded in several rounds is rounded in each, and what an early round lost
    goes through the later ones: 2 u m(after) + u m(before).
    """
    u = after.float_format.unit_roundoff
    # In float64, what the oracle's own sums round, of both sides.
    oracle = (_FLOAT64_FACTOR * _U64 * np.sqrt(side.terms) for side in (before, after))
    if after.squares is None or before.squares is None:
        # Large tensors: the factors are joined first, which have one value per row.
        of_before, of_after = oracle
        bound = after.magnitude * (2.0 * u + of_after)  # rigorous
        bound = bound + before.magnitude * (u + of_before)
        return np.asarray(bound + after.underflow)
    rounding = u * (2.0 * after.magnitude.astype(np.float64) + before.magnitude)
    # Each weight is rounded on its own, so the errors w x e add up in squares.
    rounding = np.minimum(rounding, u * (_SIGMAS * after.squares + 3.0 * before.squares))
    of_sums = (side.magnitude * factor for side, factor in zip((before, after), oracle, strict=True))
    return np.asarray(rounding + sum(of_sums) + after.underflow)


def runtime_bound(side: Evaluation, is_sample: bool = False) -> Array:
    """What a runtime that computes in the fold's format may differ from the truth.

    Args:
        side: the side it runs.
        is_sample: the feed stands for others of its size, so inner tensors may be larger than here.
    """
    u = side.float_format.unit_roundoff
    roots = _C * np.sqrt(side.terms)
    if side.stored is None or side.squares is None or not accumulates_in_float32():
        return np.asarray(side.magnitude * (roots * u + side.nodes * u) + side.underflow)
    # Sums are float32 here, and only what nodes store is rounded to the short format. In a sample, an inner tensor may
    # be small by chance: then as if each node stored what the squares bound.
    stored = side.stored + (np.sqrt(side.nodes) * side.squares if is_sample else 0.0)
    return np.asarray(side.magnitude * (roots * _U32) + _SIGMAS * u * stored + side.underflow)


def measured_bound(value: Array, nudged: Iterable[Array]) -> Array:
    """The bound without an oracle, as for whole models: from what `value` becomes when data moves by one ulp."""
    gaps = (difference(value[block], other[block]) for other in nudged for block in blocks(value.shape))
    noise = max(map(largest, gaps), default=0.0)
    return np.asarray(noise_tolerance(noise, ulp(largest(value), value.dtype)))


@lru_cache(maxsize=1)
def accumulates_in_float32() -> bool:
    """Whether this machine's runtime sums float16 in float32, as it does where it has no float16 kernels.

    4096 ones add up to 4096 then; in float16 the sum stays at 2048, where adding 1 changes nothing.
    """
    ones = np.ones((1, 4096, 1, 1), dtype=np.float16)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "sum",
        [value("x", onnx.TensorProto.FLOAT16, ones.shape)],
        [value("y", onnx.TensorProto.FLOAT16, None)],
        [onnx.numpy_helper.from_array(ones, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    try:
        total = open_session(model).run({"x": ones})["y"]
    except DoesNotRun:
        return False
    return float(total.ravel()[0]) == ones.size
