"""The report as text for a terminal or a pipe. It is ASCII except for names, which are printed as they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from onnx_repfuse.report.advice import advice, brief, by_reason, why_nothing
from onnx_repfuse.report.channel_ranges import ranges_of_fold, ranges_sentence
from onnx_repfuse.report.comparison_text import head_lines, layer_lines, statistics_lines
from onnx_repfuse.report.formatting import (
    CPU,
    as_zero_sentence,
    clean,
    compared_alone,
    duration,
    figure,
    model_title,
    plural,
    ran_on,
    simplifier_sentences,
    size,
)
from onnx_repfuse.report.lines import print_line
from onnx_repfuse.report.text_sizes import sizes_table

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_repfuse.records.comparison import OutputStatistics
    from onnx_repfuse.records.outcome import Bench, Gate, Outcome
    from onnx_repfuse.records.report import Change, Fold, Refusal, Report, Vanished
    from onnx_repfuse.records.verdict import FoldVerdict, OutputVerdict, Precision, Verification

__all__ = ["show"]

# How much is shown without -v.
_MAX_REFUSALS, _MAX_OUTPUTS = 3, 8
_STAGES = {"isolated": "on synthetic inputs", "in-place": "on the original model's intermediates"}
# Of folds, to say more than "passed": each is compared by itself.
_PROVED = {"passed": "proved", "trivial": "trivial (nothing of them is left to compare)"}
_COLOR = {"passed": "green", "failed": "bold red", "not observed": "yellow"}


def show(console: Console, outcome: Outcome, verbose: int = 0) -> None:
    """Print one model's report; `verbose` lifts the limits and names every node."""
    report = outcome.report
    lines: list[str | Text] = []
    print_line(console, _headline(outcome))
    if report is not None:
        console.print(sizes_table(report.before, report.after, bool(verbose), outcome.command != "plan"))
        lines += map(clean, simplifier_sentences(report, written=outcome.command != "plan"))
        lines += _folds(report, verbose, outcome.command == "plan")
        lines += _changes(report.changes, verbose)
        lines += _vanished(report.vanished) if verbose else ()
        lines += _refusals(report.refusals, verbose)
        lines += [Text(f"Advice: {sentence}", style="yellow") for sentence in advice(report)]
    lines += _verdict(outcome, verbose)
    lines += [_latency(outcome.bench)] if outcome.bench is not None else []
    lines += map(_precision, outcome.precision)
    lines += map(_gate, filter(lambda gate: gate.remaining, outcome.gates))
    lines += _notes(report, verbose) if report is not None else ()
    lines.append(_closing(outcome))
    for line in lines:
        print_line(console, line)


def _headline(outcome: Outcome) -> Text:
    """The model, or both models that were compared, and the verdict if there is one."""
    names = [outcome.model or (outcome.report.model if outcome.report is not None else "")]
    if outcome.comparison is not None:
        names.append(outcome.output or "")
    text = Text(" and ".join(model_title(name or "model in memory") for name in names), style="bold")
    verification = outcome.verification
    if verification is None or verification.unchanged:
        return text
    return text.append(f": {outcome.status.upper()}", style=_COLOR[outcome.status]).append(
        _unobserved(verification)
    )


def _unobserved(verification: Verification) -> str:
    """How much of a verification was not observed, in parentheses; '' if all was."""
    parts = []
    for noun, verdicts in (("output", verification.outputs), ("fold", verification.folds)):
        missed = sum(str(verdict.status) == "not observed" for verdict in verdicts)
        parts += [f"{missed} of {plural(len(verdicts), noun)}"] if missed else []
    return f" ({' and '.join(parts)} could not have shown a fault)" if parts else ""


def _folds(report: Report, verbose: int, planned: bool) -> Iterator[str]:
    folds = report.folds
    yield ""
    if not folds:
        yield "Folds: none"
        yield f"Why: {why_nothing(report)}."
        return
    kinds = Counter(str(fold.kind) for fold in folds)
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    yield f"Folds{' planned' if planned else ''}: {len(folds)} ({listed})"
    if verbose:
        yield from map(_fold, folds)
        yield from filter(None, [ranges_sentence(folds)])


def _fold(fold: Fold) -> str:
    absorbed = " + ".join(f"{node.op} '{clean(node.name)}'" for node in fold.absorbed)
    created = " + ".join(f"{node.op} {clean(node.label)}".strip() for node in fold.created) or "nothing"
    where = f", in {clean(fold.scope)}" if fold.scope else ""
    ranges = ranges_of_fold(fold)
    return f"  [{fold.kind}] '{clean(fold.output)}'{where}: {absorbed} -> {created}{ranges and f'; {ranges}'}"


def _changes(changes: tuple[Change, ...], verbose: int) -> Iterator[str]:
    if not changes:
        return
    kinds = Counter(str(change.kind) for change in changes)
    yield f"Other changes: {', '.join(f'{kind} {count}' for kind, count in kinds.most_common())}"
    for change in changes if verbose else ():
        where = f", in {clean(change.scope)}" if change.scope else ""
        yield f"  [{change.kind}]{where} {clean(change.claim)}"


