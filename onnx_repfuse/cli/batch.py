"""Several models at once, on joblib.

Any joblib backend will do: `joblib.parallel_config(backend="dask")` (or "ray", "threading", ...) around
`run_all` or around `onnx_repfuse.cli.main.main` sends the models to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from onnx_repfuse.cli.task import Task, run
from onnx_repfuse.errors import OutputError
from onnx_repfuse.records.outcome import Outcome

__all__ = ["run_all"]


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
    given, tasks = tasks, [_absolute(task) for task in tasks]  # workers may live in another folder
    outcomes: list[Outcome] = []
    folder_made = {str(Path(task.output).parent) for task in tasks if task.command == "fuse"}
    try:
        for folder in folder_made:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{error.filename}': {error.strerror}") from error
    try:
        for outcome in _parallel(tasks, jobs):
            outcomes.append(outcome)
            if done is not None:
                done(len(outcomes))
    except Exception as error:  # a worker was killed, and joblib's backends do not say which
        if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker"):
            raise
        for task in tasks[len(outcomes) :]:
            outcomes.append(_alone(task))
            if done is not None:
                done(len(outcomes))
    return [_named(outcome, there, task) for outcome, there, task in zip(outcomes, tasks, given, strict=True)]


def _absolute(task: Task) -> Task:
    data = tuple((name, path.absolute()) for name, path in task.options.input_data)
    return replace(
        task,
        model=os.path.abspath(task.model),
        output=os.path.abspath(task.output),
        options=replace(task.options, input_data=data),
    )


def _named(outcome: Outcome, there: Task, task: Task) -> Outcome:
    """The outcome under the names that were given."""
    output = task.output if outcome.output else ""
    report = outcome.report
    if report is not None:
        report = replace(report, model=task.model, output=task.output if report.output else "")
    error = outcome.error.replace(there.model, task.model).replace(there.output, task.output)
    return replace(outcome, model=task.model, output=output, error=error, report=report)


def _parallel(tasks: list[Task], jobs: int | None) -> Iterator[Outcome]:
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    streams = getattr(backend, "supports_return_generator", False)
    parallel = Parallel(n_jobs=jobs, return_as="generator" if streams else "list")
    yield from parallel(delayed(run)(task) for task in tasks)


def _alone(task: Task) -> Outcome:
    """Run one task in a process of its own, which may die."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(run, task).result()
        except BrokenProcessPool:
            blank = Outcome(task.command, task.model)
            return replace(blank, exit_code=1, error="its process was killed; is the machine out of memory?")
