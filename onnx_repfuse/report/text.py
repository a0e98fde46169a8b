"""The report as text for a terminal or a pipe: ASCII of our own, names as they are, no markup in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_repfuse.report.advice import advice, brief, by_reason
from onnx_repfuse.report.formatting import clean, duration, figure, percent, plural, quantity, size

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Bench, Outcome
    from onnx_repfuse.records.report import Counts, Fold, Refusal
    from onnx_repfuse.records.verdict import OutputVerdict, Verification

__all__ = ["show", "summarize"]

_FIRST = ("Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Sum")
_FEW = 3
_SOME = 8
_STAGES = {"probe": "on made-up inputs", "tap": "on the model's own activations"}
_COLOR = {"passed": "green", "failed": "bold red", "not observed": "yellow"}


def show(console: Console, outcome: Outcome, verbose: int = 0) -> None:
    """Print one model's report; `verbose` lifts the limits and names every node."""
    report = outcome.report
    if report is not None:
        _line(console, clean(outcome.model or report.model or "model"), style="bold")
        console.print(_counts(report.before, report.after, bool(verbose), outcome.command != "plan"))
        for line in _folds(report.folds, verbose, outcome.command == "plan"):
            _line(console, line)
        for line in _refusals(report.refusals, verbose):
            _line(console, line)
        for sentence in advice(report):
            _line(console, f"Advice: {sentence}", style="yellow")
    if outcome.verification is not None and outcome.status != "identical":
        for text in _verification(outcome.verification, verbose):
            _line(console, text)
    elif outcome.status == "identical" and outcome.output:
        _line(console, "The output is the input, byte for byte.")
    elif outcome.command == "fuse" and report is not None and outcome.exit_code != 3:
        _line(console, "Not verified (--no-check).", style="yellow")
    if outcome.bench is not None:
        for line in _bench(outcome.bench):
            _line(console, line)
    for one in outcome.precision:
        words = "closer to" if one.factor < 1 else "as far from" if one.factor == 1 else "farther from"
        _line(
            console,
            f"Precision of {clean(one.output)}: {words} float64, {one.factor:.2g} of the original's distance "
            f"(rms {figure(one.original)} -> {figure(one.fused)}, worst {figure(one.worst_original)} -> "
            f"{figure(one.worst_fused)})",
        )
    for gate in outcome.gates:
        if gate.remaining:
            _line(console, f"--fail-on-remaining: {gate.remaining} {clean(gate.op)} remain", style="bold red")
    for note in report.notes if report is not None else ():
        _line(console, f"Note: {clean(note)}")
    if report is not None and verbose and report.seconds:
        spent = ", ".join(f"{clean(stage)} {duration(value)}" for stage, value in report.seconds.items())
        _line(console, f"Time: {spent}")
    _line(console, _closing(outcome), style="bold" if outcome.exit_code in (0, 4) else "bold red")


