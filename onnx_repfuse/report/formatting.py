"""Names and numbers as people read them, in every report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx_repfuse.records.units import duration, quantity, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx_repfuse.records.comparison import Comparison, InterfaceDifference, TensorInfo
    from onnx_repfuse.records.outcome import Bench
    from onnx_repfuse.records.report import Counts, Report

__all__ = [
    "CPU",
    "as_zero_sentence",
    "at_least",
    "clean",
    "compared_alone",
    "duration",
    "figure",
    "interface_sentence",
    "model_title",
    "noise_sentence",
    "percent",
    "plural",
    "quantity",
    "ran_on",
    "simplifier_sentences",
    "size",
    "totals",
]


CPU = "CPUExecutionProvider"
_CLEAR_GAIN = 1.05  # what a busy machine does not make by chance


def as_zero_sentence(bench: Bench) -> str:
    """What `session.set_denormal_as_zero` would gain; '' if it was not measured."""
    if bench.as_zero is None:
        return ""
    median, low, high = bench.as_zero
    why = ": it computes with subnormal numbers" if low > _CLEAR_GAIN else ""
    return (
        f"With the session's setting session.set_denormal_as_zero the result would be {median:.2f}x as fast "
        f"({low:.2f}..{high:.2f}){why}"
    )


def clean(text: str) -> str:
    r"""A name that is safe on a terminal: control characters, line ends and lone surrogates are spelled out.

    >>> clean("conv\x1b[31m\n")
    'conv\\x1b[31m\\n'
    """
    if text.isprintable():  # nearly every name
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def model_title(name: str) -> str:
    """A file's name as a heading.

    >>> model_title("net.onnx"), model_title("-")
    ('net.onnx', 'standard input')
    """
    return "standard input" if name == "-" else clean(name)


def figure(value: float | None) -> str:
    """A small error.

    >>> figure(3.14e-7), figure(0.0), figure(float("nan")), figure(None)
    ('3.14e-07', '0', 'nan', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:.2e}"


def at_least(value: float) -> str:
    """A tolerance that is enough: three digits, rounded up.

    >>> at_least(3.14159e-7), at_least(1.0), at_least(0.0)
    ('3.15e-07', '1.00e+00', '0')
    """
    if value == 0 or not math.isfinite(value):
        return figure(value)
    text = f"{value:.2e}"
    if float(text) < value:
        mantissa, exponent = text.split("e")
        text = f"{float(f'{float(mantissa) + 0.01:.2f}e{exponent}'):.2e}"
    return text


def interface_sentence(difference: InterfaceDifference) -> str:
    """How an input or output of the second model differs from that of the first."""
    first, second, side = difference.first, difference.second, difference.side
    if first is None or second is None:
        present = first or second
        where = "second" if first is None else "first"
        return f"{side} {_declared(present)} is in the {where} model only" if present else ""
    return f"{side} {_declared(first)} in the first model, {_declared(second)} in the second"


def _declared(info: TensorInfo) -> str:
    dims = ", ".join("?" if dim is None else str(dim) for dim in info.shape)
    return f"'{info.name}' {info.type} [{dims}]"


def noise_sentence(comparison: Comparison) -> str:
    """Whose noise the differences were judged by, where the two models have other float types; else ''."""
    first, second = comparison.precisions
    if first == second and comparison.judged_by == "first":
        return ""
    precision = first if comparison.judged_by == "first" else second
    return (
        f"The first model computes in {first}, the second in {second}: judged by the noise of the "
        f"{comparison.judged_by} ({precision})."
    )


def percent(before: int | None, after: int | None) -> str:
    """The relative change; empty if there is none or it is unknown.

    >>> percent(200, 150), percent(1000, 997), percent(0, 3), percent(None, 3)
    ('-25%', '-0.3%', '', '')
    >>> percent(100_000, 100_001)
    '+0.0%'
    """
    if before is None or after is None or before in (0, after):
        return ""
    change = 100 * (after - before) / before
    return f"{change:+.0f}%" if abs(change) >= 0.95 else f"{change:+.1f}%"


def totals(before: Counts, after: Counts, *, written: bool) -> list[tuple[str, str, str, str]]:
    """(name, before, after, change) of what is not counted in nodes; the size only if a file was `written`."""
    rows = [("Parameters", quantity(before.parameters), quantity(after.parameters),
             percent(before.parameters, after.parameters))]  # fmt: skip
    if written:
        rows.append(("Size", size(before.bytes), size(after.bytes), percent(before.bytes, after.bytes)))
    rows.append(("MACs", quantity(before.macs), quantity(after.macs), percent(before.macs, after.macs)))
    return rows


def simplifier_sentences(report: Report, *, written: bool) -> Iterator[str]:
    """What other simplifiers gained before planning, and what was gained after them; or why they were not used."""
    for other in report.simplified:
        if not other.used:
            yield f"Not used: {other.title}: {other.message}"
    before: Counts | None = None
    for other in report.simplified:
        if other.used and other.counts is not None:
            if before is None:
                yield f"{other.title} ran first: {_gain(report.before, other.counts, written=True)}"
            else:
                yield f"then onnx-repfuse, and {other.title}: {_gain(before, other.counts, written=True)}"
            before = other.counts
    if before is not None:
        yield f"then onnx-repfuse: {_gain(before, report.after, written=written)}"


def _gain(before: Counts, after: Counts, *, written: bool) -> str:
    """Nodes and, of what was `written`, bytes."""
    nodes = f"{before.nodes} -> {after.nodes} nodes"
    return f"{nodes}, {size(before.bytes)} -> {size(after.bytes)}" if written else nodes


def compared_alone(count: int, noun: str) -> str:
    """How many folds, or other changes, were compared by themselves.

    >>> compared_alone(2, "fold"), compared_alone(1, "fold")
    ('2 folds, each compared by itself', '1 fold, compared by itself')
    """
    return f"{plural(count, noun)}, {'compared' if count == 1 else 'each compared'} by itself"


def ran_on(provider: str, threads: int) -> str:
    """On what models ran; the CPU's provider goes without saying.

    >>> ran_on(CPU, 2), ran_on("XProvider", 0)
    ('2 threads', 'XProvider, a thread per core')
    """
    counted = plural(threads, "thread") if threads else "a thread per core"
    return counted if provider == CPU else f"{clean(provider)}, {counted}"


def plural(count: int, noun: str) -> str:
    """A counted noun.

    >>> plural(1, "fold"), plural(2, "fold")
    ('1 fold', '2 folds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
