"""Versions, bounds and the container agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_repfuse

ROOT = Path(__file__).parent.parent


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere():
    version = onnx_repfuse.__version__
    assert f'\nversion = "{version}"\n' in text("pyproject.toml")
    assert re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[1] in (version, "Unreleased")
    assert f"site_name: onnx-repfuse {version}\n" in text("mkdocs.yml")


def test_the_lowest_versions_are_those_that_pyproject_allows():
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text(".ci/lowest.txt"), re.MULTILINE))
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text("pyproject.toml")))

    def numbers(version):
        release = [int(part) for part in version.split(".")]
        return release + [0] * (4 - len(release))

    needed = re.search(r"^dependencies = \[\n(.*?)^\]", text("pyproject.toml"), re.MULTILINE | re.DOTALL)[1]
    names = re.findall(r'"([\w-]+)>=', needed)
    assert len(names) == 9
    for name in names:
        assert numbers(lowest[name]) == numbers(allowed[name]), name


def test_the_container_copies_what_is_there_and_runs_the_command():
    lines = text("Dockerfile")
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", lines, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
    assert set(copied) == set(re.findall(r"^!(.*)$", text(".dockerignore"), re.MULTILINE))
    assert 'ENTRYPOINT ["/opt/onnx-repfuse/bin/onnx-repfuse"]' in lines
    assert lines.index("USER repfuse") < lines.index("ENTRYPOINT")
