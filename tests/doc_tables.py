"""The tables of the documentation that the code declares: `python -m tests.doc_tables` writes them anew.

A table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from onnx_repfuse.cli.arguments import USELESS, declared, flag_of
from onnx_repfuse.cli.main import command
from onnx_repfuse.cli.serve import command as serve
from onnx_repfuse.cli.values import KIND_HELP

DOCS = Path(__file__).parent.parent / "docs"


def option_tables() -> dict[str, str]:
    """One table of options for each part of docs/cli.md."""
    by_field = {entry.name: option for entry, option in declared()}
    rows: dict[str, list[str]] = {}
    context = click.Context(command, **command.context_settings)
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option):
            continue
        option = by_field.get(parameter.name or "")
        words = [parameter.help or ""]
        words += [option.more] if option and option.more else []
        words += [f"In the JSON report: `{option.report}`."] if option and option.report else []
        table = option.table if option else "run"  # --list-kinds, --version and --help are click's
        rows.setdefault(table, []).append(f"| {_flags(parameter)} | {_cell(' '.join(words))} |")
    return {f"options: {name}": _table("option", lines) for name, lines in rows.items()}


def _flags(option: click.Option) -> str:
    value = ""
    if not option.is_flag and not option.count:
        choices = option.type.choices if isinstance(option.type, click.Choice) else ()
        value = f" {option.metavar}" if option.metavar else f" [{'|'.join(map(str, choices))}]"
    flags = [*option.opts, *option.secondary_opts]
    return ", ".join(_cell(f"`{flag}{value if flag == flags[-1] else ''}`") for flag in flags)


def serve_table() -> str:
    """The options of `onnx-repfuse serve`."""
    options = [option for option in serve.params if isinstance(option, click.Option)]
    return _table("option", [f"| {_flags(option)} | {option.help} |" for option in options])


def kinds_table() -> str:
    """The kinds of folds."""
    return _table("kind", [f"| `{kind}` | {text} |" for kind, text in KIND_HELP.items()])


def useless_table() -> str:
    """The options that a run has no use for."""
    rows = []
    for run in USELESS:
        flags = ", ".join(f"`{flag_of(option)}`" for _, option in declared() if run in option.useless)
        name = "fusing" if run == "fuse" else f"`--{run.replace('_', '-')}`"
        rows.append(f"| {name} | {flags} |")
    return _table("with", rows, "these options are errors")


def report_table() -> str:
    """Every key of the JSON report, with the description and the values that its schema has."""
    schema = json.loads(
        files("onnx_repfuse.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    )
    rows = list(_keys(schema, schema, ""))
    return _table("key", list(dict.fromkeys(rows)), "meaning")


def _keys(part: Any, schema: Any, prefix: str) -> Iterator[str]:
    """One row for each key of an object's schema, and for each key within it."""
    if "$ref" in part:
        part = {**schema["$defs"][part["$ref"].rpartition("/")[2]], **part}
    for key, value in part.get("properties", {}).items():
        path = f"{prefix}{key}"
        yield f"| `{path}` | {_cell(_meaning(value))} |"
        yield from _keys(value, schema, f"{path}.")
    if "items" in part:
        yield from _keys(part["items"], schema, f"{prefix.rstrip('.')}[].")
    # `allOf`, `then` and `else` are about the same object; the models of a batch have the keys of a single run.
    others = [*part.get("allOf", ()), *part.get("anyOf", ()), *([part["else"]] if "else" in part else ())]
    for other in others:
        yield from _keys(other, schema, prefix)
    if "then" in part:
        yield f"| `models` | {part['then']['properties']['models']['description']} |"


def _meaning(value: Any) -> str:
    """The description, and the values it may have unless the description names them."""
    meaning = str(value["description"])
    choices = [f"`{choice}`" for choice in value.get("enum") or value.get("examples") or ()]
    if all(choice in meaning for choice in choices):
        return meaning
    return f"{meaning}; one of {', '.join(choices)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(first: str, rows: list[str], second: str = "") -> str:
    return "\n".join([f"| {first} | {second} |".replace("  ", " "), "|---|---|", *rows])


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that has such tables, and its text with the tables of today."""
    tables = {**option_tables(), "kinds": kinds_table(), "useless options": useless_table()}
    yield _filled(DOCS / "cli.md", tables)
    yield _filled(DOCS / "json-schema.md", {"keys": report_table()})
    yield _filled(DOCS / "serve.md", {"serve": serve_table()})


def _filled(path: Path, tables: dict[str, str]) -> tuple[Path, str]:
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        assert text.count(begin) == 1, f"{path.name} has no place for the table '{name}'"
        text = re.sub(f"{re.escape(begin)}.*?{end}", lambda _: f"{begin}{table}{end}", text, flags=re.DOTALL)  # noqa: B023
    return path, text


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
