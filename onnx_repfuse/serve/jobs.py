"""The jobs of the page: created, given files, queued, carried out one at a time, removed.

A job has a folder of its own. Whatever it was given, wrote or left behind goes with that folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from onnx_repfuse.serve.process import run_child

__all__ = ["SETTINGS", "Job", "Jobs", "Limits", "Refused", "State"]

SIDES = {"fuse": ("first",), "compare": ("first", "second")}
# What the page may ask for, and of what type; the process that carries the job out knows what it means.
SETTINGS: dict[str, dict[str, type]] = {
    "fuse": {"thorough": bool, "bench": bool, "input_shape": str},
    "compare": {"layers": bool, "by_order": bool, "input_shape": str},
}
UNFINISHED = 8  # jobs that may wait for each other
KEPT = 12  # finished jobs whose files are kept; the oldest goes
LONGEST_NAME = 120  # bytes of a file's name; a result's is somewhat longer, and file systems take 255
_NOT_IN_NAMES = frozenset('/\\:*?"<>|')  # what some file system cannot store


class Refused(Exception):  # noqa: N818 - an answer to the page
    """What was asked for is not done; `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one job may take.

    Attributes:
        bytes: of all files that are uploaded for it.
        seconds: for uploading one of them, and for carrying it out.
    """

    bytes: int
    seconds: float


class State(str, Enum):
    """Where a job is; the page knows these words."""

    UPLOADING = "uploading"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(eq=False)
class Job:
    """One run.

    Attributes:
        id: its part of addresses.
        kind: "fuse" or "compare".
        settings: as in `SETTINGS`.
        folder: of its own: `first/` and `second/` hold what was uploaded, `result/` what was written.
        state, since: where it is, and since when, in seconds of `time.monotonic`.
        received: bytes of its files.
        inputs: the models' files; none before the job is started.
        progress: the last message of the process: "stage", "done", "total".
        answer: its final message: "exit_code", "verdict", "error".
        gone: it was removed.
    """

    id: str
    kind: str
    settings: dict[str, Any]
    folder: Path
    state: State = State.UPLOADING
    since: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    received: int = 0
    inputs: tuple[Path, ...] = ()
    progress: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    gone: bool = False
    running: asyncio.Task[str] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it waits, or runs, or is not there yet."""
        return self.state in (State.UPLOADING, State.WAITING, State.RUNNING)

    @property
    def names(self) -> list[str]:
        """The models' names, as the user knows them."""
        return [model.name for model in self.inputs]

    @property
    def report(self) -> Path:
        """The report page; it exists if the run got as far."""
        return self.folder / "report.html"

    @property
    def document(self) -> Path:
        """The JSON report; it exists if the run got as far."""
        return self.folder / "report.json"

    def results(self) -> list[Path]:
        """The files written, by name. Only of a finished job, since a run's own files come and go."""
        place = self.folder / "result"
        return sorted(place.iterdir()) if self.state is State.DONE and place.is_dir() else []

    def models(self) -> tuple[Path, ...]:
        """The model of each side: the only file, or the only one called .onnx. Raises Refused."""
        found = []
        for side in SIDES[self.kind]:
            place = self.folder / side
            files = sorted(place.iterdir()) if place.is_dir() else []
            if not files:
                raise Refused(400, "a model is missing")
            if len(files) > 1:
                files = [file for file in files if file.suffix.lower() == ".onnx"]
            if len(files) != 1:
                raise Refused(
                    400, f"of several files, exactly one is the model (.onnx), and not {len(files)}"
                )
            found += files
        return tuple(found)

    def to(self, state: State) -> None:
        """Go there."""
        now = time.monotonic()
        self.seconds = now - self.since
        self.state, self.since = state, now

    def fail(self, why: str) -> None:
        """End without an answer of the process."""
        self.to(State.FAILED)
        self.answer = {"exit_code": 1, "verdict": "error", "error": why}


class Jobs:
    """All jobs of a server.

    Args:
        folder: where theirs are made.
        worker: the command that carries a job out, see `run_child`.
        limits: of each.
    """

    def __init__(self, folder: Path, worker: Sequence[str], limits: Limits) -> None:
        self._folder, self._worker, self.limits = folder, worker, limits
        self._jobs: dict[str, Job] = {}
        self._queue: asyncio.Queue[Job] = asyncio.Queue()

    def all(self) -> list[Job]:
        """The jobs, oldest first."""
        return list(self._jobs.values())

    def get(self, key: str) -> Job:
        """A job by its id. Raises Refused."""
        if key not in self._jobs:
            raise Refused(404, "there is no such job: it was removed")
        return self._jobs[key]

    def ahead_of(self, job: Job) -> int:
        """How many jobs are carried out before it."""
        others = self.all()
        before = others[: others.index(job)]
        return sum(other.state in (State.WAITING, State.RUNNING) for other in before)

    def create(self, kind: object, settings: object) -> Job:
        """A job that waits for its files. Raises Refused."""
        known = SETTINGS.get(kind) if isinstance(kind, str) else None
        if known is None or not isinstance(kind, str) or not isinstance(settings, dict):
            raise Refused(400, "a job is to fuse or to compare")
        for name, value in settings.items():
            if name not in known or not isinstance(value, known[name]):
                raise Refused(400, "there is no such setting")
        self._make_room()
        job = Job(secrets.token_urlsafe(9), kind, settings, self._folder / f"job-{secrets.token_hex(8)}")
        job.folder.mkdir(mode=0o700)
        self._jobs[job.id] = job
        return job

    def _make_room(self) -> None:
        """Remove what nobody will ask for again; raises Refused if too many jobs are left."""
        now = time.monotonic()
        for job in self.all():  # a page that was closed while it sent
            if job.state is State.UPLOADING and now - job.since > self.limits.seconds:
                self.remove(job)
        finished = [job for job in self.all() if not job.unfinished]
        for job in finished[: max(0, len(finished) - KEPT + 1)]:
            self.remove(job)
        if sum(job.unfinished for job in self.all()) >= UNFINISHED:
            raise Refused(429, f"{UNFINISHED} jobs wait already: let one finish, or remove one")

    def place_for(self, job: Job, side: str, name: str) -> Path:
        """The file that an upload is to be written to. Raises Refused for a bad name, or one that is there."""
        if job.state is not State.UPLOADING:
            raise Refused(409, "the job has begun")
        if side not in SIDES[job.kind]:
            raise Refused(404, "a job to fuse has one model, one to compare has two")
        unfit = not name.strip(". ") or name != name.strip() or len(name.encode()) > LONGEST_NAME
        if unfit or not name.isprintable() or _NOT_IN_NAMES & set(name):
            raise Refused(400, "this name of a file is too long, or has letters that not every system takes")
        place = job.folder / side / name
        if place.exists():
            raise Refused(409, f"there are two files called {name}")
        place.parent.mkdir(exist_ok=True)
        return place

    def take(self, job: Job, size: int) -> None:
        """Count bytes of an upload; raises Refused if they are too many, or if nobody wants them any more."""
        if job.gone:
            raise Refused(404, "the job was removed")
        job.received += size
        if job.received > self.limits.bytes:
            raise Refused(
                413, f"more than {self.limits.bytes / 1e6:,.0f} MB: start the server with --max-size"
            )

    def start(self, job: Job) -> None:
        """Queue a job whose files are there. Raises Refused."""
        if job.state is not State.UPLOADING:
            raise Refused(409, "the job has begun")
        job.inputs = job.models()
        job.to(State.WAITING)
        self._queue.put_nowait(job)

    def remove(self, job: Job) -> None:
        """Forget a job, end its process, and delete its files."""
        self._jobs.pop(job.id, None)
        job.gone = True
        if job.running is not None and not job.running.done():
            job.running.cancel()  # `_carry_out` deletes the files once the process, which writes some, is dead
        else:
            shutil.rmtree(job.folder, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Carry out what is queued, until the block ends; then the running process is ended."""
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            if not job.gone:
                await self._carry_out(job)

    async def _carry_out(self, job: Job) -> None:
        job.to(State.RUNNING)
        request = {
            "kind": job.kind,
            "settings": job.settings,
            "models": [str(model) for model in job.inputs],
            "folder": str(job.folder),
        }

        def hear(message: dict[str, Any]) -> None:
            if "exit_code" in message:
                job.answer = message
            else:
                job.progress = message

        running = asyncio.create_task(
            run_child(self._worker, request, folder=job.folder, seconds=self.limits.seconds, hear=hear)
        )
        job.running = running
        try:
            await asyncio.wait({running})
        finally:  # if the server ends, too
            running.cancel()
            await asyncio.wait({running})
        if job.gone:
            shutil.rmtree(job.folder, ignore_errors=True)
            return
        for spent in (*SIDES[job.kind], "tmp"):  # a result may be kept for long, and these are large
            shutil.rmtree(job.folder / spent, ignore_errors=True)
        if running.exception() is not None:
            job.fail(f"internal error, {type(running.exception()).__name__}: {running.exception()}")
        elif not job.answer:
            job.fail(running.result())
        else:
            job.to(State.DONE)
