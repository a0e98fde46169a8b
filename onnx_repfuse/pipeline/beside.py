"""Work in a second thread beside our own: ONNX Runtime, and numpy on large arrays, let Python go on meanwhile.

Not a pool of `concurrent.futures`: those take no jobs any more once the main thread has ended, as it may have in a
program that folds in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import Empty, PriorityQueue
from typing import Any, Generic, TypeVar

from onnx_repfuse.verifier.stopping import Stop

__all__ = ["Beside", "Started"]

T = TypeVar("T")
_Begun = tuple[Callable[[], Any], "Future[Any]"]
# whether others come first, its number, and what to do: None ends the thread
_Job = tuple[bool, int, "_Begun | None"]


@dataclass(frozen=True)
class Started(Generic[T]):
    """A job that was begun. To be called once: it waits for the result, or raises what the job raised."""

    result: Callable[[], T]
    is_over: Callable[[], bool]  # whether nothing is left to wait for

    def __call__(self) -> T:
        return self.result()


class Beside:
    """A context in which one job at a time runs in a second thread; at its end, all are done, or were ended."""

    def __init__(self, at_once: bool) -> None:
        """If not `at_once`, jobs wait until their result is asked for: where two of them would need much memory.

        So they do where the system starts no more threads.
        """
        self.is_at_once = at_once
        self._jobs: PriorityQueue[_Job] = PriorityQueue()
        self._numbers = count()
        self._thread: threading.Thread | None = None
        self._stop = Stop()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._thread is None:
            return
        self._forget()
        if kind is not None:
            self._stop.set()
        self._put(None)
        self._thread.join()

    def stop(self) -> None:
        """End the job that runs, and begin no other: nobody waits for them any more."""
        self._forget()
        self._stop.set()

    def _forget(self) -> None:
        """Leave the jobs that were not begun."""
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()

    def start(self, job: Callable[[], T], *, when_idle: bool = False) -> Started[T]:
        """Begin a job, or leave it to whoever asks for its result; after all others that wait if `when_idle`."""
        if not self.is_at_once or not self._has_thread():
            return Started(job, lambda: True)
        future: Future[T] = Future()
        self._put((job, future), when_idle)
        return Started(future.result, future.done)

    def _put(self, begun: _Begun | None, when_idle: bool = False) -> None:
        self._jobs.put((when_idle, next(self._numbers), begun))

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=_work, args=(self._jobs, self._stop), name="onnx-repfuse")
            try:
                thread.start()
            except RuntimeError:  # of a process that is ending, or has as many as it may have
                return False
            self._thread = thread
        return True


def _work(jobs: PriorityQueue[_Job], stop: Stop) -> None:
    """Do jobs until there is None; the one that is begun may be stopped."""
    stop.watch()
    while (begun := jobs.get()[-1]) is not None:
        job, future = begun
        del begun
        try:
            future.set_result(job())
        except BaseException as error:  # it is raised where the result is asked for
            future.set_exception(error)
        del job, future  # while this waits, they hold no memory
