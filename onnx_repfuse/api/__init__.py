"""The library: `fuse`, `plan`, `verify`, `compare`, `benchmark`.

Each takes a file or a model in memory, in any of the forms of `given_models`, and never changes it.
"""

from onnx_repfuse.api.functions import Result, benchmark, compare, document_of, fuse, plan, verify

__all__ = ["Result", "benchmark", "compare", "document_of", "fuse", "plan", "verify"]
