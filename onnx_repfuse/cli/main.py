"""The command line: its words. Their meaning is in arguments, usage and targets; what is done, in runs.

Exit codes: 0 written and verified, 1 the input cannot be handled, 2 wrong usage, 3 verification or --compare
failed and nothing was written, 4 written, but a gate fell short. Of several models the worst: 3, 1, 4, 0.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from onnx_repfuse import __version__
from onnx_repfuse.cli.arguments import KIND_HELP, CliArguments
from onnx_repfuse.errors import RepfuseError
from onnx_repfuse.report.formatting import clean

__all__ = ["command", "main"]

_EPILOG = """\b
Exit codes:
  0  written and verified (also if there was nothing to fuse)
  1  the model cannot be read or handled; nothing was written
  2  wrong usage
  3  verification or --compare failed; nothing was written
  4  written, but --fail-on-remaining found operators
Of several models the worst counts, in the order 3, 1, 4, 0."""


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"onnx-repfuse {__version__}")
        context.exit()


def _list_kinds(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        for kind, text in KIND_HELP.items():
            click.echo(f"{kind.value:<11} {text}")
        context.exit()


@click.command(
    "onnx-repfuse",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("models", nargs=-1, metavar="MODEL.onnx [OUTPUT.onnx]")
@click.option(
    "-o", "--output", metavar="FILE", help="Write here [default: MODEL.fused.onnx, beside the input]."
)
@click.option("--out-dir", metavar="DIR", help="Fuse several models into this folder, under their own names.")
@click.option("--in-place", is_flag=True, help="Overwrite the input.")
@click.option("--force", is_flag=True, help="Replace a second file that exists.")
@click.option(
    "--save-as-external-data", is_flag=True, help="Store large weights in a file beside the output."
)
@click.option(
    "--plan", is_flag=True, help="Dry run: say what would be folded, what not and why; write nothing."
)
@click.option("--explain", metavar="NODE", help="Say why this node was or was not fused.")
@click.option("--compare", is_flag=True, help="Compare two models numerically: --compare A.onnx B.onnx.")
@click.option("--json", "json_file", metavar="FILE|-", help="Write the report as JSON; - is standard output.")
@click.option("--report", "report_file", metavar="FILE.html", help="Write the report as one HTML page.")
@click.option("--bench", is_flag=True, help="Time the original and the fused model, in turns.")
@click.option(
    "--check/--no-check", default=True, help="Verify with ONNX Runtime before writing [default: yes]."
)
@click.option(
    "--rtol", type=float, metavar="X", help="Relative tolerance, instead of one measured from noise."
)
@click.option("--atol", type=float, metavar="X", help="Absolute tolerance, likewise.")
@click.option(
    "--input-shape", multiple=True, metavar="NAME:1,3,224,224", help="Size of an input (repeatable)."
)
@click.option(
    "--input-data",
    multiple=True,
    metavar="[NAME:]PATH",
    help="Real inputs: NAME:FILE.npy, FILE.npz or an ONNX test_data_set folder (repeatable).",
)
@click.option("--precision-study", is_flag=True, help="Compare with float64 truth too (small models).")
@click.option("--skip", multiple=True, metavar="KIND,..", help="Leave out folds of these kinds.")
@click.option("--only", multiple=True, metavar="KIND,..", help="Make only folds of these kinds.")
@click.option("--keep", multiple=True, metavar="GLOB,..", help="Leave nodes alone whose name matches.")
@click.option(
    "--list-kinds", is_flag=True, expose_value=False, is_eager=True, callback=_list_kinds,
    help="List the kinds of folds and exit.",
)  # fmt: skip
@click.option(
    "--fail-on-remaining", multiple=True, metavar="OP,..", help="Exit 4 if any of these operators remain."
)
@click.option(
    "--freeze-initializers",
    is_flag=True,
    help="Fold weights that are graph inputs too (callers may set them).",
)
@click.option(
    "--cost", type=click.Choice(["ort-cpu", "macs"]), default="ort-cpu", help="What counts as cheaper."
)
@click.option("--jobs", type=int, metavar="N", help="Models at once, with --out-dir; -1 is one per core.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Print everything; twice, also tracebacks.")
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version and exit.",
)  # fmt: skip
def command(**words: Any) -> CliArguments:
    """Fold parallel linear branches of an exported ONNX network into one Conv each, proved equal.

    \b
    onnx-repfuse model.onnx                  writes model.fused.onnx
    onnx-repfuse *.onnx --out-dir fused/     several models
    onnx-repfuse model.onnx --plan           only says what it would do
    onnx-repfuse --compare a.onnx b.onnx     compares two models
    """
    return CliArguments(**words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the process
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    # One thread for numpy's products, as the sessions have: ours are small, and its threads wait by spinning, which
    # on a busy machine takes seven times as long. numpy reads this when it is imported, which is later.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    verbose = 0
    try:
        given = command.main(
            list(arguments) if arguments is not None else None,
            prog_name="onnx-repfuse",
            standalone_mode=False,
        )
        if not isinstance(given, CliArguments):
            code = int(given or 0)
        else:
            from onnx_repfuse.cli.run import execute

            verbose = given.verbose
            code = execute(given, __version__)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except RepfuseError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", 130)
    except Exception as error:
        if verbose > 1 or os.environ.get("ONNX_REPFUSE_DEBUG"):
            raise
        text = f"internal error, {type(error).__name__}: {error}; please report it with the output of -vv"
        code = _fail(text, 1)
    return code


def _fail(message: str, code: int) -> int:
    text = clean(" ".join(message.split()))
    with contextlib.suppress(OSError):
        click.echo(f"onnx-repfuse: error: {text}", err=True)
    return code
