"""The outputs that docs/faq.md quotes are what the tool prints, and its reasons are all there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse.cli.main import main
from onnx_repfuse.records.reasons import Reason
from tests.build import Net

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTES = re.findall(r"^```console\n\$ onnx-repfuse (.*)\n((?:.*\n)*?)```", PAGE, re.MULTILINE)
LEFT_OUT = "..."


def quantized() -> onnx.ModelProto:
    """An int8 weight, its Conv and a BatchNormalization."""
    net = Net(4)
    weight = net.const(net.rng.integers(-128, 127, (4, 4, 3, 3)).astype(np.int8))
    dequantized = net.op("DequantizeLinear", weight, net.const(0.01), net.const(np.int8(0)))
    return net.model(net.bn(net.op("Conv", "x", dequantized, name="conv"), 4))


def fixed_reshape() -> onnx.ModelProto:
    """Dynamic height and width, but a Reshape that only some sizes fit, as 1 x 4 x 45 x 55: no square does."""
    net = Net(4)
    y = net.conv_bn("x", 4, 4, 3)
    return net.model(net.op("Reshape", y, net.const(np.array([9_900], np.int64))))


BUILT = {"quantized.onnx": quantized, "reshape.onnx": fixed_reshape}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    for model in (ROOT / "models").glob("*.train.onnx"):
        (tmp_path / "models" / model.name).symlink_to(model)
    (tmp_path / "models" / "repvgg.deploy.onnx").symlink_to(ROOT / "models" / "repvgg.deploy.onnx")
    for name, build in BUILT.items():
        onnx.save(build(), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # or lines would be wrapped
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


def plain(line: str) -> str:
    """Without what differs between machines: measured figures, and the width of columns."""
    return re.sub(r"\d+(\.\d+)?e-\d+|\d+\.\d+", "#", " ".join(line.split()))


def quoted(block: str) -> re.Pattern[str]:
    """A block as a pattern: LEFT_OUT is any text, over several lines where it stands alone."""
    parts = []
    for line in block.splitlines():
        if line.strip() == LEFT_OUT:
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(plain(line)).replace(re.escape(LEFT_OUT), ".*") + "\n")
    return re.compile("".join(parts))


def test_there_are_quotes() -> None:
    assert len(QUOTES) >= 5
    assert len(QUOTES) == PAGE.count("```console\n")


@pytest.mark.parametrize(("words", "block"), QUOTES, ids=[words for words, _ in QUOTES])
def test_the_tool_prints_what_the_page_quotes(
    words: str, block: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(shlex.split(words))
    out, err = capsys.readouterr()
    printed = "".join(plain(line) + "\n" for line in (out + err).splitlines())
    assert quoted(block).fullmatch(printed), printed


def test_a_changed_quote_is_noticed() -> None:
    pattern = quoted("...\nFolds: none\nwrote x in 2.5 ms\n")
    assert pattern.fullmatch("a\nb\nFolds: none\nwrote x in # ms\n")
    assert not pattern.fullmatch("nothing to fold\nwrote x in # ms\n")


def test_the_quoted_headings_are_messages_of_the_tool() -> None:
    """A heading in quotation marks is what somebody has seen and searches for."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "onnx_repfuse").rglob("*.py"))
    for heading in re.findall(r'^## .*"(.*)"', PAGE, re.MULTILINE):
        assert heading in sources, heading


def test_the_reasons_named_exist() -> None:
    table = re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert len(table) == len(set(table)) >= 10
    assert set(table) <= {reason.value for reason in Reason}
