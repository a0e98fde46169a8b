"""`--compare`: any two files with one interface, the first being the measure of the second."""

from __future__ import annotations

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Verification
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.outputs.verify import verify_outputs
from onnx_repfuse.verifier.session import Model

__all__ = ["compare", "describe"]


def compare(
    first: Model,
    second: Model,
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> Verification:
    """Compare two models; `describe` renders the figures.

    Args:
        first: the reference, whose own noise sets the tolerance.
        second: the other model; it may use names of its own for inputs and outputs if their number agrees.
        feeds, rtol, atol, runtime: as in `verify_outputs`.

    Raises:
        InputError: the first does not run.
    """
    return verify_outputs(
        first, second, feeds=feeds, rtol=rtol, atol=atol, runtime=runtime, optimized=True, by_position=True
    )


def describe(result: Verification) -> list[str]:
    """Lines of text: one block per output, then the notes."""
    lines: list[str] = []
    for verdict in result.outputs:
        lines.extend(_output(verdict))
    shapes = "; ".join(
        ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sorted(given.items()))
        for given in result.shapes
    )
    lines.append(f"judge: {result.judge}; inputs: {shapes or 'none'}")
    lines.extend(f"note: {note}" for note in result.notes)
    return lines


def _output(verdict: OutputVerdict) -> list[str]:
    figures = [
        f"max abs {verdict.max_abs:.3g}",
        f"max rel {verdict.max_rel:.3g}",
        f"cosine {verdict.cosine:.9f}" if verdict.cosine is not None else "",
        f"top-1 {100 * verdict.top1:.1f}%" if verdict.top1 is not None else "",
    ]
    b, c = verdict.noise
    noise = f"noise floor {max(b, c):.3g} (inputs {b:.3g}, weights {c:.3g})"
    if verdict.optimized is not None:
        noise += f", ORT_ENABLE_ALL changes {verdict.optimized:.3g}"
    return [
        f"{verdict.name} ({verdict.dtype or '?'}): {verdict.status}",
        "  " + ", ".join(part for part in figures if part),
        f"  {noise}; allowed {verdict.tolerance:.3g}, minimum tolerance that would pass "
        f"{verdict.minimum_tolerance:.3g}",
    ]
