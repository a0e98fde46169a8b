"""How much a correct fold may differ: see docs/verification.md for the derivation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_repfuse.verify.cases import FoldCase
from onnx_repfuse.verify.measure import difference, largest, ulp
from onnx_repfuse.verify.truth import Truth
from onnx_repfuse.verify.verdict import FoldVerdict, Status

__all__ = ["Worst", "fold_tolerance", "run_tolerance", "ulps_tolerance"]

Array = np.ndarray[Any, np.dtype[Any]]
_WALK = 1.0  # c of c * sqrt(n) * u * sum|w||x|
_DOUBLE = 2.0**-53


def fold_tolerance(
    case: FoldCase, before: Truth, after: Truth, squares: tuple[Array, Array] | None = None
) -> Array:
    """What rounding the folded weights may change, per element, both sides evaluated in float64.

    Args:
        case: the fold.
        before, after: the oracle's answers.
        squares: sum w^2 x^2 of both, if the inputs are random: then rounding errors add up in squares, which
            is sharper in short formats.
    """
    m_before, m_after = before.magnitude.astype(np.float64), after.magnitude.astype(np.float64)
    rounding = case.unit * (2.0 * m_after + m_before)
    if squares is not None:
        old, new = (np.sqrt(one.astype(np.float64)) for one in squares)
        rounding = np.minimum(rounding, case.unit * (4.0 * new + 3.0 * old))
    walk = 4.0 * _DOUBLE * (np.sqrt(before.terms) * m_before + np.sqrt(after.terms) * m_after)
    tiny = case.smallest * 16.0 * (after.terms + 1.0)
    return np.asarray(rounding + walk + tiny)


def run_tolerance(case: FoldCase, truth: Truth, nodes: int) -> Array:
    """What a runtime of the fold's precision may differ from float64, per element."""
    steps = _WALK * np.sqrt(truth.terms) + nodes
    return np.asarray(
        steps * case.unit * truth.magnitude.astype(np.float64) + case.smallest * 16.0 * truth.terms
    )


def ulps_tolerance(value: Array, shaken: Sequence[Array]) -> Array:
    """Without an oracle: 4 times the change by one ulp, and 8 ulp of the largest value."""
    noise = max((largest(difference(value, other)) for other in shaken), default=0.0)
    return np.asarray(4.0 * noise + 8.0 * ulp(largest(value), value.dtype))


class Worst:
    """The element that is farthest beyond (or nearest to) its tolerance, over many comparisons."""

    def __init__(self, output: str, judge: str) -> None:
        self.output = output
        self.judge = judge
        self.ratio = -1.0
        self.error = 0.0
        self.tolerance = 0.0
        self.where = ""
        self.notes: dict[str, None] = {}

    def see(self, gap: Array, allowed: Array, where: str) -> None:
        """Take in one comparison; a gap that is not finite, or has no tolerance, counts as infinite."""
        allowed = np.broadcast_to(allowed, gap.shape)
        with np.errstate(all="ignore"):
            ratio = np.where(gap == 0, 0.0, gap / allowed)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if not ratio.size:
            return
        at = int(ratio.argmax())
        if float(ratio.flat[at]) > self.ratio:
            self.ratio = float(ratio.flat[at])
            self.error, self.tolerance = float(gap.flat[at]), float(allowed.flat[at])
            self.where = f"{where}, at {tuple(int(i) for i in np.unravel_index(at, gap.shape))}"

    def note(self, text: str) -> None:
        """Add a remark to the message, once."""
        self.notes[text] = None

    def verdict(self, stage: str) -> FoldVerdict:
        """PASSED if every comparison stayed within its tolerance."""
        good = self.ratio <= 1.0
        text = f"'{self.output}' differs by {self.error:.3g} where {self.tolerance:.3g} is allowed"
        if not good:
            text = f"{text}, {self.where}"
        message = "; ".join((text, *self.notes))
        status = Status.PASSED if good else Status.FAILED
        return FoldVerdict(self.output, status, stage, self.error, self.tolerance, self.judge, message)
