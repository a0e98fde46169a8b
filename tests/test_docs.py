"""The documents are correct: their commands and code blocks run, links resolve, options and tables are complete."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from models.planned import table
from onnx_repfuse import lift
from onnx_repfuse.algebra.kernels import Stored
from onnx_repfuse.cli.main import main
from onnx_repfuse.graph.operators import OPERATORS, channel_rules, facts
from onnx_repfuse.lift import linear_op
from tests import doc_tables
from tests.build import Net, check

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [
    (name, part.strip())
    for name, text in TEXTS.items()
    for language, block in BLOCK.findall(text)
    if language == "sh"
    for line in block.splitlines()
    for part in line.split("&&")
    if re.match(r"(\.venv/bin/)?onnx-repfuse ", part.strip())
]
SNIPPETS = {
    name: [block for language, block in BLOCK.findall(text) if language == "python"]
    for name, text in TEXTS.items()
    if name != "CONTRIBUTING.md"
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A writable folder that looks like the repository's root."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_has_both_ci_blocks():
    readme = TEXTS["README.md"]
    assert readme.count("<!-- ci: main -->\n```sh\n") == readme.count("<!-- ci: tests -->\n```sh\n") == 1
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command(page, line, folder, capsys):
    words = shlex.split(line, comments=True)[1:]
    words = [path for word in words for path in (sorted(glob.glob(word)) or [word])]
    assert main(words) == 0, capsys.readouterr()
    if "-o" in words:
        assert (folder / words[words.index("-o") + 1]).stat().st_size > 0


@pytest.mark.parametrize("page", [name for name, blocks in SNIPPETS.items() if blocks])
@pytest.mark.filterwarnings("default")  # onnxruntime's quantizer warns
def test_snippets(page, folder, capsys):
    names = {"__name__": "docs"}
    for block in SNIPPETS[page]:
        exec(compile(block, page, "exec"), names)


CONTRIBUTING = [block for language, block in BLOCK.findall(TEXTS["CONTRIBUTING.md"]) if language == "python"]


@pytest.mark.parametrize(("operator", "test"), list(zip(CONTRIBUTING[::2], CONTRIBUTING[1::2], strict=True)))
def test_the_operator_in_twenty_lines(operator, test, monkeypatch):
    """CONTRIBUTING's record and lift function, in place of our own, pass its test, which fails without them."""
    assert len(operator.splitlines()) <= 20
    names = {
        **vars(facts),
        **vars(channel_rules),
        **vars(linear_op),
        "Net": Net,
        "check": check,
        "Stored": Stored,
    }
    exec(compile(operator, "CONTRIBUTING.md", "exec"), names, added := {})
    exec(compile(test, "CONTRIBUTING.md", "exec"), names)
    names.update(added)
    (record,) = (value for value in added.values() if isinstance(value, facts.Operator))
    lifts = [value for name, value in added.items() if name.startswith("lift_")]
    (run,) = (value for name, value in names.items() if name.startswith("test_"))
    monkeypatch.setitem(OPERATORS, record.name, facts.Operator(record.name))
    monkeypatch.delitem(lift._LIFTS, record.name, raising=False)
    with pytest.raises(AssertionError):
        run()
    monkeypatch.setitem(OPERATORS, record.name, record)
    for function in lifts:
        monkeypatch.setitem(lift._LIFTS, record.name, function)
    run()


def test_contributing_shows_a_pointwise_operator_a_view_and_an_index_map():
    assert re.findall("^[A-Z_]+ = Operator", "".join(CONTRIBUTING[::2]), re.MULTILINE) == [
        f"{name} = Operator" for name in ("SOFTSIGN", "NEG", "GLOBAL_AVERAGE_POOL", "GATHER")
    ]