def summarize(console: Console, outcomes: Iterable[Outcome]) -> None:
    """Print one line per model, and one for all."""
    outcomes = list(outcomes)
    timed = any(outcome.bench for outcome in outcomes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold", ratio=1)
    for heading in ("nodes", "MACs", "folds", *(["speed"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=console.width >= 60)
    table.add_column("result", overflow="fold", max_width=max(12, console.width // 2))
    for outcome in outcomes:
        cells = ["", "", ""]
        if outcome.counts is not None and outcome.report is not None:
            before, after = outcome.counts
            cells = [
                f"{before.nodes} -> {after.nodes}",
                _macs(before, after),
                str(len(outcome.report.folds)),
            ]
        if timed:
            cells.append(f"{outcome.bench.ratio[0]:.2f}x" if outcome.bench else "")
        color = {0: "green", 4: "yellow"}.get(outcome.exit_code, "bold red")
        table.add_row(Text(clean(outcome.model)), *cells, Text(_result(outcome), style=color))
    console.print(table)
    failed = sum(outcome.exit_code in (1, 3) for outcome in outcomes)
    written = sorted({clean(os.path.dirname(outcome.output)) for outcome in outcomes if outcome.output})
    where = f"; {plural(len(outcomes) - failed, 'file')} written to {', '.join(written)}" if written else ""
    _line(console, f"{plural(len(outcomes), 'model')}, {failed or 'none'} failed{where}")


def _line(console: Console, text: str | Text, style: str = "") -> None:
    # in a pipe, lines are left whole for grep
    console.print(text, style=style, soft_wrap=not console.is_terminal and "COLUMNS" not in console._environ)


def _counts(before: Counts, after: Counts, every: bool, written: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("before", "after", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    ops = sorted({*before.ops, *after.ops}, key=lambda op: (_rank(op), op))
    unchanged = [op for op in ops if before.ops.get(op, 0) == after.ops.get(op, 0)]
    hidden = [] if every or len(unchanged) <= _SOME else [op for op in unchanged if op not in _FIRST]
    for op in ops:
        if op not in hidden:
            _row(table, clean(op), before.ops.get(op, 0), after.ops.get(op, 0))
    if hidden:
        count = sum(before.ops[op] for op in hidden)
        _row(table, f"{len(hidden)} other kinds", count, count)
    _row(table, "All nodes", before.nodes, after.nodes)
    table.add_row("Parameters", quantity(before.parameters), quantity(after.parameters),
                  percent(before.parameters, after.parameters))  # fmt: skip
    if written:
        table.add_row("Size", size(before.bytes), size(after.bytes), percent(before.bytes, after.bytes))
    change = percent(before.macs, after.macs) if before.macs is not None and after.macs is not None else ""
    table.add_row("MACs", quantity(before.macs), quantity(after.macs), change)
    return table


def _row(table: Table, name: str, before: int, after: int) -> None:
    style = "green" if after < before else "yellow" if after > before else ""
    table.add_row(Text(name), str(before), Text(str(after), style=style), percent(before, after))


def _rank(op: str) -> int:
    return _FIRST.index(op) if op in _FIRST else len(_FIRST)


def _macs(before: Counts, after: Counts) -> str:
    if before.macs is None or after.macs is None:
        return "unknown"
    return percent(before.macs, after.macs) or "same"


def _folds(folds: tuple[Fold, ...], verbose: int, planned: bool) -> list[str]:
    if not folds:
        return ["", "Folds: none"]
    kinds = Counter(str(fold.kind) for fold in folds)
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    lines = ["", f"Folds{' planned' if planned else ''}: {len(folds)} ({listed})"]
    for fold in folds if verbose else ():
        went = " + ".join(f"{node.op} '{clean(node.name)}'" for node in fold.absorbed)
        came = " + ".join(f"{node.op} {clean(node.label)}".strip() for node in fold.created) or "nothing"
        where = f", in {clean(fold.scope)}" if fold.scope else ""
        lines.append(f"  [{fold.kind}] '{clean(fold.output)}'{where}: {went} -> {came}")
    return lines


def _refusals(refusals: tuple[Refusal, ...], verbose: int) -> list[str]:
    if not refusals:
        return []
    lines = ["", "Not fused, and why:"]
    hidden = False
    for reason, members in by_reason(refusals):
        lines.append(f"  {reason} ({len(members)}): {reason.prose}")
        shown = members if verbose else members[:_FEW]
        lines += [
            f"    - {clean(brief(one))}" + (f" (in {clean(one.scope)})" if one.scope else "") for one in shown
        ]
        if len(members) > len(shown):
            hidden = True
            lines.append(f"    - and {len(members) - len(shown)} more")
    return [*lines, "  (-v shows all; --explain NODE shows what was weighed)"] if hidden else lines


def _verification(verification: Verification, verbose: int) -> list[Text]:
    seeds = plural(len(verification.seeds), "seed") if verification.seeds else "the data given"
    judge = "ONNX Runtime" if verification.judge == "onnxruntime" else "onnx's reference evaluator"
    shapes = plural(len(verification.shapes), "shape")
    lines = [Text(f"\nCompared in {judge} on {seeds}, {shapes}:")]
    order = {"failed": 0, "not observed": 1}
    outputs = sorted(verification.outputs, key=lambda verdict: order.get(str(verdict.status), 2))
    shown = outputs if verbose else outputs[:_SOME]
    lines += [_verdict(verdict, verbose) for verdict in shown]
    if len(outputs) > len(shown):
        lines.append(Text(f"  and {len(outputs) - len(shown)} more outputs (-v shows all)"))
    if verification.folds:
        for stage, words in _STAGES.items():
            states = Counter(str(one.status) for one in verification.folds if one.stage == stage)
            counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
            lines += [Text(f"  folds one by one, {words}: {counted}")] if counted else []
        lines += [
            Text(f"    {verdict.status}: '{clean(verdict.output)}' {clean(verdict.message)}", style="yellow")
            for verdict in verification.folds
            if verbose and str(verdict.status) != "passed"
        ]
    if verbose:
        for case in verification.shapes:
            dims = ", ".join(f"{clean(n)}:{','.join(map(str, shape))}" for n, shape in case.items())
            lines.append(Text(f"  shape {dims}"))
    told = {verdict.message for verdict in shown}
    lines += [Text(f"  note: {clean(note)}") for note in verification.notes if note not in told]
    return lines


def _verdict(verdict: OutputVerdict, verbose: int) -> Text:
    state = str(verdict.status)
    text = Text("  ")
    text.append(state.upper(), style=_COLOR.get(state, ""))
    text.append(
        f" {clean(verdict.name)}: max |diff| {figure(verdict.max_abs)}, allowed {figure(verdict.tolerance)}"
    )
    text.append(f"\n    relative {figure(verdict.max_rel)}")
    if max(verdict.noise) > 0:
        text.append(f", noise {figure(max(verdict.noise))}, at worst {figure(verdict.over_noise)}x its noise")
    if verdict.cosine is not None:
        text.append(f", cosine {verdict.cosine:.9f}")
    if verdict.top1 is not None:
        text.append(f", top-1 agrees {100 * verdict.top1:.1f}%")
    if state == "failed" or verbose:
        text.append(f", minimum tolerance that would pass {figure(verdict.minimum_tolerance)}")
    if verbose and verdict.optimized is not None:
        text.append(f", ORT_ENABLE_ALL alone changes {figure(verdict.optimized)}")
    if verdict.message and state != "passed":
        text.append(f"\n    {clean(verdict.message)}")
    return text


def _bench(bench: Bench) -> list[str]:
    def ms(values: tuple[float, float, float]) -> str:
        return f"{values[0]:.3g} ms ({values[1]:.3g}..{values[2]:.3g})"

    return [
        "",
        f"Latency: {ms(bench.original)} -> {ms(bench.fused)}, "
        f"{bench.ratio[0]:.2f}x as fast ({bench.ratio[1]:.2f}..{bench.ratio[2]:.2f}; "
        f"{bench.rounds} interleaved rounds, {plural(bench.threads, 'thread')})",
    ]


def _result(outcome: Outcome) -> str:
    if outcome.error:
        return clean(outcome.error)
    if outcome.exit_code == 4:
        return "remaining: " + ", ".join(f"{g.remaining} {clean(g.op)}" for g in outcome.gates if g.remaining)
    if outcome.command == "plan":
        return "planned"
    return outcome.status


def _closing(outcome: Outcome) -> str:
    if outcome.command == "compare":
        return "PASSED" if outcome.exit_code == 0 else f"FAILED: {clean(outcome.error) or 'they differ'}"
    if outcome.command == "plan":
        return "Planned only: nothing was written."
    if outcome.output and outcome.report is not None:
        total = sum(outcome.report.seconds.values())
        took = f" in {duration(total)}" if total else ""
        return f"Wrote {clean(outcome.output)} ({size(outcome.report.after.bytes)}){took}"
    if outcome.exit_code == 3:
        return (
            "FAILED: nothing was written. This should not happen: please report it. --input-data verifies with real "
            "inputs; --skip and --keep leave folds out."
        )
    return "Nothing was written."
