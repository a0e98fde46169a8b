"""What only a comparison of two models shows on the HTML page: interfaces, statistics, the error along the depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import at_least, figure, interface_sentence, noise_sentence, plural
from onnx_repfuse.report.html_parts import escape, table

if TYPE_CHECKING:
    from onnx_repfuse.records.comparison import Comparison, ErrorSpread, Layer, Layers, OutputStatistics

__all__ = ["comparison_parts"]

_MOST_DECADES = 12  # of the chart; smaller errors are drawn at its lower edge
_MOST_HINTS = 600  # areas of the chart that tell a tensor's name; more would be narrower than a pixel
_COLORS = {"diverges": "bad", "agrees": "good"}


def comparison_parts(comparison: Comparison) -> list[str]:
    """The parts below the table of verdicts."""
    parts = []
    if comparison.interface:
        items = "".join(f"<li>{escape(interface_sentence(each))}</li>" for each in comparison.interface)
        parts += ["<h3>Interfaces differ</h3>", f'<ul class="list">{items}</ul>']
    sentence = noise_sentence(comparison)
    if sentence:
        parts.append(f"<p>{escape(sentence)}</p>")
    if comparison.outputs:
        parts += ["<h3>Statistics</h3>", _statistics(comparison.outputs)]
    if comparison.layers is not None:
        parts += ["<h3>Error along the depth</h3>", *_layers(comparison.layers)]
    return parts


def _statistics(outputs: Sequence[OutputStatistics]) -> str:
    names = ("output", "error", "max", "mean", "median", "p90", "p95", "p99", "enough to pass")
    heads = [f"<th{' class=left' if name == 'error' else ''}>{name}</th>" for name in names]
    rows = [row for output in outputs for row in _rows(output)]
    facts = "".join(f"<p><code>{escape(output.name)}</code>: {_facts(output)}</p>" for output in outputs)
    return table(heads, rows) + facts


def _rows(output: OutputStatistics) -> Iterable[str]:
    name = f"<code>{escape(output.name)}</code>"
    if output.other != output.name:
        name += f"<br><small>{escape(output.other)} in the second</small>"
    kinds = (
        ("absolute", output.absolute, "--atol", output.minimum_atol),
        ("relative", output.relative, "--rtol", output.minimum_rtol),
    )
    for word, spread, flag, enough in kinds:
        cells = "".join(f"<td>{cell}</td>" for cell in _cells(spread))
        limit = f"{flag} {at_least(enough)}" if math.isfinite(enough) else "none"
        head = f'<th scope="row">{name if word == "absolute" else ""}</th>'
        yield f'<tr>{head}<td class="left">{word}</td>{cells}<td>{limit}</td></tr>'


def _cells(spread: ErrorSpread | None) -> list[str]:
    if spread is None:
        return [""] * 6
    return [
        figure(value) for value in (spread.max, spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)
    ]


def _facts(output: OutputStatistics) -> str:
    facts = [f"{output.different} of {output.elements} elements differ"]
    if output.only_one_finite:
        facts.append(f"{output.only_one_finite} of them NaN or infinite in one model only")
    if output.cosine is not None:
        facts.append(f"cosine {output.cosine:.9f}")
    if output.psnr is not None:
        facts.append(f"PSNR {output.psnr:.1f} dB")
    facts += [f"top-{escape(k)} agrees {100 * share:.1f}%" for k, share in output.top_k.items()]
    return ", ".join(facts)


def _layers(layers: Layers) -> list[str]:
    notes = [f"<p>{escape(note)}</p>" for note in layers.notes]
    # Sizes and the like are compared exactly: where they agree, there is no error to draw.
    shown = [layer for layer in layers.tensors if layer.max_rel or layer.allowed_rel]
    if not shown:
        return ["<p>The two models have no tensor in common that can be compared.</p>", *notes]
    first = layers.first_divergence
    words = "No tensor diverges."
    if first is not None:
        nodes = " and ".join(
            dict.fromkeys(
                f"{escape(node.op)} <code>{escape(node.name)}</code>" for node in (first.first, first.second)
            )
        )
        words = (
            f'<strong class="bad">The first that diverges</strong> is <code>{escape(first.tensor)}</code>, computed '
            f"by {nodes}: relative error {figure(first.max_rel)}, allowed {figure(first.allowed_rel)}."
        )
    again = sum(layer.status == "agrees again" for layer in layers.tensors)
    if again:
        verb = "differs" if again == 1 else "differ"
        words += f" {plural(again, 'tensor')} {verb}, but what follows agrees again."
    return [f"<p>{words}</p>", _chart(shown, first), _all_tensors(layers.tensors), *notes]


def _chart(layers: Sequence[Layer], first: Layer | None) -> str:
    """Two lines over the tensors in topological order: the error, and what was allowed, relative to each tensor.

    The picture stretches with the page; its labels are HTML, so that they keep their size.
    """
    low, high = _decades(layers)
    error = _line([layer.max_rel for layer in layers], low, high)
    allowed = _line([layer.allowed_rel for layer in layers], low, high)
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{_y(10.0**decade, low, high):.1f}" y2="{_y(10.0**decade, low, high):.1f}"/>'
        for decade in range(low, high + 1)
    )
    step = -(-(high - low) // 6)
    labels = "".join(
        f'<span style="top:{_y(10.0**decade, low, high):.1f}%">1e{decade}</span>'
        for decade in range(low, high + 1, step)
    )
    mark = ""
    if first is not None:
        left = _x(layers.index(first), len(layers)) / 10
        top = _y(first.max_rel, low, high)
        mark = (
            f'<i class="fall" style="left:{left:.2f}%"></i>'
            f'<i class="dot" style="left:{left:.2f}%;top:{top:.1f}%"></i>'
        )
    label = f"relative error of {plural(len(layers), 'tensor')} in topological order"
    if first is not None:
        label += f"; the first that diverges is {first.tensor}"
    return (
        f'<figure class="depth" role="img" aria-label="{escape(label)}"><div class="axis">{labels}</div>'
        f'<div class="plot"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<g class="grid">{grid}</g><polyline class="allowed" points="{allowed}"/>'
        f'<polyline class="error" points="{error}"/>{_hints(layers)}</svg>{mark}</div>'
        f'<figcaption><span class="key error">error</span><span class="key allowed">allowed by noise</span>'
        f"<span>relative to each tensor, {plural(len(layers), 'tensor')} from input to output</span>"
        "</figcaption></figure>"
    )


def _decades(layers: Sequence[Layer]) -> tuple[int, int]:
    """The range of the chart in powers of ten."""
    values = [value for layer in layers for value in (layer.max_rel, layer.allowed_rel)]
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
    if not logs:
        return -8, 0
    high = math.ceil(max(logs))
    return max(min(math.floor(min(logs)), high - 1), high - _MOST_DECADES), high


def _line(values: Sequence[float], low: int, high: int) -> str:
    """The points of a polyline; of a single value a short line."""
    if len(values) == 1:
        values = [*values, *values]
    return " ".join(
        f"{_x(index, len(values)):.1f},{_y(value, low, high):.1f}" for index, value in enumerate(values)
    )


def _x(index: int, count: int) -> float:
    """From 0 to 1000.

    >>> _x(0, 3), _x(1, 3), _x(0, 1)
    (0.0, 500.0, 0.0)
    """
    return 1000 * index / max(1, count - 1)


def _y(value: float, low: int, high: int) -> float:
    """From 0 at the top, 10**high, to 100 at the bottom, 10**low; 0 is drawn there, and NaN at the top.

    >>> _y(1.0, -4, 0), _y(0.01, -4, 0), _y(0.0, -4, 0), _y(math.inf, -4, 0), _y(math.nan, -4, 0)
    (0.0, 50.0, 100.0, 0.0, 0.0)
    """
    if value == 0:
        return 100.0
    decade = math.log10(value) if math.isfinite(value) else float(high)
    return 100 * (high - min(max(decade, low), high)) / (high - low)


def _hints(layers: Sequence[Layer]) -> str:
    """Invisible areas that tell the tensor below the pointer."""
    step = -(-len(layers) // _MOST_HINTS)
    width = 1000 * step / max(1, len(layers) - 1)
    return "".join(
        f'<rect x="{_x(index, len(layers)) - width / 2:.1f}" y="0" width="{width:.1f}" height="100"><title>'
        f"{escape(layers[index].tensor)} ({escape(layers[index].first.op)}): error {figure(layers[index].max_rel)}, "
        f"allowed {figure(layers[index].allowed_rel)}</title></rect>"
        for index in range(0, len(layers), step)
    )


def _all_tensors(layers: Sequence[Layer]) -> str:
    heads = [
        f"<th{' class=left' if left else ''}>{name}</th>"
        for name, left in (
            ("tensor", 1),
            ("node", 1),
            ("", 1),
            ("error", 0),
            ("allowed", 0),
            ("max |diff|", 0),
            ("cosine", 0),
        )
    ]
    rows = (
        f'<tr><th scope="row"><code>{escape(layer.tensor)}</code></th><td class="left">{escape(layer.first.op)}</td>'
        f'<td class="left"><span class="{_COLORS.get(layer.status, "warn")}">{escape(layer.status)}</span></td>'
        f"<td>{figure(layer.max_rel)}</td><td>{figure(layer.allowed_rel)}</td><td>{figure(layer.max_abs)}</td>"
        f"<td>{'' if layer.cosine is None else f'{layer.cosine:.9f}'}</td></tr>"
        for layer in layers
    )
    title = f"All {plural(len(layers), 'tensor')} that both have"
    return f"<details><summary>{title}</summary>{table(heads, rows)}</details>"
