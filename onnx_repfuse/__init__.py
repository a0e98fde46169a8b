"""Re-parameterize an exported ONNX network: fold its linear branches, prove it equal, write it.

>>> import onnx_repfuse
>>> onnx_repfuse.Options(check=False).check
False

Public are the names of `__all__` below, the modules of `onnx_repfuse.integrations`, and `onnx_repfuse.cli.main.main`.
Every other module is private: it may change in any release.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# Editors and type checkers read these imports. At run time `__getattr__` makes each on first use, since onnxruntime
# and onnx take a second to import and `--help` should not wait for them.
if TYPE_CHECKING:
    from onnx_repfuse.algebra.affine_conv import AffineConv
    from onnx_repfuse.algebra.geometry import Geometry
    from onnx_repfuse.api import (
        Comparison,
        Report,
        Result,
        Verification,
        VerificationError,
        benchmark,
        compare,
        fuse,
        plan,
        verify,
    )
    from onnx_repfuse.errors import (
        ConversionError,
        Inexact,
        InputError,
        OutputError,
        RepfuseError,
        UnsafePathError,
        UsageError,
    )
    from onnx_repfuse.options import Options
    from onnx_repfuse.records.outcome import Bench
    from onnx_repfuse.records.reasons import Reason
    from onnx_repfuse.records.report import Change, Fold, Kind, Refusal
    from onnx_repfuse.verifier.inputs import FeedSpec

__version__ = "0.2.0"
__all__ = [
    "AffineConv",
    "Bench",
    "Change",
    "Comparison",
    "ConversionError",
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
    "benchmark",
    "compare",
    "fuse",
    "plan",
    "verify",
]

_MODULES = {
    "algebra.affine_conv": ("AffineConv",),
    "algebra.geometry": ("Geometry",),
    "api": (
        "Comparison",
        "Report",
        "Result",
        "Verification",
        "VerificationError",
        "benchmark",
        "compare",
        "fuse",
        "plan",
        "verify",
    ),
    "errors": (
        "ConversionError",
        "Inexact",
        "InputError",
        "OutputError",
        "RepfuseError",
        "UnsafePathError",
        "UsageError",
    ),
    "options": ("Options",),
    "records.outcome": ("Bench",),
    "records.reasons": ("Reason",),
    "records.report": ("Change", "Fold", "Kind", "Refusal"),
    "verifier.inputs": ("FeedSpec",),
}


# Hidden from type checkers: to them a module with `__getattr__` has every name, and a misspelled one would pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
