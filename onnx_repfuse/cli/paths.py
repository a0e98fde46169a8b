"""Which file is written for which model, and what must not be overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnx_repfuse.cli.arguments import CliArguments
from onnx_repfuse.errors import OutputError, UsageError

__all__ = ["beside", "is_precious", "reports", "targets"]


def beside(model: str) -> str:
    """The default output. Raises UsageError for what has no name.

    >>> beside("nets/model.onnx").replace(os.sep, "/")
    'nets/model.fused.onnx'
    """
    path = Path(model)
    if not path.name:
        raise UsageError(f"'{model}' is no model file")
    return str(path.with_name(f"{path.stem}.fused{path.suffix}"))


def targets(given: CliArguments) -> list[tuple[str, str]]:
    """(model, output) pairs; raises UsageError before anything is touched."""
    if given.many:
        pairs = _into(given)
    elif given.in_place:
        return [(given.models[0], given.models[0])]
    else:
        model = given.models[0]
        second = given.models[1] if len(given.models) == 2 else None
        output = given.output or second or beside(model)
        if second is not None and os.path.lexists(second) and not (given.force or given.plan):
            raise UsageError(f"'{second}' exists: --force replaces it; several models need --out-dir")
        pairs = [(model, output)]
    if not given.plan:
        for _, output in pairs:
            _writable(output, given.models if given.many else given.models[:1])
            if not given.many:
                _reachable(output)
    return pairs


def reports(given: CliArguments, pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse report files that cannot be written, or that are a model."""
    models = [name for pair in pairs for name in (*pair, f"{pair[1]}.data")]
    seen: list[str] = []
    for option, name in (("--json", given.json_file), ("--report", given.report_file)):
        if name is None or (option == "--json" and name == "-"):
            continue
        if any(_same(name, other) for other in models):
            raise UsageError(f"{option} would overwrite the model '{name}'")
        if any(_same(name, other) for other in seen):
            raise UsageError(f"--json and --report name one file: '{name}'")
        seen.append(name)
        if Path(name).is_dir():
            raise UsageError(f"{option} takes a file, but '{name}' is a folder")
        if not Path(name).absolute().parent.is_dir():
            raise OutputError(f"cannot write '{name}': its folder does not exist; create it first")
        if is_precious(Path(name)):
            raise UsageError(f"{option} would overwrite '{name}', which is no report: remove it first")


def is_precious(path: Path) -> bool:
    """Whether a file is not text, as a report is: weights, say, that a model keeps beside it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(1 << 16)
    return b"\0" in begin


def _into(given: CliArguments) -> list[tuple[str, str]]:
    folder = Path(given.out_dir or "")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out-dir takes a folder, but '{folder}' is a file")
    pairs = [(model, str(folder / Path(model).name)) for model in given.models]
    taken: dict[str, str] = {}
    for model, output in pairs:
        other = taken.setdefault(os.path.normcase(output), model)
        if other is not model:
            raise UsageError(f"'{other}' and '{model}' would both be written to '{output}'")
    return pairs


def _writable(output: str, models: Iterable[str]) -> None:
    for model in models:
        if _same(output, model):
            raise UsageError(f"the output '{output}' is an input: --in-place overwrites it, if you want that")
    if Path(output).is_dir():
        raise UsageError(f"the output '{output}' is a folder: give a file, or --out-dir")
    if _is_stream(output):
        raise UsageError(f"the output '{output}' is a stream: a model is written to a file")


def _is_stream(output: str) -> bool:
    """/dev/stdout and its like, even where they lead to a file."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(output)))
    return os.path.islink(output) and "/proc/" in f"{folder}/{os.readlink(output)}"


def _reachable(output: str) -> None:
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise OutputError(f"cannot write '{output}': there is no folder '{folder}'; create it first")


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))
