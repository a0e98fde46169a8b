"""Work folders: removed when their run is over or was killed, and never anything that is not ours."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile import locks, work_folder
from onnx_repfuse.modelfile.work_folder import work_folder as opened

NAME = ".repfuse-0123456789abcdef"
LONG_AGO = (time.time() - 3600,) * 2


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def abandoned(parent, name=NAME):
    """What a run leaves that was killed an hour ago."""
    folder = parent / name
    (folder / "original").mkdir(parents=True)
    (folder / "original" / "weights").write_bytes(b"copy")
    (folder / ".lock").touch()
    os.utime(folder, LONG_AGO)
    return folder


def visit(parent):
    """A run in this place."""
    with opened(parent / "o.onnx"):
        pass


def test_it_is_private_and_goes_with_its_contents(tmp_path):
    with opened(tmp_path / "o.onnx") as folder:
        assert folder.parent == tmp_path
        assert work_folder._NAME.fullmatch(folder.name)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert files(folder) == [".lock"]
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"")
    assert files(tmp_path) == []


def test_the_folder_of_a_living_run_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(work_folder, "UNLOCKED_SECONDS", -1.0)
    with opened(tmp_path / "a.onnx") as first:
        (first / "a").write_bytes(b"")
        with opened(tmp_path / "b.onnx") as second:
            assert second != first
        assert files(first) == [".lock", "a"]
    assert files(tmp_path) == []


def test_the_folder_of_a_killed_run_goes(tmp_path):
    abandoned(tmp_path)
    visit(tmp_path)
    assert files(tmp_path) == []


def test_a_run_that_was_killed_before_it_had_a_lock_leaves_an_empty_folder_which_goes(tmp_path):
    (tmp_path / NAME).mkdir()
    os.utime(tmp_path / NAME, LONG_AGO)
    visit(tmp_path)
    assert files(tmp_path) == []


def test_a_young_folder_stays(tmp_path):
    folder = abandoned(tmp_path)
    os.utime(folder)
    visit(tmp_path)
    assert files(folder) == [".lock", "original"]


@pytest.mark.parametrize(
    "name",
    [
        ".repfuse-",
        ".repfuse-old",
        ".repfuse-0123456789abcde",
        ".repfuse-0123456789abcdef0",
        ".repfuse-0123456789ABCDEF",
        ".repfuse-backup-of-weights",
        f"x{NAME}",
        f"{NAME}\n",
    ],
)
def test_other_names_stay(tmp_path, name):
    folder = abandoned(tmp_path, name)
    visit(tmp_path)
    assert files(folder) == [".lock", "original"]


def test_a_folder_with_files_but_no_lock_stays(tmp_path):
    folder = abandoned(tmp_path)
    (folder / ".lock").unlink()
    os.utime(folder, LONG_AGO)
    visit(tmp_path)
    assert files(folder) == ["original"]


@pytest.mark.parametrize("kind", ["link to a file", "dangling link", "folder"])
def test_a_lock_that_is_no_file_is_not_opened(tmp_path, kind):
    """`.lock` used to be opened, and so created, through a link to anywhere."""
    place = tmp_path / "place"
    place.mkdir()
    folder = abandoned(place)
    (folder / ".lock").unlink()
    elsewhere = tmp_path / "elsewhere"
    if kind == "folder":
        (folder / ".lock").mkdir()
    else:
        (folder / ".lock").symlink_to(elsewhere)
    if kind == "link to a file":
        elsewhere.write_bytes(b"somebody's")
    os.utime(folder, LONG_AGO)
    visit(place)
    assert files(folder) == [".lock", "original"]
    assert elsewhere.exists() == (kind == "link to a file")


def test_links_and_files_of_such_a_name_stay(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    target = abandoned(tmp_path, "target")
    (place / NAME).symlink_to(target)
    os.utime(place / NAME, LONG_AGO, follow_symlinks=False)
    file = place / ".repfuse-fedcba9876543210"
    file.write_bytes(b"")
    os.utime(file, LONG_AGO)
    visit(place)
    assert len(files(place)) == 2
    assert files(target) == [".lock", "original"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no owners")
def test_a_folder_of_another_user_stays(tmp_path, monkeypatch):
    folder = abandoned(tmp_path)
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    visit(tmp_path)
    assert files(folder) == [".lock", "original"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"), opened(tmp_path / "no" / "o.onnx"):
        pass
    with pytest.raises(OutputError, match="cannot write to"), opened(Path("/proc/o.onnx")):
        pass


def test_a_lock_is_held_by_one_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        assert locks.acquire(first, wait=False)
        assert not locks.acquire(second, wait=False)
        os.close(first)
        assert locks.acquire(second, wait=True)
    finally:
        os.close(second)


WINDOWS = """
import os, sys, types
held = []
def locking(descriptor, mode, count):
    if held:
        raise OSError(13, "Permission denied")
    held.append((mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)))
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
sys.modules["fcntl"] = None  # there is none
import pathlib, tempfile
tempfile.gettempdir()
for name in ("O_NOFOLLOW", "geteuid"):
    delattr(os, name)
sys.platform = "win32"
from onnx_repfuse.modelfile import locks, work_folder
sys.platform = "linux"
folder = pathlib.Path(sys.argv[1])
with locks.folder_lock(folder):
    assert held.pop() == (1, 1, 0)
sys.platform = "win32"
with work_folder.work_folder(folder / "o.onnx") as place:
    assert held.pop() == (2, 1, 0)
    assert place.is_dir()
assert not place.exists()
"""


def test_windows_has_other_locks_and_neither_owners_nor_o_nofollow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
