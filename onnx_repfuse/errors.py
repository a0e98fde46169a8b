"""The exception tree.

RepfuseError
├── InputError            the model cannot be read or handled               exit 1
│   ├── UnsafePathError   external data that leaves the model's folder      exit 1
│   └── ConversionError   it cannot be converted to another opset          exit 1
├── UsageError            options that contradict each other                exit 2
├── VerificationError     the result was not proved equal; nothing written  exit 3
└── OutputError           the result cannot be written                      exit 1

`Inexact` is not one of them: the algebra raises it when a law does not hold, and the planner turns it into a
`Refusal` for the report. Only users of `AffineConv` see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_repfuse.records.reasons import Reason

if TYPE_CHECKING:
    from onnx_repfuse.records.report import Report

__all__ = [
    "ConversionError",
    "Inexact",
    "InputError",
    "OutputError",
    "RepfuseError",
    "UnsafePathError",
    "UsageError",
    "VerificationError",
    "quoted",
]


class RepfuseError(Exception):
    """Base of every error a caller may want to catch; `str()` is one line that says what is wrong.

    >>> UsageError.exit_code, VerificationError.exit_code
    (2, 3)
    """

    exit_code = 1


class InputError(RepfuseError):
    """The model cannot be read or handled."""


class UnsafePathError(InputError):
    """External data is stored outside the model's folder."""


class ConversionError(InputError):
    """The model cannot be converted to another opset."""


class UsageError(RepfuseError):
    """Options that contradict each other."""

    exit_code = 2


class VerificationError(RepfuseError):
    """The result was not proved equal to the original (or not observed, under `strict`); nothing was written.

    Attributes:
        report: the figures that did not pass; None if the run did not get that far.
    """

    exit_code = 3
    report: Report | None = None


class OutputError(RepfuseError):
    """The result cannot be written."""


class Inexact(Exception):  # noqa: N818 - an outcome of the algebra, not a fault
    """A law of the algebra does not hold here.

    Attributes:
        reason: which law, as a `Reason`.
        detail: one clause that says why, in words.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.prose)
        self.reason = reason
        self.detail = detail or reason.prose


def quoted(text: object) -> str:
    """A name or a path in quotes, shortened for a message of one line."""
    words = str(text)
    return repr(words if len(words) <= 160 else f"{words[:80]}...{words[-60:]}")
