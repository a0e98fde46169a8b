"""The runtime that the caller's options ask for."""

from __future__ import annotations

from dataclasses import replace

from onnx_repfuse.options import Options
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime

__all__ = ["runtime_of"]


def runtime_of(options: Options) -> Runtime:
    """How whole models are run: on the provider, with the threads and the custom operators of the options.

    What the provider does not take, ONNX Runtime runs on its own CPU provider.

    Raises:
        UsageError: the installed ONNX Runtime has no such provider.
    """
    runtime = replace(DEFAULT_RUNTIME, threads=options.threads, custom_ops=tuple(options.custom_ops))
    if options.provider is None:
        return runtime
    from onnx_repfuse.verifier.providers import provider_named  # onnxruntime takes its time

    return replace(runtime, providers=(provider_named(options.provider),))
