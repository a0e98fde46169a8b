"""What a section of the page begins and ends with: the verdict at one look, and the environment of the run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import clean, plural, ran_on, size
from onnx_repfuse.report.html_parts import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx_repfuse.records.environment import Environment
    from onnx_repfuse.records.outcome import Outcome
    from onnx_repfuse.records.verdict import Verification

__all__ = ["badge", "environment_table", "verdict_banner"]

_COLORS = {"passed": "good", "identical": "good", "failed": "bad", "error": "bad", "planned": "dim"}
_MARKS = {"good": "&check;", "bad": "&times;", "warn": "?", "dim": "&middot;"}
_MARKS_OF = {"not observed": "?", "not verified": "!"}
# status -> what folds and other changes, and what outputs did
_VERBS = {
    "passed": (
        "passed, each compared by itself",
        "passed: equal within rounding noise",
    ),
    "failed": ("failed", "failed"),
    "not observed": ("could not have shown a fault", "could not have shown a fault"),
}
_MAX_SEEDS = 8  # that are listed


def badge(outcome: Outcome) -> str:
    """The verdict in a word or two, and what else decided the exit code."""
    state = _state(outcome)
    remain = ' <span class="verdict warn">operators remain</span>' if outcome.exit_code == 4 else ""
    words = "planned, nothing written" if state == "planned" else state
    return f'<span class="verdict {_COLORS.get(state, "warn")}">{escape(words)}</span>{remain}'


def _state(outcome: Outcome) -> str:
    if outcome.exit_code == 1:
        return "error"
    if outcome.command == "plan":
        return "planned"
    # Exit code 3 without a verdict: no attempt got as far as a comparison.
    return "failed" if outcome.exit_code == 3 and outcome.verification is None else outcome.status


def verdict_banner(outcome: Outcome) -> str:
    """The verdict with a mark that needs no colors, and a sentence that says what it stands for."""
    state = _state(outcome)
    color = _COLORS.get(state, "warn")
    mark = _MARKS_OF.get(state, _MARKS[color])
    error = (
        f'<p class="{"warn" if outcome.exit_code == 4 else color}">{escape(outcome.error)}</p>'
        if outcome.error
        else ""
    )
    remain = ' <span class="verdict warn">operators remain</span>' if outcome.exit_code == 4 else ""
    words = "" if outcome.error and outcome.exit_code != 4 else f"<p>{escape(_sentence(outcome, state))}</p>"
    return (
        f'<div class="banner {color}"><span class="mark" aria-hidden="true"><b>{mark}</b></span>'
        f"<div><strong>{escape(state.capitalize())}</strong>{remain}{words}{error}</div></div>"
    )


def _sentence(outcome: Outcome, state: str) -> str:
    verification = outcome.verification
    if state == "planned":
        return "Nothing was run, and nothing was written."
    if verification is None:
        return "The result was written without a comparison (--no-check)."
    if verification.unchanged:
        return "There was nothing to change."
    return " ".join(_counts(verification))


def _counts(verification: Verification) -> Iterator[str]:
    """How many of what was compared passed."""
    parts = (
        ("output", verification.outputs),
        ("fold", verification.folds),
        ("other change", verification.changes),
    )
    for noun, verdicts in parts:
        statuses = Counter(str(verdict.status) for verdict in verdicts)
        total = sum(count for status, count in statuses.items() if status in _VERBS)
        for status, verbs in _VERBS.items():
            if statuses[status]:
                yield _share(statuses[status], total, noun, verbs[noun == "output"])


def _share(count: int, total: int, noun: str, verb: str) -> str:
    """How many of all did what.

    >>> _share(1, 1, "fold", "failed"), _share(2, 2, "fold", "failed"), _share(1, 2, "fold", "failed")
    ('The fold failed.', 'All 2 folds failed.', '1 of 2 folds failed.')
    """
    if count < total:
        return f"{count} of {plural(total, noun)} {verb}."
    return f"The {noun} {verb}." if total == 1 else f"All {plural(total, noun)} {verb}."


def environment_table(outcome: Outcome) -> str:
    """What somebody else needs to run the same; "" if nothing is known of it."""
    rows = [*_surroundings(outcome.environment), *_comparison(outcome.verification)]
    if outcome.environment is not None:
        chosen = ", ".join(f"{name} = {value}" for name, value in outcome.environment.options.items())
        rows.append(("options", escape(chosen or "all as by default")))
        rows += [
            (escape(file.role), f"{size(file.bytes)}, SHA-256 <code>{escape(file.sha256)}</code>")
            for file in outcome.environment.files
        ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="facts">{cells}</dl>' if rows else ""


def _surroundings(environment: Environment | None) -> Iterator[tuple[str, str]]:
    if environment is None:
        return
    yield "date", escape(environment.date.replace("T", " ").replace("+00:00", " UTC"))
    processor = f"{environment.processor}, {plural(environment.cores, 'core')}".removeprefix(", ")
    yield "processor", escape(f"{processor}, {environment.system}")
    yield "versions", escape(", ".join(f"{name} {number}" for name, number in environment.versions.items()))


def _comparison(verification: Verification | None) -> Iterator[tuple[str, str]]:
    """How the two models were run."""
    if verification is None or verification.unchanged:
        return
    judge = "ONNX Runtime" if verification.judge == "onnxruntime" else verification.judge
    yield "runtime", escape(f"{judge}, {ran_on(verification.provider, verification.threads)}")
    seeds = list(map(str, verification.seeds[:_MAX_SEEDS]))
    if len(verification.seeds) > _MAX_SEEDS:
        seeds.append(f"... ({len(verification.seeds)})")
    yield "seeds", escape(", ".join(seeds) or "none: inputs as given")
    shapes = dict.fromkeys(
        "; ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in each.items())
        for each in verification.shapes
    )
    if shapes:
        yield "shapes", "<br>".join(escape(clean(shape)) for shape in shapes)
