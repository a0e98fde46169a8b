"""Publishing: every model that was reported as written has its own weights, whoever else writes beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse, verify
from onnx_repfuse.errors import InputError, OutputError
from onnx_repfuse.modelfile import atomic_write, byte_source
from onnx_repfuse.modelfile.atomic_write import Staging
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.modelfile.snapshot import snapshot

EDIT = {(): Edit(removed_values={"m"})}
FOREIGN = b"somebody else's"


def model_with(value, *, foldable=False, rows=32):
    """`y = sigmoid(x @ w) * s`, whose weight `w` is `value` everywhere; without the Sigmoid it folds."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"])]
    if not foldable:
        nodes.append(helper.make_node("Sigmoid", ["m"], ["r"]))
    nodes.append(helper.make_node("Mul", ["m" if foldable else "r", "s"], ["y"]))
    weights = {"w": np.full((rows, 16), value, np.float32), "s": np.full(16, 2, np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 16])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder, value, data="m.data", *, foldable=False, name="m.onnx"):
    (folder / data).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model_with(value, foldable=foldable),
        folder / name,
        save_as_external_data=True,
        location=data,
        size_threshold=100,
    )
    return folder / name


def weight(path):
    """The one value of the weight of a model in its place."""
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.dims[:1] == [32]
    }
    (kernel,) = found.values()
    assert np.ptp(kernel) == 0
    return float(kernel.flat[0])


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def saved(path, target, edits=None):
    with Document.open(path) as document:
        return save(document, edits or {}, target)


def before_the_lock(monkeypatch, act):
    """Let another run act at the last moment before the first lock is taken."""
    real = Staging.lock
    todo = [act]

    def lock(self):
        if todo:
            todo.pop()()
        return real(self)

    monkeypatch.setattr(Staging, "lock", lock)


def under_the_lock(monkeypatch, act):
    """Let another run act that knows of no locks, just before the first data file gets its name."""
    real = atomic_write._give_new_name
    todo = [act]

    def give(path, final):
        if todo:
            todo.pop()(final)
        return real(path, final)

    monkeypatch.setattr(atomic_write, "_give_new_name", give)


# --- names that are taken ---


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_a_data_file_that_another_run_wrote_a_moment_ago_is_not_shared(tmp_path, out, monkeypatch, edits):
    """The name was looked up before the lock was taken: one output silently had the other's weights."""
    first, second = written(tmp_path / "a", 1.0), written(tmp_path / "b", 3.0)
    before_the_lock(monkeypatch, lambda: saved(first, out / "a.onnx", edits))
    saved(second, out / "b.onnx", edits)
    assert (weight(out / "a.onnx"), weight(out / "b.onnx")) == (1.0, 3.0)


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_another_run_with_one_output_leaves_whole_pairs(tmp_path, out, monkeypatch, edits):
    first, second = written(tmp_path / "a", 1.0), written(tmp_path / "b", 3.0)
    before_the_lock(monkeypatch, lambda: saved(first, out / "o.onnx", edits))
    saved(second, out / "o.onnx", edits)
    assert weight(out / "o.onnx") == 3.0


def test_without_locks_an_edited_model_takes_the_next_name(tmp_path, out, monkeypatch):
    under_the_lock(monkeypatch, lambda final: final.write_bytes(FOREIGN))
    saved(written(tmp_path / "a", 1.0), out / "o.onnx", EDIT)
    assert weight(out / "o.onnx") == 1.0
    assert names(out) == ["o.onnx", "o.onnx.1.data", "o.onnx.data"]
    assert (out / "o.onnx.data").read_bytes() == FOREIGN


def test_without_locks_a_copy_is_refused_and_nothing_is_written(tmp_path, out, monkeypatch):
    under_the_lock(monkeypatch, lambda final: final.write_bytes(FOREIGN))
    with pytest.raises(OutputError, match="another run writes"):
        saved(written(tmp_path / "a", 1.0), out / "o.onnx")
    assert names(out) == ["m.data"]
    assert (out / "m.data").read_bytes() == FOREIGN


