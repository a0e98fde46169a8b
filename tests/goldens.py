"""Golden plans: what the planner does to every model of a folder, one readable line a model.

    python -m tests.goldens models ../shared/zoo ../shared/cases > before.txt
    ... change the code ...
    python -m tests.goldens models ../shared/zoo ../shared/cases | diff before.txt -

A line has the nodes by operator and the multiply-adds as `before -> after`, the folds by kind and the refusals by
reason. With `--bytes` it ends with the SHA-256 of the unchecked output. Compare digests on one machine only, because
numpy rounds differently on other processors.

The suite checks the lines of `models/` (`tests/golden_plans.txt`, `tests/test_golden_plans.py`). `--update` writes that
file anew; a reviewer reads its diff.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import click

from onnx_repfuse import Options, RepfuseError, fuse, plan

ROOT = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "golden_plans.txt"
SECONDS = 60  # the line of a model that takes longer says so: some cases make shape inference loop for ever
MEMORY = 6 << 30  # bytes of address space; one case asks for 23 GB


def plan_line(path: Path, *, digest: bool = False) -> str:
    """The line of one model: its name, and its plan."""
    try:
        report = plan(path)
        after = " ".join(_changes(report.before.ops, report.after.ops))
        cells = [
            f"nodes {_change(report.before.nodes, report.after.nodes)}: {after}",
            f"macs {_change(report.before.macs, report.after.macs)}",
            f"folds {_counted(str(change.kind) for change in (*report.folds, *report.changes))}",
            f"refused {_counted(str(refusal.reason) for refusal in report.refusals)}",
        ]
        if digest:
            cells.append(f"sha256 {_digest(path)}")
    except RepfuseError as error:
        cells = [type(error).__name__]
    return " | ".join([path.name, *cells])


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    for op in sorted({*before, *after}):
        yield f"{op} {_change(before.get(op, 0), after.get(op, 0))}"


def _change(before: int | None, after: int | None) -> str:
    return str(before) if before == after else f"{before}->{after}"


def _counted(words: Iterable[str]) -> str:
    return " ".join(f"{word} {count}" for word, count in sorted(Counter(words).items())) or "none"


def _digest(path: Path) -> str:
    """SHA-256 of the files that an unchecked run writes, external data included."""
    with tempfile.TemporaryDirectory() as folder:
        fuse(path, Path(folder) / "fused.onnx", Options(check=False))
        digest = hashlib.sha256()
        for file in sorted(Path(folder).iterdir()):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _send(path: Path, digest: bool, to: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        to.send(plan_line(path, digest=digest))
    except Exception as error:  # an internal error is part of the golden, too, until it is fixed
        to.send(f"{path.name} | {type(error).__name__}")


def _isolated(path: Path, digest: bool) -> str:
    """The line of a model, from a process of its own, which may crash or hang."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(target=_send, args=(path, digest, there))
    process.start()
    there.close()
    try:
        return str(here.recv()) if here.poll(SECONDS) else f"{path.name} | took more than {SECONDS} s"
    except EOFError:
        process.join()
        return f"{path.name} | the process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bytes", "digest", is_flag=True, help="End each line with the SHA-256 of what is written.")
@click.option("--update", is_flag=True, help="Write the snapshot of models/ that the suite compares with.")
def main(folders: tuple[Path, ...], digest: bool, update: bool) -> None:
    """Print the golden plan of every .onnx file below FOLDERS."""
    if update:
        lines = [plan_line(path) for path in sorted((ROOT / "models").glob("*.onnx"))]
        SNAPSHOT.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["onnx_repfuse.api", "onnxruntime"])
    with ThreadPoolExecutor(2) as pool:
        for folder in folders:
            paths = sorted(folder.rglob("*.onnx"))
            for line in pool.map(lambda path: _isolated(path, digest), paths):
                click.echo(line)


if __name__ == "__main__":
    main()
