"""The worst difference that was found in one fold, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from onnx_repfuse.records.verdict import StageVerdict, Status
from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.blocks import Block

__all__ = ["Comparison"]


class _Element(NamedTuple):
    ratio: float = -1.0  # error / tolerance; nothing was compared yet
    error: float = 0.0
    tolerance: float = 0.0
    where: str = ""


@dataclass
class Comparison:
    """One fold at one stage. It keeps the element farthest beyond (or nearest to) its tolerance.

    Attributes:
        output: the tensor whose name stands for the fold in messages.
        stage: "isolated" or "in-place", as in `StageVerdict`.
        backend: what runs the models, "onnxruntime" or "reference".
    """

    output: str
    stage: str
    backend: str = "onnxruntime"
    _worst: _Element = field(default_factory=_Element)
    _notes: dict[str, None] = field(default_factory=dict)  # in order, each once

    @property
    def fails(self) -> bool:
        """Whether anything was beyond its tolerance."""
        return self._worst.ratio > 1.0

    def anew(self) -> Comparison:
        """Of the same fold, with the same remarks, and no comparison yet."""
        return replace(self, _worst=_Element())

    def record(self, gap: Array, tolerance: Array, where: str, block: Block = ()) -> None:
        """Add one comparison, of a block of the tensor if there is one.

        A gap that is NaN, or has the tolerance NaN, counts as infinite.
        """
        tolerance = np.broadcast_to(tolerance, gap.shape)
        if not gap.size:
            return
        with np.errstate(all="ignore"):
            ratio = gap / tolerance
        worst = int(ratio.argmax())  # a NaN, if there is one
        if np.isnan(ratio.flat[worst]):  # rare; the masks take time
            ratio = np.where(gap == 0, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
            worst = int(ratio.argmax())
        if float(ratio.flat[worst]) > self._worst.ratio:
            position = tuple(int(i) for i in np.unravel_index(worst, gap.shape))
            if block:
                position = tuple(i + span.start for i, span in zip(position, block, strict=True))
            self._worst = _Element(
                float(ratio.flat[worst]),
                float(gap.flat[worst]),
                float(tolerance.flat[worst]),
                f"{where}, at {position}",
            )

    def note(self, text: str) -> None:
        """Add a remark to the message, once."""
        self._notes[text] = None

    def verdict(self) -> StageVerdict:
        """PASSED if every comparison stayed within its tolerance, else FAILED."""
        _, error, tolerance, where = self._worst
        text = f"'{self.output}' differs by {error:.3g} where {tolerance:.3g} is allowed"
        if self.fails:
            text = f"{text}, {where}"
        status = Status.FAILED if self.fails else Status.PASSED
        return self._verdict(status, error, tolerance, "; ".join((text, *self._notes)))

    def equal(self, why: str) -> StageVerdict:
        """PASSED without a comparison."""
        return self._verdict(Status.PASSED, 0.0, 0.0, f"'{self.output}': {why}")

    def failed(self, why: str) -> StageVerdict:
        """FAILED for a reason other than a difference."""
        return self._verdict(Status.FAILED, float("inf"), 0.0, f"'{self.output}': {why}")

    def not_observed(self, why: str) -> StageVerdict:
        """NOT_OBSERVED: nothing could have shown a fault."""
        return self._verdict(Status.NOT_OBSERVED, 0.0, 0.0, f"'{self.output}' was not observed: {why}")

    def _verdict(self, status: Status, error: float, tolerance: float, message: str) -> StageVerdict:
        return StageVerdict(self.stage, status, error, tolerance, self.backend, message)