@pytest.mark.parametrize("size", ["equal", "other"])
def test_a_link_of_that_name_is_not_followed(tmp_path, out, size):
    """Not even to the same bytes: runtimes refuse data behind a link that leaves the folder."""
    path = written(tmp_path / "in", 1.0)
    foreign = tmp_path / "foreign"
    foreign.write_bytes((path.parent / "m.data").read_bytes() if size == "equal" else FOREIGN)
    (out / "m.data").symlink_to(foreign)
    (out / "o.onnx.data").symlink_to(tmp_path / "nowhere")
    saved(path, out / "o.onnx")
    assert weight(out / "o.onnx") == 1.0
    assert names(out) == ["m.data", "o.onnx", "o.onnx.1.data", "o.onnx.data"]
    assert not (tmp_path / "nowhere").exists()


# --- names that cannot be ---


@pytest.mark.parametrize(
    ("location", "output"),
    [
        ("o.onnx", "o.onnx"),
        ("O.Onnx", "o.onnx"),  # one file on some systems
        ("other.onnx", "o.onnx"),  # which the next run may write
        ("o.onnx/w.data", "o.onnx"),
        ("sub/w.onnx", "o.onnx"),
        ("model", "model"),
    ],
)
@pytest.mark.parametrize("foldable", [False, True])
def test_data_named_like_a_model_gets_a_name_of_its_own(tmp_path, out, location, output, foldable):
    """It was written over by the model, which did not load then: exit code 0."""
    path = written(tmp_path / "in", 1.0, location, foldable=foldable)
    fuse(path, out / output, Options(check=False))
    assert names(out) == [output, f"{output}.data"]
    assert weight(out / output) == (2.0 if foldable else 1.0)


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_folder_of_the_data_that_cannot_be_used_is_not(tmp_path, out, kind):
    path = written(tmp_path / "in", 1.0, "sub/m.data")
    elsewhere = tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.mkdir()
    if kind == "file":
        (out / "sub").write_bytes(FOREIGN)
    else:
        (out / "sub").symlink_to(elsewhere)
    saved(path, out / "o.onnx")
    assert weight(out / "o.onnx") == 1.0
    assert (out / "o.onnx.data").exists()
    assert not elsewhere.exists() or names(elsewhere) == []


def test_a_folder_that_another_run_makes_at_the_same_time_is_used(tmp_path, out, monkeypatch):
    path = written(tmp_path / "in", 1.0, "sub/deep/m.data")
    before_the_lock(monkeypatch, lambda: (out / "sub" / "deep").mkdir(parents=True))
    saved(path, out / "o.onnx")
    assert names(out) == ["o.onnx", "sub/deep/m.data"]
    assert weight(out / "o.onnx") == 1.0


@pytest.mark.parametrize("foldable", [False, True])
@pytest.mark.parametrize("data", ["m.data", "sub/m.data"])
def test_the_output_folder_may_be_a_link(tmp_path, out, foldable, data):
    (tmp_path / "link").symlink_to(out)
    fuse(written(tmp_path / "in", 1.0, data, foldable=foldable), tmp_path / "link" / "o.onnx")
    assert weight(out / "o.onnx") == (2.0 if foldable else 1.0)
    assert (tmp_path / "link").is_symlink()


def test_the_weights_of_another_model_are_not_overwritten(tmp_path, out):
    written(out, 1.0, name="a.onnx")
    for edits in ({}, EDIT):
        with pytest.raises(OutputError, match=r"'a.onnx' keeps its weights there"):
            saved(written(tmp_path / "in", 3.0), out / "m.data", edits)
    assert weight(out / "a.onnx") == 1.0


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_weights_that_another_run_wrote_a_moment_ago_are_not_overwritten(tmp_path, out, monkeypatch, edits):
    first, second = written(tmp_path / "a", 1.0), written(tmp_path / "b", 3.0)
    before_the_lock(monkeypatch, lambda: saved(first, out / "o.onnx", EDIT))
    with pytest.raises(OutputError, match=r"'o.onnx' keeps its weights there"):
        saved(second, out / "o.onnx.data", edits)
    assert weight(out / "o.onnx") == 1.0
    assert names(out) == ["o.onnx", "o.onnx.data"]


