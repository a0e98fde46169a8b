"""Work in a second thread beside our own: ONNX Runtime, and numpy on large arrays, let Python go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Beside"]

T = TypeVar("T")


class Beside:
    """A context in which one job at a time runs in a second thread; at its end, all are done."""

    def __init__(self, at_once: bool) -> None:
        """If not `at_once`, jobs wait until their result is asked for: where two of them would need much memory."""
        self.is_at_once = at_once
        self._thread = ThreadPoolExecutor(1) if at_once else None

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def start(self, job: Callable[[], T]) -> Callable[[], T]:
        """Begin a job; what is returned waits for its result, or raises what it raised. To be called once."""
        return job if self._thread is None else self._thread.submit(job).result
