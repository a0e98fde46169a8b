"""Signal at few elements, drawn at random, for folds in half precision that an impulse for each channel does not show.

An impulse sets a channel at one position. That shows all weights where any position meets them all, as those of a
convolution of images of any size do. It does not where positions have weights of their own (a matrix for each head), or
where the file fixes sizes and windows have strides: a position meets some of the taps. In float32 noise shows these; in
half precision its rounding hides a weight that is off by a hundredth. So elements are set so sparsely that an output
sums about two of them, in as many rows as let every weight meet several.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, is_float
from onnx_repfuse.verifier.folds.error_bound import SIZE_ERRORS
from onnx_repfuse.verifier.folds.fold_case import FoldCase, Source
from onnx_repfuse.verifier.folds.size_rules import Rules, apply
from onnx_repfuse.verifier.oracle.evaluator import Truth
from onnx_repfuse.verifier.oracle.tensor import TooLarge, Unsupported

__all__ = ["Sparse", "hides_weights", "sparse_rows"]

_LIVE_TERMS = 2.0  # of a sum, on average: in one of seven sums a term is alone
_MEETINGS = 24.0  # of each weight with signal, on average
_MAX_PRODUCTS = 250_000_000
_MAX_ROWS = 512
_MAX_ELEMENTS = 1 << 23  # of a source, in all rows
_MULTIPLIES = {"Div", "Einsum", "Gemm", "MatMul", "Mul"}


class Sparse(NamedTuple):
    """Rows of one source: how many, which share of its elements holds signal, and the value of all other sources."""

    rows: int
    share: float
    others: float


def hides_weights(case: FoldCase) -> bool:
    """Whether impulses of one source at one position may miss weights that noise does not show, either."""
    return case.float_format.is_half and (
        any(map(_has_fixed_positions, case.sources)) or _multiplies_sources(case)
    )


def _has_fixed_positions(source: Source) -> bool:
    return sum(dim not in (None, 1) for dim in source.dims[1:]) > 1


def _multiplies_sources(case: FoldCase) -> bool:
    """Whether a source alone, the others being zeros, may show nothing."""
    constants = {tensor.name for tensor in case.before.graph.initializer}
    return any(
        node.op_type in _MULTIPLIES and sum(name not in constants for name in node.input) > 1
        for node in case.before.graph.node
    )


def sparse_rows(case: FoldCase, rules: Rules, size: tuple[int, ...], chosen: Source) -> Sparse | None:
    """What of a source shows every weight; None where nothing is summed, the size does not fit, or it is no float.

    Args:
        case: the fold.
        rules: how the size of each source follows from that of the first.
        size: of the first source's free axes.
        chosen: the source. All others are zeros, or ones where they are factors.
    """
    if not is_float(chosen.dtype) or chosen.name in case.measured:
        return None
    shapes = {
        source.name: source.shape(1, apply(rule, size) or (1,))
        for source, rule in zip(case.sources, rules, strict=True)
    }

    def evaluated(own: float, others: float) -> Truth:
        values = {source.name: others for source in case.sources} | {chosen.name: own}
        feed = {s.name: np.full(shapes[s.name], values[s.name], s.dtype) for s in case.sources}
        return case.oracle(case.after)(feed, needs_values=False)

    try:
        truth, others = evaluated(1.0, 0.0), 0.0
        if _multiplies_sources(case) and np.array_equal(truth.magnitude, evaluated(0.0, 0.0).magnitude):
            truth, others = evaluated(1.0, 1.0), 1.0
    except (Unsupported, TooLarge, *SIZE_ERRORS):
        return None
    terms = float(truth.terms.max(initial=1.0))
    images = chosen.batch or 1  # of a fixed batch, rows fill it up
    products = truth.magnitude.size // images * terms
    sizes = (math.prod(t.dims) for t in case.after.graph.initializer if t.data_type in FLOAT_FORMATS)
    share = _LIVE_TERMS / terms
    meetings = share * products / max(1, sum(sizes))  # of a weight, in a row
    if share >= 1.0 or not meetings:
        return None
    elements = math.prod(shapes[chosen.name]) // images
    most = min(_MAX_ROWS, int(_MAX_PRODUCTS / products), _MAX_ELEMENTS // max(1, elements))
    rows = min(math.ceil(_MEETINGS / meetings), most)
    return Sparse(rows, share, others) if rows else None
