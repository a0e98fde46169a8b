"""Every tool's output of many files against each other: made once, raced, kept in a file of JSON lines.

A tool's output is made anew only if the file, the tool or its version changed; a race is run anew only if one of its
files or the runtime changed. So a run that was stopped goes on where it was, and two runs can share the work.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.equality import RULE
from benchmarks.exports import MODELS, PLAIN, ensure
from benchmarks.machine import describe, versions
from benchmarks.race import Job, raced
from benchmarks.runtimes import Given
from benchmarks.shipped import SHIPPED
from benchmarks.tools import PEERS, measured

INPUT, OURS, FASTEST, AFTER = "input", "ours", "ours -O2", "ours after onnxslim"
COLUMNS = (INPUT, *PEERS, OURS, FASTEST, AFTER)
GROUPS = ("shipped in packages", "without training branches", "with training branches")
SETTINGS = (("onnxruntime", 1), ("openvino", 1), ("onnxruntime", 2), ("openvino", 2))
TIMEOUT = 900.0  # seconds, of a tool and of a race

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A file of the board; `path` downloads or exports it into a folder."""

    name: str
    group: str
    shape: tuple[int, ...]
    path: Any
    given: Mapping[str, Given] = field(default_factory=dict)
    frozen: bool = False


def entries() -> list[Entry]:
    """All files, those of most interest first."""
    shipped, plain, trained = GROUPS
    return [
        *(Entry(s.name, shipped, s.shape, partial(_shipped, s), s.given, s.frozen) for s in SHIPPED),
        *(Entry(m.name, plain, m.shape, partial(_exported, m)) for m in PLAIN),
        *(Entry(m.name, trained, m.shape, partial(_exported, m)) for m in MODELS if m.family != "ocr"),
    ]


def _shipped(item: Any, work: Path) -> Path:
    return item.path(work / "shipped")


def _exported(model: Any, work: Path) -> Path:
    return ensure(model, work / "exports", "train", "ts")


def run(
    work: Path,
    results: Path,
    *,
    only: tuple[str, ...] = ("*",),
    settings: tuple[tuple[str, int], ...] = SETTINGS,
    seconds: float = 15.0,
    check: bool = True,
) -> Iterator[Record]:
    """Measure what is not in `results` yet; yield and append each record.

    Args:
        work: where files are kept that are downloaded, exported and made.
        results: the file of JSON lines.
        only: globs of names.
        settings: (runtime, threads), in this order.
        seconds: for one race, at least.
        check: False makes ours with `--no-check`, which the commit of the row says.
    """
    board = Board(work, results, seconds, check)
    for runtime, threads in settings:
        for entry in entries():
            if any(fnmatch.fnmatchcase(entry.name, glob) for glob in only):
                yield from board.measure(entry, runtime, threads)


