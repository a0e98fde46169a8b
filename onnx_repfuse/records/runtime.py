"""How models are run: the one value for what ONNX Runtime can be told about providers, threads and optimization.

Everything that runs a model takes a `Runtime`, and `verifier.session.open_session` alone reads it. It is a plain
record so that options can be turned into one without importing a runtime: `pipeline.runtime.runtime_of` does that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = ["DEFAULT_RUNTIME", "Runtime"]


@dataclass(frozen=True)
class Runtime:
    """What a session is opened with.

    Attributes:
        providers: execution providers, in ONNX Runtime's order of preference; what they do not take runs on its own
            CPU provider.
        threads: threads within an operator (`intra_op_num_threads`), 0 for one per core. Operators run one after
            another.
        optimization: a level of `onnxruntime.GraphOptimizationLevel`. Models are compared unoptimized, where each
            node computes what it says; latency is measured with ORT_ENABLE_ALL.
        custom_ops: shared libraries with custom operators.
        denormal_as_zero: the session takes subnormal numbers for zeros. Only the first session of a process decides
            that for the thread that opens it.
        reuses_memory: what a tensor took is kept for others until the session is closed: fewer pages and less memory
            where a whole model is run. Not for sessions that stay open, or whose outputs are most of what there is.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    optimization: Literal["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"] = (
        "ORT_DISABLE_ALL"
    )
    custom_ops: tuple[Path, ...] = ()
    denormal_as_zero: bool = False
    reuses_memory: bool = False

    @property
    def is_optimized(self) -> bool:
        """Whether models run as they are deployed."""
        return self.optimization == "ORT_ENABLE_ALL"

    def optimized(self) -> Runtime:
        """The same with all graph optimizations, as models are deployed."""
        return replace(self, optimization="ORT_ENABLE_ALL")

    def reusing_memory(self) -> Runtime:
        """The same for a whole model, which is closed soon."""
        return replace(self, reuses_memory=True)


DEFAULT_RUNTIME = Runtime()