def test_a_link_to_the_input_is_replaced_by_a_copy_with_its_data(tmp_path, out):
    """It counted as the input itself, so nothing was written, and the data was not beside it."""
    path = written(tmp_path / "in", 1.0)
    (out / "soft.onnx").symlink_to(path)
    os.link(path, out / "hard.onnx")
    for name in ("soft.onnx", "hard.onnx"):
        saved(path, out / name)
        assert weight(out / name) == 1.0
    assert names(out) == ["hard.onnx", "m.data", "soft.onnx"]
    assert not (out / "soft.onnx").is_symlink()


def test_data_of_a_backup_of_the_output_stays(tmp_path):
    path = written(tmp_path, 1.0, "m.onnx.data")
    (tmp_path / "m.onnx.bak").write_bytes(path.read_bytes())
    fuse(path, path, in_place=True, options=Options(external=False))
    assert names(tmp_path) == ["m.onnx", "m.onnx.bak", "m.onnx.data"]
    assert weight(path) == weight(tmp_path / "m.onnx.bak") == 1.0


def test_where_data_is_renamed_the_report_does_not_say_byte_for_byte(tmp_path, out):
    path = written(tmp_path / "in", 1.0)
    assert "byte for byte" in fuse(path, out / "a.onnx").report.verification.notes[0]
    (out / "m.data").write_bytes(FOREIGN)
    assert "byte for byte" not in fuse(path, out / "a.onnx").report.verification.notes[0]


# --- what was published is what was meant ---


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
@pytest.mark.parametrize("kept", ["size", "nothing"])
def test_a_model_that_somebody_changed_is_noticed(tmp_path, out, monkeypatch, edits, kept):
    real = os.replace

    def replace(source, final):
        real(source, final)
        data = Path(final).read_bytes()
        Path(final).write_bytes(data[:-1] + b"?" if kept == "size" else data[:-1])

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="is not what was written"):
        saved(written(tmp_path / "in", 1.0), out / "o.onnx", edits)


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_data_that_somebody_changed_is_noticed_and_the_old_output_stays(tmp_path, out, monkeypatch, edits):
    old = written(tmp_path / "old", 1.0, "old.data")
    saved(old, out / "o.onnx")
    real = atomic_write._give_new_name

    def give(path, final):
        done = real(path, final)
        with open(final, "r+b") as file:
            file.write(b"?")
        return done

    monkeypatch.setattr(atomic_write, "_give_new_name", give)
    with pytest.raises(OutputError, match="is not what was written"):
        saved(written(tmp_path / "in", 3.0), out / "o.onnx", edits)
    assert weight(out / "o.onnx") == 1.0
    assert names(out) == ["o.onnx", "old.data"]


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_where_the_model_cannot_be_published_its_data_goes_again(tmp_path, out, monkeypatch, edits):
    def replace(source, final):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="Permission denied"):
        saved(written(tmp_path / "in", 1.0, "sub/m.data"), out / "o.onnx", edits)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_a_file_system_without_hard_links_will_do(tmp_path, out, monkeypatch, edits):
    def link(source, final):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for value in (1.0, 3.0):
        saved(written(tmp_path / f"{value}", value), out / f"{value}.onnx", edits)
    assert [weight(out / f"{value}.onnx") for value in (1.0, 3.0)] == [1.0, 3.0]


# --- the input changes during the run ---


def inline(tmp_path):
    onnx.save(model_with(1.0, foldable=True), tmp_path / "m.onnx")
    return tmp_path / "m.onnx", tmp_path / "m.onnx"


def with_data(tmp_path):
    return written(tmp_path, 1.0, foldable=True), tmp_path / "m.data"


def truncated(path):
    os.truncate(path, 100)


def emptied(path):
    os.truncate(path, 0)


def rewritten(path):
    """In place, to as many other bytes."""
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(data.replace(np.float32(1).tobytes(), np.float32(3).tobytes()))


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)
    with open(path, "ab") as file:
        file.write(b"\0")


