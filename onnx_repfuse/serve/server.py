"""The server itself: its socket and its end."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from onnx_repfuse.errors import UsageError
from onnx_repfuse.serve.app import make_app
from onnx_repfuse.serve.guard import Guard
from onnx_repfuse.serve.jobs import Jobs, Limits

__all__ = ["serve"]

# this machine only; there is no option for another, since there is no password and no TLS
ADDRESS = "127.0.0.1"
_PATIENCE = 2  # seconds that the end of the server waits for downloads


def serve(
    worker: Sequence[str], folder: Path, port: int, limits: Limits, announce: Callable[[str], None]
) -> None:
    """Serve until a signal ends it (Ctrl-C, SIGTERM, the terminal closing); then no process and no file is left.

    Args:
        worker: the command that carries a job out, see `serve/process.py`.
        folder: an empty one, of this user only, for the files of the jobs.
        port: where to listen; 0 takes a free one.
        limits: of each job.
        announce: called with the address of the page when it answers.

    Raises:
        UsageError: the port is not available.
    """
    token = secrets.token_urlsafe(24)
    with _listening(port) as listener:
        number = listener.getsockname()[1]
        jobs = Jobs(folder, worker, limits)
        config = uvicorn.Config(
            Guard(make_app(jobs, token), token=token, port=number),
            log_level="error",
            access_log=False,  # its lines would have the token in them
            server_header=False,
            ws="none",
            lifespan="on",
            proxy_headers=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        server = uvicorn.Server(config)
        # An upload that is broken off by the end of the server is no news.
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        with _ending_by_signal(server):
            announce(f"http://{ADDRESS}:{number}/{token}/")
            server.run(sockets=[listener])


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # not on Windows
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            raise UsageError(f"port {port} is not available: {error.strerror or error}") from error
        listener.listen()
        yield listener


@contextlib.contextmanager
def _ending_by_signal(server: uvicorn.Server) -> Iterator[None]:
    """Let signals end the block and not the process, whose folder would stay.

    uvicorn notices SIGINT and SIGTERM, ends its loop, and raises them again, for the handlers that were there before:
    ours. It does not know SIGHUP, which a terminal sends that is closed.
    """

    def end(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
