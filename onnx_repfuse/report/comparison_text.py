"""What only a comparison of two models has to say: interfaces, error statistics, and the tensors inside, as lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import at_least, clean, figure, interface_sentence, noise_sentence

if TYPE_CHECKING:
    from onnx_repfuse.records.comparison import (
        Bin,
        Comparison,
        ErrorSpread,
        Layer,
        Layers,
        LayerStatus,
        OutputStatistics,
    )

__all__ = ["head_lines", "layer_lines", "statistics_lines"]

_COUNTED: dict[LayerStatus, str] = {
    "agrees": "agree",
    "agrees again": "differ, but what follows agrees again",
    "diverges": "diverge",
    "not comparable": "not comparable",
}
_MAX_ORIGINS = 3  # shown without -v
_BAR = 40  # characters of the longest bar of a histogram


def head_lines(comparison: Comparison) -> Iterator[str]:
    """Where the interfaces differ, and whose noise is the measure; nothing for two models that are alike."""
    if comparison.interface:
        yield "\nInterfaces differ:"
        yield from (f"  {clean(interface_sentence(difference))}" for difference in comparison.interface)
    sentence = noise_sentence(comparison)
    if sentence:
        yield f"\n{sentence}"


def layer_lines(layers: Layers, passed: bool, verbose: int) -> Iterator[str]:
    """Where the two begin to differ; with `verbose`, every tensor.

    Args:
        layers: the tensors inside.
        passed: whether the outputs agree.
        verbose: list all.
    """
    tensors = layers.tensors
    statuses = Counter(layer.status for layer in tensors)
    counts = ", ".join(
        f"{statuses[status]} {words}" for status, words in _COUNTED.items() if statuses[status]
    )
    yield f"\nTensors that both have: {len(tensors)}" + (f" ({counts})" if tensors else "")
    if layers.first_divergence is not None:
        yield from _divergences(layers, layers.first_divergence, verbose)
    elif tensors and not passed:
        yield "  None of them diverges on the first input."
    yield from (f"  note: {clean(note)}" for note in layers.notes)
    if verbose:
        yield from (f"  {layer.status:<14} {_layer(layer)} [{clean(layer.first.op)}]" for layer in tensors)


def _divergences(layers: Layers, first: Layer, verbose: int) -> Iterator[str]:
    """The first tensor that diverges, and those that diverge without it."""
    tensors = layers.tensors
    yield f"  The first that diverges: {_layer(first)}"
    yield f"    computed by {_producers(first)}"
    before = [layer for layer in tensors[: tensors.index(first)] if layer.status == "agrees"]
    if before:
        yield f"    the last before it that agrees: {_layer(before[-1])}"
    others = [layer for layer in tensors if layer.is_origin and layer is not first]
    for other in others if verbose else others[:_MAX_ORIGINS]:
        yield f"  Diverges, too, and nothing before it: {_layer(other)}, computed by {_producers(other)}"
    if len(others) > _MAX_ORIGINS and not verbose:
        yield f"  and {len(others) - _MAX_ORIGINS} more of these (-v shows all)"


def _layer(layer: Layer) -> str:
    if layer.status == "not comparable":
        return f"'{clean(layer.tensor)}': {clean(layer.message)}"
    return f"'{clean(layer.tensor)}': relative error {figure(layer.max_rel)}, allowed {figure(layer.allowed_rel)}"


def _producers(layer: Layer) -> str:
    first, second = (f"{clean(node.op)} '{clean(node.name)}'" for node in (layer.first, layer.second))
    return first if first == second else f"{first} in the first model, {second} in the second"


def statistics_lines(statistics: OutputStatistics, verbose: int) -> Iterator[str]:
    """The statistics of one output; with `verbose`, the histogram, too."""
    if statistics.other != statistics.name:
        yield f"in the second model: {clean(statistics.other)}"
    at = ""
    if statistics.at is not None and statistics.values is not None:
        first, second = statistics.values
        at = f" at {list(statistics.at)} ({first:.6g} and {second:.6g})"
    if statistics.absolute is not None:
        yield f"absolute error: {_spread(statistics.absolute, at)}"
    if statistics.relative is not None:
        yield f"relative error: {_spread(statistics.relative)}"
    if statistics.elements:
        yield ", ".join(_facts(statistics))
    if verbose and statistics.different:
        yield from _histogram(statistics.histogram)


def _spread(spread: ErrorSpread, at: str = "") -> str:
    values = {"median": spread.p50, "p90": spread.p90, "p95": spread.p95, "p99": spread.p99}
    percentiles = ", ".join(f"{name} {figure(value)}" for name, value in values.items())
    return f"max {figure(spread.max)}{at}, mean {figure(spread.mean)}, {percentiles}"


def _facts(statistics: OutputStatistics) -> Iterator[str]:
    yield f"{statistics.different} of {statistics.elements} elements differ"
    if statistics.only_one_finite:
        yield f"{statistics.only_one_finite} of them NaN or infinite in one model only"
    if statistics.psnr is not None:
        yield f"PSNR {statistics.psnr:.1f} dB"
    yield from (f"top-{k} agrees {100 * share:.1f}%" for k, share in statistics.top_k.items() if k != "1")
    if statistics.different:
        limits = (("--atol", statistics.minimum_atol), ("--rtol", statistics.minimum_rtol))
        enough = [f"{flag} {at_least(value)}" for flag, value in limits if value < float("inf")]
        yield f"minimum tolerance that would pass: {' or '.join(enough) or 'none'}"


def _histogram(bins: tuple[Bin, ...]) -> Iterator[str]:
    most = max((entry.count for entry in bins), default=0)
    if not most:
        return
    yield "absolute error       elements"
    for entry in bins:
        label = f"{entry.low:.0e} .. {entry.high:.0e}" if entry.high else "0"
        # a bar for each count but zero, however small
        length = -(-_BAR * entry.count // most)
        yield f"  {label:<18} {entry.count:>8} {'#' * length}".rstrip()
