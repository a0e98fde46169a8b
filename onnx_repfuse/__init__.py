"""Re-parameterize an exported ONNX network: fold its linear branches, prove it equal, write it.

>>> import onnx_repfuse
>>> onnx_repfuse.Options(check=False).check
False
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "AffineConv",
    "FeedSpec",
    "Fold",
    "Geometry",
    "Inexact",
    "InputError",
    "Kind",
    "Options",
    "OutputError",
    "Reason",
    "Refusal",
    "RepfuseError",
    "Report",
    "Result",
    "UnsafePathError",
    "UsageError",
    "Verification",
    "VerificationError",
    "fuse",
    "plan",
    "verify",
]

_HOMES = {
    "algebra.affine_conv": ("AffineConv",),
    "algebra.geometry": ("Geometry",),
    "api": ("Result", "fuse", "plan", "verify"),
    "errors": (
        "Inexact",
        "InputError",
        "OutputError",
        "RepfuseError",
        "UnsafePathError",
        "UsageError",
        "VerificationError",
    ),
    "options": ("Options",),
    "records.reasons": ("Reason",),
    "records.report": ("Fold", "Kind", "Refusal", "Report"),
    "verifier.inputs": ("FeedSpec",),
    "records.verdict": ("Verification",),
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that `--help` does not wait for onnxruntime."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