def gone(path):
    path.unlink()


@pytest.mark.parametrize("stage", ["planning", "proving", "probing", "writing"])
@pytest.mark.parametrize("change", [truncated, emptied, rewritten, replaced, gone])
@pytest.mark.parametrize("kind", [inline, with_data])
@pytest.mark.parametrize("small", [True, False])
def test_an_input_that_changes_is_an_input_error(tmp_path, out, monkeypatch, stage, change, kind, small):
    """A mapped file that was shortened ended the process (SIGBUS)."""
    if not small:
        monkeypatch.setattr(byte_source, "SMALL_BYTES", 0)
    path, changing = kind(tmp_path)
    todo = [stage]

    def progress(now, done, total):
        if now in todo:
            todo.clear()
            change(changing)

    with pytest.raises(InputError, match=r"changed while it was read|cannot be read"):
        fuse(path, out / "o.onnx", progress=progress)
    assert not todo
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", [inline, with_data])
def test_an_input_that_changed_is_not_saved(tmp_path, out, kind):
    path, changing = kind(tmp_path)
    with Document.open(path) as document:
        rewritten(changing)
        for edits in ({}, EDIT):
            with pytest.raises(InputError, match="changed while it was read"):
                save(document, edits, out / "o.onnx")
    assert list(out.iterdir()) == []


def test_a_data_file_may_be_shortened_while_onnxruntime_runs_the_model(tmp_path, out, monkeypatch):
    from onnx_repfuse.verifier import session

    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    model = model_with(1.0, foldable=True, rows=1 << 15)  # 2 MB: many pages of a mapping
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=100)
    real = session.Session.run

    def run(self, *given, **named):
        if data.stat().st_size:
            os.truncate(data, 0)
        return real(self, *given, **named)

    monkeypatch.setattr(session.Session, "run", run)
    with pytest.raises(InputError, match="changed while it was read"):
        fuse(path, out / "o.onnx")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("how", ["compare", "bench", "precision", "verify"])
def test_data_may_be_shortened_while_two_models_are_compared(tmp_path, monkeypatch, capsys, how):
    """In a child process the test would see SIGBUS; here the whole suite would end."""
    from onnx_repfuse.cli.main import main
    from onnx_repfuse.verifier import session

    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    model = model_with(1.0, foldable=True, rows=1 << 15)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=100)
    fuse(path, tmp_path / "o.onnx", Options(check=False))
    real = session.Session.run

    def run(self, *given, **named):
        for file in (data, tmp_path / "o.onnx.data"):
            os.truncate(file, 0)
        return real(self, *given, **named)

    monkeypatch.setattr(session.Session, "run", run)
    if how == "verify":
        with pytest.raises(InputError, match="changed while it was read"):
            verify(path, tmp_path / "o.onnx")
        return
    if how == "compare":
        assert main(["--compare", str(path), str(tmp_path / "o.onnx")]) == 1
        assert "changed while it was read" in capsys.readouterr().err
        return
    from onnx_repfuse.cli import task

    given = task.Task("fuse", str(path), str(tmp_path / "o.onnx"), Options())
    with pytest.raises(InputError, match="changed while it was read"):
        {"bench": task._bench, "precision": task._precision}[how](given, lambda *_: None)


def test_of_two_runs_in_place_the_second_to_finish_is_refused(tmp_path):
    path, _ = inline(tmp_path)

    def progress(now, done, total):
        if now == "probing":
            with contextlib.suppress(InputError):
                fuse(path, path, in_place=True)

    with pytest.raises(InputError, match="changed while it was read"):
        fuse(path, path, in_place=True, progress=progress)
    assert weight(path) == 2.0
    assert names(tmp_path) == ["m.onnx"]


def test_an_input_that_was_only_touched_is_unchanged(tmp_path, out):
    path, _ = inline(tmp_path)
    with Document.open(path) as document:
        os.utime(path)
        save(document, {}, out / "o.onnx")
    assert (out / "o.onnx").read_bytes() == path.read_bytes()


