"""What a shell completes the value of an option with.

click writes the shell's part: docs/cli.md says how to turn it on. Names are listed when a shell asks for them, since
that imports onnx or ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from onnx_repfuse.cli.values import KIND_HELP

__all__ = ["VALUES", "complete"]

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _kinds() -> dict[str, str]:
    return {kind.value: text for kind, text in KIND_HELP.items()}


def _operators() -> dict[str, str]:
    import onnx

    return dict.fromkeys(sorted({schema.name for schema in onnx.defs.get_all_schemas()}), "")


def _providers() -> dict[str, str]:
    from onnx_repfuse.verifier.providers import available

    return dict.fromkeys(available(), "")


# The words for a value, with what each means. Several may stand in one value, with commas.
VALUES: dict[str, Callable[[], dict[str, str]]] = {
    "kinds": _kinds,
    "operators": _operators,
    "providers": _providers,
}
_PATHS = {"file": "file", "dir": "dir"}  # which the shell lists itself


def complete(what: str) -> Complete | None:
    """click's function for a key of `VALUES`, for "file" or for "dir"; None for ""."""
    if not what:
        return None

    def items(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if what in _PATHS:
            return [CompletionItem(incomplete, type=_PATHS[what])]
        return list(_words(VALUES[what](), incomplete))

    return items


def _words(known: dict[str, str], incomplete: str) -> Iterable[CompletionItem]:
    head, comma, last = incomplete.rpartition(",")
    given = set(head.split(","))
    for word, meaning in known.items():
        if word.lower().startswith(last.lower()) and word not in given:
            yield CompletionItem(f"{head}{comma}{word}", help=meaning or None)
