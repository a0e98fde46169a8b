"""Several models at once, on joblib.

Any joblib backend will do: `joblib.parallel_config(backend="dask")` (or "ray", "threading", ...) around
`run_all` or around `onnx_repfuse.cli.main.main` sends the models to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from onnx_repfuse.cli.task import Task, renamed, run
from onnx_repfuse.errors import OutputError
from onnx_repfuse.records.outcome import Outcome

__all__ = ["run_all"]

# What joblib's own backend, concurrent.futures and dask raise when a worker's process is gone.
_KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")


def run_all(
    tasks: list[Task], jobs: int | None = None, done: Callable[[int], None] | None = None
) -> list[Outcome]:
    """Run the tasks; one that fails, or even kills its process, does not stop the others.

    Args:
        tasks: one per model.
        jobs: number of processes, -1 for one per core, None for what joblib's configuration says (else one).
        done: called with the number of models finished.

    Raises:
        OutputError: there is no folder to write to.
    """
    absolute = [_absolute(task) for task in tasks]  # joblib's processes may live in another folder
    for task in absolute:
        if task.command == "fuse":
            _make_folder(Path(task.output).parent)
    outcomes: list[Outcome] = []
    for outcome in _run_each(absolute, jobs):
        outcomes.append(outcome)
        if done is not None:
            done(len(outcomes))
    return [renamed(*names) for names in zip(outcomes, absolute, tasks, strict=True)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{error.filename}': {error.strerror}") from error


def _run_each(tasks: list[Task], jobs: int | None) -> Iterator[Outcome]:
    """The outcomes in order. If a worker is killed, which joblib's backends do not name, the rest run one by one."""
    finished = 0
    try:
        for outcome in _parallel(tasks, jobs):
            finished += 1
            yield outcome
    except Exception as error:
        if type(error).__name__ not in _KILLED:
            raise
        for task in tasks[finished:]:
            yield _alone(task)


def _absolute(task: Task) -> Task:
    data = tuple((name, path.absolute()) for name, path in task.options.input_data)
    return replace(
        task,
        model=os.path.abspath(task.model),
        output=os.path.abspath(task.output),
        options=replace(task.options, input_data=data),
    )


def _parallel(tasks: list[Task], jobs: int | None) -> Iterator[Outcome]:
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend

    # A generator gives each outcome as it comes, which progress needs. Not every backend of joblib has one.
    backend, _ = get_active_backend()
    streams = getattr(backend, "supports_return_generator", False)
    parallel = Parallel(n_jobs=jobs, return_as="generator" if streams else "list")
    yield from parallel(delayed(run)(task) for task in tasks)


def _alone(task: Task) -> Outcome:
    """Run one task in its own process, so that being killed is its outcome only."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Not fork: the child would have the locks of onnxruntime's threads, but not the threads that release them.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(run, task).result()
        except BrokenProcessPool:
            blank = Outcome(task.command, task.model)
            return replace(blank, exit_code=1, error="its process was killed; is the machine out of memory?")
