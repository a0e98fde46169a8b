"""The tables of the documentation that the code declares: `python -m tests.doc_tables` writes them anew.

A table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from onnx_repfuse.cli.arguments import USELESS, declared, flag_of
from onnx_repfuse.cli.main import command
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


def kinds_table() -> str:
    """The kinds of folds."""
    return _table("kind", [f"| `{kind}` | {text} |" for kind, text in KIND_HELP.items()])


def useless_table() -> str:
    """The options that a run has no use for."""
    rows = []
    for run in USELESS:
        flags = ", ".join(f"`{flag_of(option)}`" for _, option in declared() if run in option.useless)
        rows.append(f"| `--{run.replace('_', '-')}` | {flags} |")
    return _table("with", rows, "these options are errors")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(first: str, rows: list[str], second: str = "") -> str:
    return "\n".join([f"| {first} | {second} |".replace("  ", " "), "|---|---|", *rows])


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that has such tables, and its text with the tables of today."""
    tables = {**option_tables(), "kinds": kinds_table(), "useless options": useless_table()}
    yield _filled(DOCS / "cli.md", tables)


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
