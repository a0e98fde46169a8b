"""The library: `fuse`, `plan`, `verify`, `compare`, `benchmark`.

Each takes a file or a model in memory, in any of the forms of `given_models`, and never changes it.
"""

from onnx_repfuse.api.comparisons import Comparison, Verification
from onnx_repfuse.api.functions import benchmark, compare, document_of, fuse, plan, verify
from onnx_repfuse.api.reports import Report, Result, VerificationError

__all__ = [
    "Comparison",
    "Report",
    "Result",
    "Verification",
    "VerificationError",
    "benchmark",
    "compare",
    "document_of",
    "fuse",
    "plan",
    "verify",
]