def test_what_is_published_is_read_once_more_and_what_is_only_staged_is_not(tmp_path, out, monkeypatch):
    seen = []
    real = atomic_write.Written.is_at
    monkeypatch.setattr(
        atomic_write.Written, "is_at", lambda self, path: seen.append(path) or real(self, path)
    )
    fuse(written(tmp_path / "in", 1.0, foldable=True), out / "o.onnx")
    assert seen == [out / "o.onnx.data", out / "o.onnx"]


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_a_file_per_tensor_needs_few_open_files(tmp_path, out, edits):
    """A common layout of exporters; a process may have 256 files open on some systems."""
    model = model_with(1.0)
    for number in range(300):
        model.graph.initializer.append(
            numpy_helper.from_array(np.full(300, number, np.float32), f"n{number}")
        )
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=100)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        with Document.open(path) as document:
            save(document, edits, out / "o.onnx")
            snapshot(document, tmp_path / "snapshot")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for copy in (out / "o.onnx", tmp_path / "snapshot" / "m.onnx"):
        assert weight(copy) == 1.0
        assert onnx.load(copy).graph.initializer == onnx.load(path).graph.initializer


@pytest.mark.parametrize("name", ["o.pb", "O.ONNX", "o.onnxtxt", "missing.onnx"])
def test_data_that_a_model_we_cannot_read_may_use_stays(tmp_path, name):
    """Whatever its suffix, and whatever else it lacks: every model says where its data is in plain text."""
    path = written(tmp_path, 1.0, "m.onnx.data", foldable=True)
    other = onnx.load(path, load_external_data=False)
    if name == "missing.onnx":
        absent = other.graph.initializer.add()
        absent.CopyFrom(next(w for w in other.graph.initializer if w.external_data))
        absent.name = "absent"
        next(entry for entry in absent.external_data if entry.key == "location").value = "not_here.data"
    is_text = name.endswith("txt")
    (tmp_path / name).write_bytes(str(other).encode() if is_text else other.SerializeToString())
    fuse(path, path, in_place=True)
    assert (tmp_path / "m.onnx.data").exists()


@pytest.mark.parametrize("edits", [{}, EDIT], ids=["copied", "edited"])
def test_an_interrupt_right_after_the_model_has_its_name_leaves_its_data(tmp_path, out, monkeypatch, edits):
    source = written(tmp_path, 3)
    real = os.replace

    def replace(one, other):
        real(one, other)
        if Path(other) == out / "m.onnx":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), Document.open(source) as document:
        save(document, edits, out / "m.onnx")
    assert weight(out / "m.onnx") == 3


def test_data_that_another_machine_removes_is_missed(tmp_path, out, monkeypatch):
    """Two runs share equal data. Where no lock keeps them apart, one may remove what the other counts on."""
    source = written(tmp_path, 3)
    with Document.open(source) as document:
        save(document, EDIT, out / "m.onnx")
    shared = out / "m.onnx.data"
    (out / "m.onnx").unlink()
    real = os.replace

    def replace(one, other):
        real(one, other)
        if Path(other) == out / "m.onnx":
            shared.unlink()

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="was removed"), Document.open(source) as document:
        save(document, EDIT, out / "m.onnx")


@pytest.mark.parametrize("is_published", [False, True])
def test_another_file_of_the_same_checksum_is_not_taken_for_ours(tmp_path, is_published):
    """As long as ours is there to be compared with. The bits of CRC-32's polynomial may change: none is seen."""
    with Staging(tmp_path / "m.onnx") as staging:
        written = staging.write(lambda sink: sink.write(bytes(100)), tmp_path / "m.onnx")
        data = bytearray(100)
        data[10:15] = 0x1DB710641.to_bytes(5, "little")
        (tmp_path / "other").write_bytes(data)
        assert zlib.crc32(data) == written.checksum
        if is_published:
            staging.publish_model(written)
        assert written.is_at(tmp_path / "other") is is_published
        data[0] = 1
        (tmp_path / "other").write_bytes(data)
        assert not written.is_at(tmp_path / "other")
