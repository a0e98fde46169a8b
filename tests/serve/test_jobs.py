"""Jobs whose process does anything at all: crashes, hangs, prints nonsense, starts others."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time

import pytest

from onnx_repfuse.serve.jobs import KEPT, LONGEST_NAME, UNFINISHED, Jobs, Limits, Refused, State

HEAD = """
import json, os, signal, subprocess, sys, time
request = json.loads(sys.stdin.readline())
def say(**message): print(json.dumps(message), flush=True)
"""
ANSWER = "say(exit_code=0, verdict='passed', error='')"


def worker(body):
    """The command of a process that does this with its `request`."""
    return [sys.executable, "-I", "-c", HEAD + body]


def jobs_of(folder, body=ANSWER, seconds=30.0):
    return Jobs(folder, worker(body), Limits(bytes=1000, seconds=seconds))


def add(jobs, name="model.onnx", **settings):
    """A job with one file, ready to start."""
    job = jobs.create("fuse", settings)
    jobs.place_for(job, "first", name).write_bytes(b"model")
    return job


async def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def outcome(folder, body, seconds=30.0):
    """What becomes of one job, and of a good one behind it: its process asks for the first id it sees."""

    async def go():
        jobs = jobs_of(folder, f"if request['settings'].get('bench'): {ANSWER}; sys.exit()\n{body}", seconds)
        first, second = add(jobs), add(jobs, bench=True)
        async with jobs.working():
            jobs.start(first)
            jobs.start(second)
            await until(lambda: not second.unfinished)
        assert second.state is State.DONE, second.answer
        return first

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.abort()", "its process ended by signal SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory ran out"),
        ("sys.exit(3)", "with exit code 3"),
        ("raise ValueError('of no use')", "said: ValueError: of no use"),
        ("print('nonsense', flush=True)", "internal error"),
        ("say(stage='checking', done=1, total=2)", "with exit code 0"),
        ("os.close(0); os.close(1); time.sleep(0.2)", "with exit code"),
    ],
)
def test_a_process_that_ends_badly_fails_its_job_only(tmp_path, body, words):
    job = outcome(tmp_path, body)
    assert job.state is State.FAILED
    assert job.answer["verdict"] == "error"
    assert words in job.answer["error"]
    assert job.results() == []


def test_a_process_that_hangs_is_stopped(tmp_path):
    began = time.monotonic()
    job = outcome(tmp_path, "time.sleep(60)", seconds=1)
    assert time.monotonic() - began < 20
    assert job.state is State.FAILED
    assert "stopped after 1 s" in job.answer["error"]


def test_a_crash_after_the_answer_counts_as_the_answer(tmp_path):
    job = outcome(tmp_path, f"{ANSWER}; os.abort()")
    assert (job.state, job.answer["verdict"]) == (State.DONE, "passed")


def test_one_job_at_a_time_in_order(tmp_path):
    log = tmp_path / "log"
    body = f"""
log = open({str(log)!r}, "a")
print("begin", request["models"][0][-7:-5], file=log, flush=True)
time.sleep(0.1)
print("end", request["models"][0][-7:-5], file=log, flush=True)
{ANSWER}"""

    async def go():
        jobs = jobs_of(tmp_path, body)
        async with jobs.working():
            started = [add(jobs, f"m{number}.onnx") for number in range(3)]
            for job in started:
                jobs.start(job)
            assert [jobs.ahead_of(job) for job in started] == [0, 1, 2]
            await until(lambda: not any(job.unfinished for job in started))

    asyncio.run(go())
    assert log.read_text() == "".join(f"begin m{number}\nend m{number}\n" for number in range(3))


def test_progress_is_heard_and_temporary_files_are_in_the_folder(tmp_path):
    body = f"""
