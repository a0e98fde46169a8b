"""The text report at every width, encoding and verbosity."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from onnx_repfuse.records.outcome import Bench, Gate, Outcome
from onnx_repfuse.records.verdict import Status, Verification
from onnx_repfuse.report.batch_table import summarize
from onnx_repfuse.report.formatting import clean, figure, quantity, size
from onnx_repfuse.report.lines import print_line
from onnx_repfuse.report.text import show
from tests.outcomes import compared, outcome


def text(value, width=100, verbose=0, many=False):
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        force_terminal=True,
        no_color=True,
        color_system=None,
    )
    if many:
        summarize(console, value)
    else:
        show(console, value, verbose)
    return file.getvalue()


def test_shows_folds_refusals_and_verification():
    shown = text(outcome())
    for word in ("BatchNormalization", "All nodes", "1.23 M", "5.00 MB", "-50%", "Folds: 3 (branches 3)",
                 "consumers (5)", "and 2 more", "PASSED y: max |diff| 3.10e-07, allowed 1.20e-06",
                 "noise 2.50e-07, at worst 1.2x", "2.00x as fast", "Wrote net.fused.onnx"):  # fmt: skip
        assert word in shown


def test_verbose_lifts_the_limits():
    shown = text(outcome(), verbose=1)
    assert "more (-v" not in shown
    assert "Conv 'c0_0'" in shown
    assert "Time: plan 10.0 ms" in shown


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_never_wider_than_the_terminal(width):
    for shown in (text(outcome(), width), text(outcome(), width, 1), text([outcome()] * 3, width, many=True)):
        assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("lead", ["", "  ", "    - "])
@pytest.mark.parametrize("width", [20, 40, 80])
def test_long_lines_go_on_further_right_than_they_began(lead, width):
    line = lead + " ".join(["the", "border", "would", "differ"] * 8)
    file = io.StringIO()
    print_line(Console(file=file, width=width, force_terminal=True, no_color=True), line)
    first, *more = file.getvalue().splitlines()
    # of few columns none is given away
    hang = 0 if width == 20 else {"": 2, "  ": 4, "    - ": 6}[lead]
    assert first.startswith(lead)
    assert more
    assert all(len(part) - len(part.lstrip()) == hang for part in more)
    assert max(map(len, (first, *more))) <= width
    assert " ".join([first, *more]).split() == line.split()


def test_in_a_pipe_a_line_stays_whole():
    file = io.StringIO()
    print_line(Console(file=file, width=40), "word " * 40)
    assert len(file.getvalue().splitlines()) == 1


def test_a_refusal_is_one_hanging_paragraph():
    message = "it is read by " + "more than one consumer, " * 6
    report = outcome().report
    refusal = replace(report.refusals[0], message=message)
    shown = text(replace(outcome(), report=replace(report, refusals=(refusal,))), 80)
    lines = shown.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    - "))
    assert lines[start + 1].startswith("      ")


def test_names_are_neither_markup_nor_escapes():
    shown = text(outcome(evil="[bold red]\x1b[31m:smile:"), verbose=1, width=200)
    assert "[bold red]\\x1b[31m:smile:" in shown
    assert "\x1b" not in shown


def test_failure_says_what_would_have_passed():
    failed = replace(outcome(status=Status.FAILED), exit_code=3, output="")
    shown = text(failed)
    assert "FAILED y" in shown
    assert "minimum tolerance that would pass" in shown
    assert "nothing was written" in shown
    assert "Wrote" not in shown


def test_gate_identical_unverified_and_error():
    assert "2 Add remain" in text(replace(outcome(), exit_code=4, gates=(Gate("Add", 2),)))
    base = outcome(folds=0)
    identical = replace(base, report=replace(base.report, verification=Verification(unchanged=True)))
    assert "byte for byte" in text(identical)
    assert "Not verified" in text(replace(base, report=replace(base.report, verification=None)))
    assert "cannot" in text([Outcome("fuse", "net.onnx", exit_code=1, error="cannot be read")], many=True)


def test_one_sentence_says_why_nothing_was_folded():
    base = outcome(folds=0)
    several = text(base)
    assert "Folds: none\nWhy: " in several
    assert "candidates stay, because of 'consumers'" in several
    one = replace(base.report, refusals=base.report.refusals[:1])
    assert "Why: the one candidate stays, because " in text(replace(base, report=one))
    none = replace(base, report=replace(base.report, refusals=()))
    assert "Why: no two linear operators of this model are exactly one, or cheaper as one." in text(none)
    assert "Why: " not in text(outcome())


def test_times_are_in_si_units():
    bench = Bench((0.25, 0.2, 0.3), (0.125, 0.1, 0.15), (2.0, 1.9, 2.1), 20, 2, {}, warm_up=9)
    assert (
        "Latency: FASTER. 250 us (200 us..300 us) -> 125 us (100 us..150 us), 2.00x as fast (1.90..2.10; 9 runs to "
        "warm up, 20 interleaved rounds, 2 threads)"
    ) in text(replace(outcome(), bench=bench), width=200)


def test_formatting():
    assert clean("a\u202eb\ud800") == "a\\u202eb\\ud800"
    assert (size(999_999), size(0), quantity(10**18)) == ("1.00 MB", "0 B", "1000 P")
    assert (figure(float("inf")), figure(0.5), figure(12345.0)) == ("inf", "0.5", "1.23e+04")


def test_a_comparison_shows_statistics_and_where_two_models_part():
    shown = text(compared(), width=300)
    for words in (
        "input 'x' tensor(float) [N, 3, ?] in the first model, 'x' tensor(float16) [N, 3, ?] in the second",
        "judged by the noise of the second (float16)",
        "absolute error: max 0.003 at [0, 7] (0.5 and 0.503), mean 1.00e-04, median 2.00e-05, p90 1.00e-04",
        "20 of 30 elements differ, 1 of them NaN or infinite in one model only, PSNR 60.5 dB, top-5 agrees 80.0%",
        "minimum tolerance that would pass: none",
        "Tensors that both have: 4 (2 agree, 2 diverge)",
        "The first that diverges: 't2': relative error 0.001, allowed 1.21e-07",
        "computed by Relu 'node of t2'",
        "the last before it that agrees: 't1'",
    ):
        assert words in shown
    assert "#" not in shown
    listed = text(compared(), width=300, verbose=1)
    assert "  1e-05 .. 1e-04           20 ########################################" in listed
    assert "  diverges       't3': relative error" in listed


def test_verbose_tells_how_far_channels_differ_in_range():
    value = outcome()
    fold = value.report.folds[0]
    absorbed = [replace(node, range_ratio=4.0 if node.op == "Conv" else None) for node in fold.absorbed]
    (created,) = fold.created
    wide = replace(fold, absorbed=tuple(absorbed), created=(replace(created, range_ratio=16.0),))
    value = replace(value, report=replace(value.report, folds=(wide, *value.report.folds[1:])))
    shown = text(value, width=1000, verbose=1)
    assert shown.count("; channel ranges 4 -> 16") == 1  # of the others nothing is known
    assert "up to 16 times those of the median channel (before: 4)" in shown
    assert "the median channel gets 4.0 bits fewer" in shown
    assert "annel ranges" not in text(value, width=1000)
    assert "annel ranges" not in text(outcome(), width=1000, verbose=1)


def test_the_last_line_of_a_batch_counts_every_exit_code():
    codes = (0, 4, 2, 3)
    shown = text([replace(outcome(), exit_code=code) for code in codes], many=True)
    assert "4 models, 2 failed, 1 fell short of a gate" in shown
