"""`onnx-repfuse serve`: its words, and the command that carries out what the page asks for."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from onnx_repfuse.errors import OutputError, UsageError

__all__ = ["command", "worker"]

_HELP = """Serve a page on this machine: drop a model, watch, read the report, download the result.

Needs more packages: pip install 'onnx-repfuse[serve]'. The page is at an address with a secret in it, which is printed;
nobody else can open it. Nothing leaves this machine. Ctrl-C ends the server and deletes its files.
"""
_NEEDED = ("starlette", "uvicorn")
# Isolated (-I), since the process works in a folder of uploaded files: a file json.py there must not be imported.
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from onnx_repfuse.cli.serve_job import main
main()
"""


def worker() -> list[str]:
    """The command of a process that carries out one job with the packages of this one."""
    paths = [os.path.abspath(path) for path in sys.path]
    return [sys.executable, "-I", "-c", _START, json.dumps(paths)]


@click.command("serve", help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    metavar="N",
    help="Where to listen [default: 8765]; 0 takes a free port.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=1),
    default=2000,
    metavar="MB",
    help="Of all files that are uploaded for one run [default: 2000].",
)
@click.option(
    "--time-limit",
    type=click.IntRange(min=1),
    default=1800,
    metavar="SECONDS",
    help="Of one run, which is stopped then [default: 1800].",
)
def command(port: int, max_size: int, time_limit: int) -> int:
    """Serve until Ctrl-C. Raises UsageError if a package is missing, or the port is taken."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {' and '.join(missing)}: pip install 'onnx-repfuse[serve]'")
    from onnx_repfuse.serve.jobs import Limits
    from onnx_repfuse.serve.server import serve

    def announce(address: str) -> None:
        click.echo(f"onnx-repfuse: open {address}")
        click.echo("Ctrl-C ends it.")

    limits = Limits(bytes=max_size * 1_000_000, seconds=time_limit)
    with _folder() as folder:
        serve(worker(), folder, port, limits, announce)
    return 0


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of this user only, gone after the block; those that killed servers left go now. Raises UsageError."""
    from onnx_repfuse.modelfile.work_folder import work_folder

    with ExitStack() as stack:
        try:
            place = Path(tempfile.gettempdir(), "files")
            folder = stack.enter_context(work_folder(place))
        except (OSError, OutputError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"there is no folder for temporary files: {why}") from error
        yield folder