import tempfile
say(stage=tempfile.gettempdir(), done=1, total=2)
{ANSWER}"""
    job = outcome(tmp_path, body)
    assert job.progress == {"stage": str(job.folder / "tmp"), "done": 1, "total": 2}
    assert not (job.folder / "tmp").exists()
    assert not (job.folder / "first").exists()  # nor is what was uploaded kept


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["remove", "stop", "limit"])
def test_what_a_process_has_started_ends_with_it(tmp_path, how):
    body = f"""
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{inner.pid}} ")
time.sleep(60)"""
    pids = tmp_path / "pids"

    async def go():
        jobs = jobs_of(tmp_path, body, seconds=3 if how == "limit" else 60)
        job = add(jobs)
        async with jobs.working():
            jobs.start(job)
            await until(lambda: pids.exists() and pids.read_text().count(" ") == 2)
            assert all(map(alive, pids.read_text().split()))
            if how == "remove":
                jobs.remove(job)
                await until(lambda: not job.folder.exists())
            if how == "limit":
                await until(lambda: not job.unfinished)
        await until(lambda: not any(map(alive, pids.read_text().split())))

    asyncio.run(go())


def test_a_waiting_job_that_was_removed_never_begins(tmp_path):
    async def go():
        jobs = jobs_of(tmp_path)
        first, second, third = add(jobs), add(jobs), add(jobs)
        for job in (first, second, third):
            jobs.start(job)
        jobs.remove(second)
        async with jobs.working():
            await until(lambda: not third.unfinished)
        assert second.state is State.WAITING
        assert not second.folder.exists()
        with pytest.raises(Refused, match="removed"):
            jobs.get(second.id)

    asyncio.run(go())


def test_a_folder_that_was_deleted_fails_its_job_only(tmp_path):
    """By a program that clears the folder for temporary files."""

    async def go():
        jobs = jobs_of(tmp_path)
        first, second = add(jobs), add(jobs)
        for job in (first, second):
            jobs.start(job)
        shutil.rmtree(first.folder)
        async with jobs.working():
            await until(lambda: not second.unfinished)
        assert (first.state, second.state) == (State.FAILED, State.DONE)
        assert "FileNotFoundError" in first.answer["error"]

    asyncio.run(go())


def test_only_so_many_jobs_wait_and_only_so_many_are_kept(tmp_path):
    async def go():
        jobs = jobs_of(tmp_path)
        waiting = [add(jobs) for _ in range(UNFINISHED)]
        with pytest.raises(Refused, match="wait already") as refused:
            add(jobs)
        assert refused.value.status == 429
        finished = []
        for job in waiting:
            job.to(State.DONE)
        finished += waiting
        while len(finished) < KEPT + 3:
            finished.append(add(jobs))
            finished[-1].to(State.FAILED)
        assert jobs.all() == finished[-KEPT:]
        assert [job.folder.exists() for job in finished] == [False] * 3 + [True] * KEPT

    asyncio.run(go())


def test_an_upload_that_nobody_ends_is_forgotten(tmp_path):
    async def go():
        jobs = jobs_of(tmp_path, seconds=0.01)
        lost = add(jobs)
        await asyncio.sleep(0.02)
        add(jobs)
        assert lost.gone
        assert not lost.folder.exists()

    asyncio.run(go())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", " ", " a", "a ", "a/b", "a\\b", "C:x", "a\0b", "a\nb", "\u202eonnx", "x" * (LONGEST_NAME + 1),
     "é" * (LONGEST_NAME // 2 + 1)],
)  # fmt: skip
def test_names_that_are_refused(tmp_path, name):
    async def go():
        jobs = jobs_of(tmp_path)
        job = jobs.create("fuse", {})
        with pytest.raises(Refused, match="letters"):
            jobs.place_for(job, "first", name)

    asyncio.run(go())


def test_names_that_are_taken(tmp_path):
    async def go():
        jobs = jobs_of(tmp_path)
        for name in ("model", "-", "模型 (2).onnx", "x" * LONGEST_NAME, "'$(id)'.onnx", ".onnx"):
            job = add(jobs, name)
            assert [model.name for model in job.models()] == [name]
            job.to(State.DONE)

    asyncio.run(go())


def test_which_file_is_the_model(tmp_path):
    async def go():
        jobs = jobs_of(tmp_path)
        job = jobs.create("fuse", {})
        with pytest.raises(Refused, match="missing"):
            jobs.start(job)
        add_file = lambda name: jobs.place_for(job, "first", name).write_bytes(b"")  # noqa: E731
        add_file("weights.bin")
        assert [model.name for model in job.models()] == ["weights.bin"]
        add_file("net.ONNX")
        assert [model.name for model in job.models()] == ["net.ONNX"]
        add_file("other.onnx")
        with pytest.raises(Refused, match="exactly one is the model"):
            jobs.start(job)
        with pytest.raises(Refused, match="two files called"):
            add_file("net.ONNX")

    asyncio.run(go())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("plan", {}),
        (None, {}),
        (["fuse"], {}),
        ("fuse", None),
        ("fuse", {"layers": True}),
        ("fuse", {"bench": 1}),
        ("fuse", {"input_shape": True}),
        ("compare", {"output": "/etc/passwd"}),
    ],
)
def test_settings_that_are_refused(tmp_path, kind, settings):
    async def go():
        with pytest.raises(Refused):
            jobs_of(tmp_path).create(kind, settings)

    asyncio.run(go())
    assert os.listdir(tmp_path) == []
