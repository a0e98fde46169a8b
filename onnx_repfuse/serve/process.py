"""A job in a process of its own: it may crash, hang, or take any amount of memory, and the server goes on.

The process reads one line of JSON, the request, and writes lines of JSON: progress, and at last its answer, which has
an "exit_code". It ends itself when its standard input closes, so that it does not outlive a server that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["run_child"]

LONGEST_LINE = 1 << 20  # bytes
_LAST_WORDS = 300  # characters of the last line that a process wrote before it crashed


async def run_child(
    command: Sequence[str],
    request: dict[str, Any],
    *,
    folder: Path,
    seconds: float,
    hear: Callable[[dict[str, Any]], None],
) -> str:
    """Run the command and hand its messages to `hear`; returns why it ended without an answer, or "".

    Args:
        command: what to run.
        request: its first line of standard input.
        folder: of the job; the process works there, and has its temporary files there.
        seconds: the time limit, after which the process and all that it started are killed; so they are on cancelling.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    place = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    with (folder / "stderr.txt").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env={**os.environ, **place},
            limit=LONGEST_LINE,
            start_new_session=True,  # a group of its own: Ctrl-C is for the server, and one signal ends them all
        )
    try:
        return await asyncio.wait_for(_converse(process, request, hear, folder / "stderr.txt"), seconds)
    except asyncio.TimeoutError:
        return f"stopped after {seconds:.0f} s: start the server with a longer --time-limit"
    finally:
        _kill(process)
        await process.wait()


async def _converse(
    process: asyncio.subprocess.Process,
    request: dict[str, Any],
    hear: Callable[[dict[str, Any]], None],
    stderr: Path,
) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it ended at once; its exit code tells more
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
    answered = False
    async for line in process.stdout:
        message = json.loads(line)
        answered = answered or "exit_code" in message
        hear(message)
    code = await process.wait()
    return "" if answered else _cause(code, stderr)


def _cause(code: int, stderr: Path) -> str:
    """Why a process ended, for the user."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "the run was killed from outside; mostly that means that memory ran out"
    ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    lines = stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    words = f", and said: {lines[-1].strip()[:_LAST_WORDS]}" if lines else ""
    return f"the run crashed: its process ended {ended}{words}"


def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process, and what it has started (another simplifier)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # they are gone
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
