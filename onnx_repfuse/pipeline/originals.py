"""What a result is proved against: the user's model and, where another simplifier ran first, what that one wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import VerificationError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.beside import Beside, Started
from onnx_repfuse.pipeline.check_scopes import force_branches
from onnx_repfuse.pipeline.compare_models import compare, measuring, reason_of
from onnx_repfuse.pipeline.spoken_paths import SpokenPaths
from onnx_repfuse.records.verdict import Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.outputs.baseline import Baseline
    from onnx_repfuse.verifier.scopes.forced import ForcedBranches

__all__ = ["Originals"]


@dataclass
class Originals:
    """Both of them, measured once for all attempts.

    Attributes:
        document: of which the result is made.
        options: the user's.
        folder: for copies of models that are run.
        spoken: how messages call files.
        whole: the user's model; a str says why it cannot be run.
        of_folds: what folds are proved against; the same unless another simplifier ran.
    """

    document: Document
    options: Options
    folder: Path
    spoken: SpokenPaths
    whole: Baseline | str | None = None
    of_folds: Baseline | str | None = None
    _branches: ForcedBranches | None = field(default=None)

    @property
    def is_simplified(self) -> bool:
        """Whether another simplifier ran."""
        return self.document.unconverted.original is not self.document.unconverted

    def measuring(self, beside: Beside, ends: Sequence[Sequence[str]]) -> Started[Baseline | str]:
        """Begin to run the user's model; what is returned waits for that.

        `ends` are tensors that folds are compared with, to be read along if the folds are those of this model.
        """
        if self.whole is not None:
            known = self.whole
            return Started(lambda: known, lambda: True)
        wanted = () if self.is_simplified else ends
        job = measuring(self.document.original, self.options, self.folder / "original", wanted)
        wait = beside.start(job)

        def measured() -> Baseline | str:
            if self.whole is None:
                self.whole = wait()
            return self.whole

        return Started(measured, wait.is_over)

    def measure_for_folds(self, baseline: Baseline | str, ends: Sequence[Sequence[str]]) -> Baseline | str:
        """What folds are proved against: run what another simplifier wrote, and compare it with the original.

        Nothing else proves what it did, so an output that could not have shown a fault is not enough.

        Raises:
            InputError: it does not run.
            VerificationError: it was not proved equal to the original.
        """
        if not self.is_simplified:
            return baseline
        if self.of_folds is None:
            simplified = self.document.unconverted
            self.of_folds = measuring(simplified, self.options, self.folder / "simplified", ends)()
            why = self._difference(baseline, self.of_folds)
            if why:
                raise VerificationError(
                    f"what it wrote was not proved equal to the original: {self.spoken.text(why)}"
                )
        return self.of_folds

    def branches(self, baseline: Baseline) -> ForcedBranches:
        """The user's model in all its branches."""
        if self._branches is None:
            self._branches = force_branches(baseline, self.document)
        return self._branches

    def _difference(self, baseline: Baseline | str, simplified: Baseline | str) -> str:
        """Why the simplified model is not proved equal to the original; "" if it is."""
        if isinstance(baseline, str) or isinstance(simplified, str):
            return baseline if isinstance(baseline, str) else str(simplified)
        place = Path(simplified.original)  # type: ignore[arg-type]
        comparison = compare(baseline, place, self.options)
        if comparison.status is not Status.PASSED:
            return reason_of(comparison, comparison.status)
        branches = self.branches(baseline)
        if not branches.is_complete:
            return "not all of its branches can be run"
        return branches.difference(place)