def _vanished(vanished: tuple[Vanished, ...]) -> Iterator[str]:
    for gone in vanished:
        where = f" of {clean(gone.scope)}" if gone.scope else ""
        yield f"Tensors{where} that the result no longer has: {', '.join(map(clean, gone.tensors))}"


def _refusals(refusals: tuple[Refusal, ...], verbose: int) -> Iterator[str]:
    if not refusals:
        return
    yield ""
    yield "Not fused, and why:"
    limit = len(refusals) if verbose else _MAX_REFUSALS
    groups = by_reason(refusals)
    for reason, members in groups:
        yield f"  {reason} ({len(members)}): {reason.prose}"
        for refusal in members[:limit]:
            where = f" (in {clean(refusal.scope)})" if refusal.scope else ""
            yield f"    - {clean(brief(refusal))}{where}"
        if len(members) > limit:
            yield f"    - and {len(members) - limit} more"
    if any(len(members) > limit for _, members in groups):
        yield "  (-v shows all; --explain NODE shows what was weighed)"


def _verdict(outcome: Outcome, verbose: int) -> list[Text]:
    """What was proved, or why nothing was."""
    if outcome.status == "identical":
        return [Text("The output is the input, byte for byte.")] if outcome.output else []
    if outcome.comparison is not None:
        comparison = outcome.comparison
        lines = [Text(line) for line in head_lines(comparison)]
        lines += _verification(comparison.verification, verbose, comparison.outputs)
        if comparison.layers is not None:
            lines += map(Text, layer_lines(comparison.layers, bool(comparison), verbose))
        return lines
    if outcome.verification is not None:
        return _verification(outcome.verification, verbose)
    if outcome.command == "fuse" and outcome.report is not None and outcome.exit_code != 3:
        return [Text("Not verified (--no-check).", style="yellow")]
    return []


def _verification(
    verification: Verification, verbose: int, statistics: Sequence[OutputStatistics] = ()
) -> list[Text]:
    lines = [Text(f"\n{_how_compared(verification)}")]
    shown = _shown(verification.outputs, verbose)
    for verdict in shown:
        of_output = [entry for entry in statistics if entry.name == verdict.name]
        lines.append(_output(verdict, verbose, tells_tolerance=not of_output))
        lines += [Text(f"    {line}") for entry in of_output for line in statistics_lines(entry, verbose)]
    if len(verification.outputs) > len(shown):
        lines.append(Text(f"  and {len(verification.outputs) - len(shown)} more outputs (-v shows all)"))
    lines += _fold_verdicts("fold", verification.folds, verbose)
    lines += _fold_verdicts("other change", verification.changes, verbose)
    for shape in verification.shapes if verbose else ():
        dims = ", ".join(f"{clean(name)}:{','.join(map(str, dims))}" for name, dims in shape.items())
        lines.append(Text(f"  shape {dims}"))
    # Where nothing could be compared, the reason is a note and the message of every output.
    printed = {verdict.message for verdict in shown}
    lines += [Text(f"  note: {clean(note)}") for note in verification.notes if note not in printed]
    return lines


def _how_compared(verification: Verification) -> str:
    """Where, and on what inputs, the whole models ran."""
    if (
        not verification.shapes
    ):  # an operator of another domain is unknown to the runtime, or no feed was taken
        return "No whole model was run:"
    judge = "onnx's reference evaluator"
    if verification.judge == "onnxruntime":
        judge = "ONNX Runtime"
        if (verification.provider, verification.threads) != (CPU, 1):
            judge += f" ({ran_on(verification.provider, verification.threads)})"
    inputs = plural(len(verification.seeds), "seed") if verification.seeds else "the data given"
    return f"Compared in {judge} on {inputs}, {plural(len(verification.shapes), 'shape')}:"


def _shown(outputs: tuple[OutputVerdict, ...], verbose: int) -> list[OutputVerdict]:
    """The worst first, so that a failure is never among those left out."""
    worst_first = {"failed": 0, "not observed": 1, "passed": 2}
    ordered = sorted(outputs, key=lambda verdict: worst_first[str(verdict.status)])
    return ordered if verbose else ordered[:_MAX_OUTPUTS]


def _fold_verdicts(noun: str, verdicts: tuple[FoldVerdict, ...], verbose: int) -> Iterator[Text]:
    """How many were proved, each by itself; with `verbose` also at which stage."""
    if not verdicts:
        return
    statuses = Counter(str(verdict.status) for verdict in verdicts)
    counted = ", ".join(f"{count} {_PROVED.get(status, status)}" for status, count in statuses.most_common())
    yield Text(f"  {compared_alone(len(verdicts), noun)}: {counted}")
    stages = [stage for verdict in verdicts for stage in verdict.stages] if verbose else []
    for name, words in _STAGES.items():
        at_stage = Counter(str(stage.status) for stage in stages if stage.stage == name)
        if at_stage:
            yield Text(
                f"    {words}: {', '.join(f'{count} {status}' for status, count in at_stage.most_common())}"
            )
    for stage in stages:
        if str(stage.status) != "passed":
            yield Text(f"    {stage.status}, {_STAGES[stage.stage]}: {clean(stage.message)}", style="yellow")


