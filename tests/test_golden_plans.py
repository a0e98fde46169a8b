"""The plans of the bundled models equal their golden lines, so that every change of a plan is seen in a diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.goldens import ROOT, SNAPSHOT, plan_line

GOLDEN = {line.split(" | ")[0]: line for line in SNAPSHOT.read_text(encoding="utf-8").splitlines()}
MODELS = sorted((ROOT / "models").glob("*.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_the_plan_is_the_golden_one(path: Path) -> None:
    """If the change is intended, run `python -m tests.goldens --update` and explain the diff in the commit."""
    assert plan_line(path) == GOLDEN[path.name]


def test_every_golden_plan_has_its_model() -> None:
    assert GOLDEN.keys() == {path.name for path in MODELS}
