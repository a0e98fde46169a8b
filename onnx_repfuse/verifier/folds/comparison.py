"""What was seen of one fold, and the verdict from it."""

from __future__ import annotations

import numpy as np

from onnx_repfuse.records.verdict import FoldVerdict, Status
from onnx_repfuse.verifier.distance import Array

__all__ = ["Comparison"]


class Comparison:
    """One fold at one stage. It keeps the element farthest beyond (or nearest to) its tolerance.

    Args:
        output: the tensor by which messages call the fold.
        stage: "probe" or "tap", as in `FoldVerdict`.
        backend: what runs the models, "onnxruntime" or "reference".
    """

    def __init__(self, output: str, stage: str, backend: str = "onnxruntime") -> None:
        self.output = output
        self.stage = stage
        self.backend = backend
        self._ratio = -1.0
        self._error = 0.0
        self._tolerance = 0.0
        self._where = ""
        self._notes: dict[str, None] = {}

    def record(self, gap: Array, tolerance: Array, where: str) -> None:
        """Take in one comparison; a gap that is NaN, or has the tolerance NaN, counts as infinite."""
        tolerance = np.broadcast_to(tolerance, gap.shape)
        with np.errstate(all="ignore"):
            ratio = np.where(gap == 0, 0.0, gap / tolerance)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if not ratio.size:
            return
        worst = int(ratio.argmax())
        if float(ratio.flat[worst]) > self._ratio:
            self._ratio = float(ratio.flat[worst])
            self._error, self._tolerance = float(gap.flat[worst]), float(tolerance.flat[worst])
            self._where = f"{where}, at {tuple(int(i) for i in np.unravel_index(worst, gap.shape))}"

    def note(self, text: str) -> None:
        """Add a remark to the message, once."""
        self._notes[text] = None

    def verdict(self) -> FoldVerdict:
        """PASSED if every comparison stayed within its tolerance, else FAILED."""
        passed = self._ratio <= 1.0
        text = f"'{self.output}' differs by {self._error:.3g} where {self._tolerance:.3g} is allowed"
        if not passed:
            text = f"{text}, {self._where}"
        status = Status.PASSED if passed else Status.FAILED
        return self._verdict(status, self._error, self._tolerance, "; ".join((text, *self._notes)))

    def failed(self, why: str) -> FoldVerdict:
        """FAILED for a reason other than a difference."""
        return self._verdict(Status.FAILED, float("inf"), 0.0, f"'{self.output}': {why}")

    def not_observed(self, why: str) -> FoldVerdict:
        """NOT_OBSERVED: nothing could have shown a fault."""
        return self._verdict(Status.NOT_OBSERVED, 0.0, 0.0, f"'{self.output}' was not observed: {why}")

    def _verdict(self, status: Status, error: float, tolerance: float, message: str) -> FoldVerdict:
        return FoldVerdict(self.output, status, self.stage, error, tolerance, self.backend, message)