def read(results: Path) -> list[Record]:
    """The records of a file; a last line that was cut short is left out."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return [record for line in lines if (record := _parsed(line)) is not None]


def _parsed(line: str) -> Record | None:
    try:
        record: Record = json.loads(line)
    except ValueError:
        return None
    return record


class Board:
    """The state of a run: what is known, and where the rest goes."""

    def __init__(self, work: Path, results: Path, seconds: float, check: bool) -> None:
        self.work, self.results, self.seconds = work, results, seconds
        self.word = "" if check else ", unchecked"
        self.machine = describe()
        self.versions = {**versions(), OURS: commit() + self.word}
        self.known = {_key(record): record for record in read(results)}

    def measure(self, entry: Entry, runtime: str, threads: int) -> Iterator[Record]:
        """Make what is not made yet, then race."""
        try:
            source = entry.path(self.work)
        except Exception as error:
            print(f"{entry.name}: not available: {type(error).__name__}: {error}", flush=True)
            return
        files, failed = {INPUT: source}, {}
        for tool in COLUMNS[1:]:
            before = files.get("onnxslim") if tool == AFTER else source
            if before is None:
                failed[tool] = "onnxslim failed"
                continue
            record = self._made(entry, tool, before)
            if record is None:
                record = self._make(entry, tool, before)
                yield self._keep(record)
            if record["error"]:
                failed[tool] = record["error"]
            else:
                files[tool] = self.work / record["file"]
        row = self._row(entry, runtime, threads, files)
        if _key(row) not in self.known:
            row.update(raced(_job(entry, row, files, self.seconds), timeout=TIMEOUT))
            row["failed"] = {**failed, **row.get("failed", {})}
            yield self._keep(row)

    def _made(self, entry: Entry, tool: str, source: Path) -> Record | None:
        record = self.known.get(_key(self._making(entry, tool, source)))
        usable = record is not None and (record["error"] or (self.work / record["file"]).exists())
        return record if usable else None

    def _making(self, entry: Entry, tool: str, source: Path) -> Record:
        version = self.versions[OURS if tool.startswith(OURS) else tool]
        return {"made": entry.name, "tool": tool, "version": version, "source": digest(source)}

    def _make(self, entry: Entry, tool: str, source: Path) -> Record:
        """Run a tool, and keep its output under the name of its bytes."""
        folder = self.work / "made"
        folder.mkdir(parents=True, exist_ok=True)
        record = self._making(entry, tool, source)
        target = folder / f"{record['source']}.{tool}.part.onnx"
        command = OURS if tool == AFTER else tool
        if tool.startswith(OURS):
            command += (", frozen" if entry.frozen else "") + self.word
        cost = measured(command, source, target, timeout=TIMEOUT)
        record.update(error=cost.error, seconds=cost.seconds, file="")
        if not cost.error:
            kept = folder / f"{digest(target)}.onnx"
            shutil.move(target, kept)
            record["file"] = kept.relative_to(self.work).as_posix()
        return record

    def _row(self, entry: Entry, runtime: str, threads: int, files: Mapping[str, Path]) -> Record:
        return {
            "raced": entry.name,
            "group": entry.group,
            "runtime": runtime,
            "threads": threads,
            "version": self.versions[runtime],
            "files": {tool: digest(path) for tool, path in files.items()},
            "commit": self.versions[OURS],
            "equal": RULE,
            "machine": self.machine,
        }

    def _keep(self, record: Record) -> Record:
        self.known[_key(record)] = record
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record


def _job(entry: Entry, row: Record, files: Mapping[str, Path], seconds: float) -> Job:
    """What to race: files of the same bytes once."""
    first: dict[str, str] = {}
    same = {tool: name for tool, sha in row["files"].items() if (name := first.setdefault(sha, tool)) != tool}
    return {
        "files": {tool: str(path.resolve()) for tool, path in files.items() if tool not in same},
        "same": same,
        "runtime": row["runtime"],
        "threads": row["threads"],
        "shape": entry.shape,
        "given": dict(entry.given),
        "seconds": seconds,
        "ours": [OURS, FASTEST],
        "rivals": [INPUT, *PEERS],
    }


def _key(record: Record) -> str:
    """What a record is about: the same key is not measured twice."""
    if "made" in record:
        parts = [record[name] for name in ("made", "tool", "version", "source")]
    else:
        parts = [record[name] for name in ("raced", "runtime", "threads", "version", "files")]
        # What another rule found unequal is judged, and raced, again.
        if record.get("equal") != RULE and any("differs" in why for why in record["failed"].values()):
            parts.append("another rule")
    return json.dumps(parts)


def latest(records: list[Record]) -> list[Record]:
    """The last race of each file, runtime and number of threads, in the order of the board."""
    found = {(r["raced"], r["runtime"], r["threads"]): r for r in records if "raced" in r}
    order = {entry.name: place for place, entry in enumerate(entries())}
    return sorted(
        (row for row in found.values() if row["raced"] in order),
        key=lambda row: (SETTINGS.index((row["runtime"], row["threads"])), order[row["raced"]]),
    )


def digest(path: Path) -> str:
    """Of a file's bytes, and of those of its external data."""
    state = hashlib.sha256(path.read_bytes())
    for data in sorted(path.parent.glob(f"{path.name}*.data")):
        state.update(data.read_bytes())
    return state.hexdigest()[:16]


def commit() -> str:
    """The last commit that changed the package; a + says that it was changed since."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "onnx_repfuse"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def say(record: Record) -> str:
    """One line for the terminal."""
    if "made" in record:
        return (
            f"{record['made']}: {record['tool']} {record['error'] or format(record['seconds'], '.1f') + ' s'}"
        )
    head = f"{record['raced']}, {record['runtime']} x{record['threads']}"
    if "error" in record:
        return f"{head}: {record['error']}"
    times = "  ".join(f"{name} {value[0]:.3g}" for name, value in record["ms"].items())
    return f"{head}: {times} {record['again'] or ''} {record['failed'] or ''}"
