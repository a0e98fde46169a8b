"""The entry point of the command line: from the words to an exit code.

Exit codes: 0 passed or not observed, 1 the input cannot be handled, 2 wrong usage, 3 failed (or, under --strict
and --compare, not observed) and nothing was written, 4 a gate fell short. Of several models the worst: 3, 1, 4, 0.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from onnx_repfuse import __version__
from onnx_repfuse.cli.arguments import GROUPS, CliArguments, declared
from onnx_repfuse.cli.completion import complete
from onnx_repfuse.cli.values import KIND_HELP
from onnx_repfuse.errors import RepfuseError
from onnx_repfuse.report.formatting import clean

__all__ = ["command", "main", "tune_process"]

_HELP = """Fold parallel linear branches of an exported ONNX network into one Conv each, proved equal.

\b
onnx-repfuse model.onnx                  writes model.fused.onnx
onnx-repfuse *.onnx --out-dir fused/     several models
onnx-repfuse model.onnx --plan           only says what it would do
onnx-repfuse --compare a.onnx b.onnx     compares two models
onnx-repfuse serve                       all of it as a page in the browser
"""
_EPILOG = """\b
Exit codes:
  0  passed, or not observed, which is said (also if there was nothing to fuse)
  1  the model cannot be read or handled; nothing was written
  2  wrong usage
  3  failed, or not observed under --strict or --compare; nothing was written
  4  --fail-on-remaining or --fail-on-folds found something, whether a file was written or not
Of several models the worst counts, in the order 3, 1, 4, 0."""


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:  # which is on while a shell completes a word
        click.echo(f"onnx-repfuse {__version__}")
        context.exit()


def _list_kinds(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        for kind, text in KIND_HELP.items():
            click.echo(f"{kind.value:<11} {text}")
        context.exit()


def _click_options() -> list[click.Parameter]:
    """The options of the table as click's, and the two that print something and exit."""
    options: list[click.Parameter] = []
    for entry, option in declared():
        settings: dict[str, Any] = {"default": entry.default}
        if isinstance(entry.default, bool):
            settings["is_flag"] = True
        elif isinstance(entry.default, tuple):
            settings = {"multiple": True}
        elif option.metavar is None and isinstance(entry.default, int):
            settings["count"] = True
        kind = click.Choice(option.type) if isinstance(option.type, list) else option.type
        if option.bare:
            settings |= {"is_flag": False, "flag_value": option.bare}
        names = [*option.flags] if entry.name in option.flags else [*option.flags, entry.name]
        settings["shell_complete"] = complete(option.complete)
        options.append(click.Option(names, type=kind, metavar=option.metavar, help=option.help, **settings))
    printing: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    listing = click.Option(
        ["--list-kinds"], callback=_list_kinds, help="List the kinds of folds and exit.", **printing
    )
    version = click.Option(
        ["--version"], callback=_print_version, help="Print the version and exit.", **printing
    )
    return [*options, listing, version]


def _group_of(parameter: click.Parameter) -> str:
    """The key of `GROUPS` for an option; --list-kinds, --version and --help are not declared, and are runs."""
    tables = {entry.name: option.table for entry, option in declared()}
    return tables.get(parameter.name or "", "run")


class _GroupedCommand(click.Command):
    """A command whose options have a heading for each group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups[_group_of(parameter)].append(record)
        # All groups have one column, or it would jump.
        width = max(
            (len(flags) for rows in groups.values() for flags, _ in rows if len(flags) <= 30), default=0
        )
        for name, rows in groups.items():
            if rows:
                with formatter.section(GROUPS[name]):
                    formatter.write_dl([(flags.ljust(width), text) for flags, text in rows])


class _Command(_GroupedCommand):
    """A command whose options with an optional value take the next word only if it is such a value."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """As click does, which would take a model's name for the value of a flag before it."""
        bare = {flag: option for _, option in declared() if option.bare for flag in option.flags}
        words = []
        for word, following in zip(args, [*args[1:], ""], strict=False):
            option = bare.get(word)
            if option is not None and following not in option.type:
                word = f"{word}={option.bare}"
            words.append(word)
        return super().parse_args(context, words)


_MODELS = click.Argument(
    ["models"], nargs=-1, metavar="MODEL.onnx [OUTPUT.onnx]", shell_complete=complete("file")
)
command = _Command(
    "onnx-repfuse",
    callback=lambda **words: CliArguments(**words),
    params=[_MODELS, *_click_options()],
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _mend_streams()
    tune_process()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _serve(words[1:]) if _asks_to_serve(words) else _run(words)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except RepfuseError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)


def tune_process() -> None:
    """Settings of a process that folds: threads and the garbage collector."""
    # numpy reads this on import, which comes later. Its products here are small, and on a busy machine its threads,
    # which wait by spinning, made them seven times as slow. The sessions have one thread, too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Planning makes many small objects and hardly a cycle. Python's default looks for cycles every 700 objects, which
    # took 8 to 20 % of planning.
    gc.set_threshold(50_000, 20, 20)


def _asks_to_serve(words: Sequence[str]) -> bool:
    """Whether the first word is a command; a model of that name in this folder is a model."""
    return words[:1] == ["serve"] and not os.path.lexists("serve")


def _serve(words: Sequence[str]) -> int:
    from onnx_repfuse.cli.serve import command as serve

    return int(serve.main(list(words), prog_name="onnx-repfuse serve", standalone_mode=False) or 0)


def _mend_streams() -> None:
    """Let prints succeed whatever the streams are: closed by the caller (`>&-`), or of an encoding without a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(words: list[str]) -> int:
    # Not standalone: click would print its errors in several lines and exit.
    parsed = command.main(words, prog_name="onnx-repfuse", standalone_mode=False)
    if not isinstance(parsed, CliArguments):  # --help and its like have printed
        return int(parsed or 0)
    # Only now, so that --help does not wait for the rest of the package.
    from onnx_repfuse.cli.run import debugging, execute

    try:
        return execute(parsed, __version__)
    except (RepfuseError, KeyboardInterrupt):
        raise
    except Exception as error:
        if debugging(parsed):
            raise
        text = f"internal error, {type(error).__name__}: {error}; please report it with the output of -vv"
        return _fail(text, 1)


def _fail(message: str, code: int) -> int:
    text = clean(" ".join(message.split()))
    with contextlib.suppress(OSError):
        click.echo(f"onnx-repfuse: error: {text}", err=True)
    return code