def test_the_hook_fuses_once_and_then_leaves_alone(folder):
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ +entry: (sh .*)$", hooks, re.MULTILINE)
    models = []
    for name in ("acnet.train.onnx", "two words.onnx"):
        (folder / name).write_bytes((ROOT / "models" / "acnet.train.onnx").read_bytes())
        models.append(folder / name)
    tool = folder / "onnx-repfuse"
    tool.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m onnx_repfuse \"$@\"\n")
    tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def hook():
        words = [*shlex.split(entry), *(model.name for model in models)]
        subprocess.run(words, check=True, env=env, cwd=folder, timeout=120)
        return [model.read_bytes() for model in models]

    once = hook()
    assert all(len(onnx.load(model).graph.node) == 8 for model in models)
    assert hook() == once


def test_links_lead_somewhere():
    excluded = re.findall(
        r"^exclude_docs: (\S+)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    for name, text in TEXTS.items():
        if Path(name).name in excluded:
            continue
        plain = BLOCK.sub("", text)
        for target in re.findall(r"\]\(([^)\s]+)\)", plain):
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                assert target.startswith("https://"), (name, target)
                continue
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.exists(), (name, target)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {slug(head) for head in heads}, (name, target)


def slug(heading):
    """The anchor that mkdocs gives a heading."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("name", TEXTS)
def test_paths_named_on_a_page_exist(name):
    for path in re.findall(r"`((?:onnx_repfuse|tests|benchmarks|models|docs)/[\w./*]+)`", TEXTS[name]):
        assert list(ROOT.glob(path)) or list(ROOT.glob(f"onnx_repfuse/{path}")), path


def test_the_architecture_page_names_paths_that_exist():
    package, page = ROOT / "onnx_repfuse", TEXTS["docs/architecture.md"]
    names = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|json|md|svg|css|js)|(?:\w+/)+)`", page)
    assert len(names) > 60
    missing = {name for name in names if not (package / name).exists() and not (ROOT / name).exists()}
    assert missing == set()


def test_the_architecture_page_names_what_the_code_defines():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "onnx_repfuse").rglob("*.py"))
    sources += (ROOT / "tests" / "test_structure.py").read_text(encoding="utf-8")
    table = TEXTS["docs/architecture.md"]
    names = set(re.findall(r"`(_?[A-Z]\w+|\w+_\w+)`", table)) - {"onnx_ir"}
    assert len(names) > 10
    assert {name for name in names if not re.search(rf"\b{name}\b( =|:|\()|class {name}\b", sources)} == set()


def test_the_architecture_picture_names_paths_that_exist():
    picture = ElementTree.parse(ROOT / "docs" / "architecture.svg")
    tag = "{http://www.w3.org/2000/svg}"
    rooms = [group for group in picture.iter(f"{tag}g") if group.get("id")]
    assert {path.name for path in (ROOT / "onnx_repfuse").iterdir() if (path / "__init__.py").exists()} <= {
        name
        for group in rooms
        for name in re.findall(r"(\w+)/", group.find(f"{tag}text[@class='name']").text)
    }
    for group in rooms:
        for text in group.findall(f"{tag}text[@class='py']"):
            assert (ROOT / "onnx_repfuse" / group.get("id") / text.text).exists(), (
                group.get("id"),
                text.text,
            )


def test_every_page_is_in_the_menu():
    pages = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    excluded = set(re.findall(r"^exclude_docs: (\S+)", menu, re.MULTILINE))
    assert pages | excluded == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize(
    ("page", "text"), [*doc_tables.pages()], ids=lambda value: getattr(value, "name", "")
)
def test_tables_that_the_code_declares_are_up_to_date(page, text):
    """`python -m tests.doc_tables` writes them."""
    assert page.read_text(encoding="utf-8") == text


def test_networks_fold_at_least_as_far_as_stated():
    """After a better plan, `python -m models.planned` writes the table anew."""

    def cells(text):
        rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
        return {name: [re.findall(r"\d+", cell) for cell in row] for name, *row in rows}

    stated = re.search(r"<!-- table -->\n(.*)<!-- end of table -->", TEXTS["docs/families.md"], re.DOTALL)
    stated, found = cells(stated[1]), cells(table(ROOT / "models"))
    assert stated.keys() == found.keys()
    for name, row in found.items():
        for now, then in zip(row, stated[name], strict=True):
            assert int(now[0]) == int(then[0]), name
            assert int(now[-1]) <= int(then[-1]), name