def _output(verdict: OutputVerdict, verbose: int, tells_tolerance: bool = True) -> Text:
    status = str(verdict.status)
    noise = max(verdict.noise)
    text = Text("  ").append(status.upper(), style=_COLOR[status])
    # Nothing was compared: zeros would look like figures, and so would infinity where shapes or names differ.
    if not verdict.tolerance and verdict.max_abs == {"not observed": 0, "failed": math.inf}.get(status):
        return text.append(f" {clean(verdict.name)}\n    {clean(verdict.message)}")
    figures = (
        f" {clean(verdict.name)}: max |diff| {figure(verdict.max_abs)}, allowed {figure(verdict.tolerance)}"
    )
    if verdict.against:
        figures += f", {clean(verdict.against)}"
    figures += f"\n    relative {figure(verdict.max_rel)}"
    if noise > 0:
        figures += f", noise {figure(noise)}, at worst {figure(verdict.over_noise)}x its noise"
    if verdict.cosine is not None:
        figures += f", cosine {verdict.cosine:.9f}"
    if verdict.top1 is not None:
        figures += f", top-1 agrees {100 * verdict.top1:.1f}%"
    if tells_tolerance and (verbose or status == "failed"):
        figures += f", minimum tolerance that would pass {figure(verdict.minimum_tolerance)}"
    if verbose and verdict.optimized is not None:
        figures += f", ORT_ENABLE_ALL alone changes {figure(verdict.optimized)}"
    if verdict.message and status != "passed":
        figures += f"\n    {clean(verdict.message)}"
    return text.append(figures)


def _latency(bench: Bench) -> str:
    original, fused = (_latencies(ms) for ms in (bench.original, bench.fused))
    median, low, high = bench.ratio
    how = (
        f"{plural(bench.warm_up, 'run')} to warm up, {bench.rounds} interleaved rounds, "
        f"{ran_on(bench.provider, bench.threads)}"
    )
    return (
        f"\nLatency: {bench.word.upper()}. {original} -> {fused}, {median:.2f}x as fast ({low:.2f}..{high:.2f}; {how})"
    ) + (f"\n{as_zero}" if (as_zero := as_zero_sentence(bench)) else "")


def _latencies(milliseconds: tuple[float, float, float]) -> str:
    median, low, high = (duration(value / 1000) for value in milliseconds)
    return f"{median} ({low}..{high})"


def _precision(study: Precision) -> str:
    words = "closer to" if study.factor < 1 else "as far from" if study.factor == 1 else "farther from"
    return (
        f"Precision of {clean(study.output)}: {words} float64, {study.factor:.3g} of the original's distance "
        f"(rms {figure(study.original)} -> {figure(study.fused)}, "
        f"worst {figure(study.worst_original)} -> {figure(study.worst_fused)})"
    )


def _gate(gate: Gate) -> Text:
    return Text(f"--fail-on-remaining: {gate.remaining} {clean(gate.op)} remain", style="bold red")


def _notes(report: Report, verbose: int) -> Iterator[str]:
    for note in report.notes:
        yield f"Note: {clean(note)}"
    if verbose and report.seconds:
        spent = [f"{clean(stage)} {duration(seconds)}" for stage, seconds in report.seconds.items()]
        yield f"Time: {', '.join(spent)}"


def _closing(outcome: Outcome) -> Text:
    """The last line: what there is now."""
    return Text(_closing_words(outcome), style="bold" if outcome.exit_code in (0, 4) else "bold red")


def _closing_words(outcome: Outcome) -> str:
    if outcome.command == "compare":
        return f"{outcome.status.upper()}{': ' if outcome.error else ''}{clean(outcome.error)}"
    if outcome.left is not None:
        return "Proved: nothing is left to fold." if not outcome.left else "Proved, and not written."
    if outcome.command == "plan":
        return "Planned only: nothing was written."
    if outcome.output and outcome.report is not None:
        total = sum(outcome.report.seconds.values())
        took = f" in {duration(total)}" if total else ""
        verdict = ", NOT OBSERVED" if outcome.status == "not observed" else ""
        where = "to standard output" if outcome.output == "-" else clean(outcome.output)
        return f"Wrote {where} ({size(outcome.report.after.bytes)}){took}{verdict}"
    if outcome.in_memory and outcome.report is not None:
        return f"In memory ({size(outcome.report.after.bytes)}): {outcome.status.upper()}"
    if outcome.status == "not observed":
        return (
            "NOT OBSERVED: nothing was written, because of --strict. --input-data verifies with real inputs."
        )
    if outcome.exit_code == 3:
        return (
            "FAILED: nothing was written. This should not happen: please report it. --input-data verifies with real "
            "inputs; --skip and --keep leave folds out."
        )
    return "Nothing was written."
