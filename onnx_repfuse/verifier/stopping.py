"""Models that run in a second thread, and may be stopped by the first: nobody waits for them after an error, or Ctrl-C.

A model that runs is ended by ONNX Runtime itself (`RunOptions.terminate`), between two nodes; what is computed in
Python ends with the next node, or when it runs a model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Stop", "check_stop", "stoppable"]

_of_thread: ContextVar[Stop | None] = ContextVar("_of_thread", default=None)


class Stop:
    """Whether a thread is to stop."""

    def __init__(self) -> None:
        self.is_set = False
        self._runs: list[Any] = []  # options of what runs
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Stop the thread that calls this, once `set` is called."""
        _of_thread.set(self)

    def set(self) -> None:
        """Stop that thread."""
        with self._lock:
            self.is_set = True
            for options in self._runs:
                options.terminate = True

    def begin(self, options: Any) -> None:
        """Note that a model runs with these options."""
        with self._lock:
            options.terminate = self.is_set
            self._runs.append(options)

    def end(self) -> None:
        """Note that the last one has ended. Raises SystemExit where it was stopped."""
        with self._lock:
            self._runs.pop()
        if self.is_set:
            raise SystemExit


@contextmanager
def stoppable(options: Any) -> Iterator[None]:
    """While a model runs with these onnxruntime.RunOptions. Raises SystemExit where this thread is to stop."""
    stop = _of_thread.get()
    if stop is None:
        yield
        return
    stop.begin(options)
    try:
        yield
    finally:
        stop.end()


def check_stop() -> None:
    """Raise SystemExit if this thread is to stop."""
    stop = _of_thread.get()
    if stop is not None and stop.is_set:
        raise SystemExit
