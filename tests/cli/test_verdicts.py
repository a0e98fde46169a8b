"""Verdict and words agree: the JSON report, the HTML badge, the text, the library and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, VerificationError, fuse
from onnx_repfuse.cli.main import main
from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.verdict import (
    FoldVerdict,
    OutputVerdict,
    StageVerdict,
    Status,
    Verification,
    worst_of,
)
from tests.build import Net


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def half_observed() -> onnx.ModelProto:
    """Two outputs: one that shows everything, one that does not depend on the input."""
    net = Net(4)
    y = net.conv_bn("x", 4, 4, 3)
    constant = net.op("Exp", net.op("Sub", y, y))
    return net.model(y, constant)


def badge(page: str) -> str:
    return page.split('<div class="banner ')[1].split("<strong>")[1].split("</strong>")[0].lower()


def test_a_part_that_is_not_observed_is_said_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(half_observed(), "m.onnx")
    assert main(["m.onnx", "-o", "o.onnx", "--json", "r.json", "--report", "r.html"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "m.onnx: NOT OBSERVED (1 of 2 outputs could not have shown a fault)"
    assert text[-1].startswith("Wrote o.onnx")
    assert text[-1].endswith("NOT OBSERVED")
    assert json.loads(Path("r.json").read_text())["verification"]["status"] == "not observed"
    assert badge(Path("r.html").read_text()) == "not observed"
    report = fuse("m.onnx", "o.onnx").report
    assert report.verification is not None
    assert report.verification.status is Status.NOT_OBSERVED
    assert not report.verification


def test_strict_writes_nothing_that_is_not_observed(capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(half_observed(), "m.onnx")
    assert main(["m.onnx", "-o", "o.onnx", "--strict", "--json", "r.json", "--report", "r.html"]) == 3
    assert not Path("o.onnx").exists()
    captured = capsys.readouterr()
    assert "--strict" in captured.err
    assert captured.out.splitlines()[-1].startswith("NOT OBSERVED: nothing was written")
    document = json.loads(Path("r.json").read_text())
    assert (document["exit_code"], document["output"]) == (3, None)
    assert document["verification"]["status"] == "not observed"
    assert badge(Path("r.html").read_text()) == "not observed"
    with pytest.raises(VerificationError, match="not all was observed"):
        fuse("m.onnx", options=Options(strict=True))


def test_strict_writes_what_passed_and_what_is_identical() -> None:
    net = Net(4)
    onnx.save(net.model(net.conv_bn("x", 4, 4, 3)), "m.onnx")
    assert main(["m.onnx", "-o", "o.onnx", "--strict", "-q"]) == 0
    assert main(["o.onnx", "-o", "p.onnx", "--strict", "-q"]) == 0
    assert Path("p.onnx").read_bytes() == Path("o.onnx").read_bytes()


def test_strict_without_a_check_is_wrong_usage() -> None:
    assert main(["m.onnx", "--strict", "--no-check"]) == 2
    with pytest.raises(UsageError, match="strict"):
        Options(strict=True, check=False)


def test_compare_exits_with_3_unless_all_was_observed(capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(half_observed(), "m.onnx")
    assert main(["--compare", "m.onnx", "m.onnx"]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("NOT OBSERVED")


@pytest.mark.parametrize("words", [["--plan"], []])
def test_a_gate_exits_with_4_whether_something_is_written_or_not(words: list[str]) -> None:
    net = Net(4)
    onnx.save(net.model(net.op("Relu", net.conv_bn("x", 4, 4, 3))), "m.onnx")
    assert (
        main(["m.onnx", "-o", "o.onnx", *words, "--fail-on-remaining", "Relu", "--report", "r.html", "-q"])
        == 4
    )
    assert Path("o.onnx").exists() == (not words)
    page = Path("r.html").read_text()
    assert "operators remain" in page
    assert badge(page) == ("planned" if words else "passed")


def stage(name: str, status: Status) -> StageVerdict:
    return StageVerdict(name, status, 0.0, 1.0, "onnxruntime", str(status))


def output(status: Status) -> OutputVerdict:
    return OutputVerdict("y", status, "float32", 0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0)


def test_a_fold_counts_once() -> None:
    passed, failed, unseen = Status.PASSED, Status.FAILED, Status.NOT_OBSERVED
    for first, second, expected in (
        (passed, passed, passed),
        (passed, unseen, passed),
        (passed, failed, failed),
        (unseen, unseen, unseen),
    ):
        verdict = FoldVerdict("y", "", (stage("isolated", first), stage("in-place", second)))
        assert verdict.status is expected
    assert FoldVerdict("y").status is Status.TRIVIAL


def test_the_worst_verdict_is_the_wholes() -> None:
    fold = FoldVerdict("y", "", (stage("isolated", Status.PASSED),))
    unseen = FoldVerdict("y", "", (stage("isolated", Status.NOT_OBSERVED),))
    assert Verification((output(Status.PASSED),), (fold, FoldVerdict("z"))).status is Status.PASSED
    assert Verification((output(Status.PASSED),), (fold, unseen)).status is Status.NOT_OBSERVED
    assert Verification((output(Status.NOT_OBSERVED),), (fold,)).status is Status.NOT_OBSERVED
    assert Verification((output(Status.FAILED), output(Status.NOT_OBSERVED))).status is Status.FAILED
    assert Verification(folds=(fold,)).status is Status.FAILED  # no output was compared
    assert worst_of([]) is Status.TRIVIAL


def test_the_text_says_how_many_folds_were_proved(capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(4)
    y = net.op("Relu", net.conv_bn("x", 4, 4, 3))
    y = net.op("Add", net.op("Exp", net.conv_bn(y, 4, 4, 1)), net.const(np.zeros((4, 1, 1))))
    y = net.op("Sigmoid", y)
    onnx.save(net.model(y), "m.onnx")
    assert main(["m.onnx", "-o", "o.onnx"]) == 0
    text = capsys.readouterr().out
    assert "2 folds, each compared by itself: 2 proved" in text
    assert "1 other change, compared by itself: 1 proved" in text
    assert "Other changes: no-op 1" in text
