"""What `verify` and `compare` return: verdicts that can show and save themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from onnx_repfuse.api.shown import Shown
from onnx_repfuse.pipeline.environment import Surroundings
from onnx_repfuse.records import comparison, verdict
from onnx_repfuse.records.outcome import Outcome
from onnx_repfuse.records.verdict import Status

__all__ = ["Comparison", "Verification", "outcome_of"]

_DIFFERENCES = {
    Status.FAILED: "the two models differ",
    Status.NOT_OBSERVED: "not every output could have shown a difference; try --input-data with real inputs",
}


@dataclass(frozen=True, repr=False)
class Verification(Shown, verdict.Verification):
    """The verdicts of a run, or on two models. True if all passed, or if nothing was changed.

    Attributes:
        names: the two files; "" for models in memory.
        surroundings: where and how it was made, for files that are saved of it.

    The others are those of `records.verdict.Verification`.
    """

    names: tuple[str, str] = ("", "")
    surroundings: Surroundings | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, record: verdict.Verification, names: tuple[str, str], surroundings: Surroundings | None
    ) -> Verification:
        """The verdicts on two models of these names."""
        found = {entry.name: getattr(record, entry.name) for entry in fields(verdict.Verification)}
        return cls(**found, names=names, surroundings=surroundings)

    def __repr__(self) -> str:
        return f"<Verification{_named(self.names)}: {_counted(self)}>"

    @property
    def _outcome(self) -> Outcome:
        return outcome_of(comparison.Comparison(self), *self.names)


@dataclass(frozen=True, repr=False)
class Comparison(Shown, comparison.Comparison):
    """Two models compared. True if all outputs passed.

    Attributes:
        verification: the verdicts, which can be shown and saved by themselves.
        names: the two files; "" for models in memory.
        surroundings: where and how it was made, for files that are saved of it.

    The others are those of `records.comparison.Comparison`.
    """

    verification: Verification
    names: tuple[str, str] = ("", "")
    surroundings: Surroundings | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, record: comparison.Comparison, names: tuple[str, str], surroundings: Surroundings | None
    ) -> Comparison:
        """The comparison of two models of these names."""
        found = {entry.name: getattr(record, entry.name) for entry in fields(comparison.Comparison)}
        found["verification"] = Verification.of(record.verification, names, surroundings)
        return cls(**found, names=names, surroundings=surroundings)

    def __repr__(self) -> str:
        first = self.layers.first_divergence if self.layers is not None else None
        parted = f", they part at {first.tensor!r} ({first.first.op})" if first is not None else ""
        return f"<Comparison{_named(self.names)}: {_counted(self.verification)}{parted}>"

    @property
    def _outcome(self) -> Outcome:
        return outcome_of(self, *self.names)


def outcome_of(found: comparison.Comparison, first: str, second: str) -> Outcome:
    """What the reports of a comparison are made from: 3 is the exit code unless all passed."""
    verification = found.verification
    error = "" if verification.unchanged else _DIFFERENCES.get(verification.status, "")
    if error and not all(verification.runs):  # one was never run: nothing is known of a difference
        error = f"the two models cannot be compared: {'; '.join(verification.notes)}"
    return Outcome("compare", first, second, 3 if error else 0, error, comparison=found)


def _named(names: tuple[str, str]) -> str:
    first, second = (repr(name) if name else "a model in memory" for name in names)
    return f" {first} and {second}" if any(names) else ""


def _counted(verification: verdict.Verification) -> str:
    """The verdict, and on how many outputs and folds it is."""
    if verification.unchanged:
        return "identical"
    parts = [str(verification.status)]
    for noun, verdicts in (("output", verification.outputs), ("fold", verification.folds)):
        bad = sum(each.status in (Status.FAILED, Status.NOT_OBSERVED) for each in verdicts)
        if verdicts:
            counted = f"{len(verdicts)} {noun}{'' if len(verdicts) == 1 else 's'}"
            parts.append(f"{counted}, {bad} of them not passed" if bad else counted)
    return ", ".join(parts)
