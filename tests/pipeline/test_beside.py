"""Whole models run beside our own work: what is reported, and when, does not depend on it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import InputError, OutputError
from onnx_repfuse.pipeline import prove_folds, run
from onnx_repfuse.pipeline.beside import Beside
from onnx_repfuse.planner.folds import emit
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier import intermediates
from onnx_repfuse.verifier.folds import in_place, isolated
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.oracle.registry import evaluate_node
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor
from onnx_repfuse.verifier.outputs import baseline
from onnx_repfuse.verifier.session import Session, open_session
from tests.build import Net


def blocks(
    count: int = 3, channels: int = 16, shape: tuple[int | str, ...] = (1, 16, 9, 9)
) -> onnx.ModelProto:
    """Conv + BatchNormalization + Relu, one fold each, of weights that are kept for the proof."""
    net = Net(channels, shape=shape)
    x = "x"
    for _ in range(count):
        x = net.op("Relu", net.conv_bn(x, channels, channels, 3))
    return net.model(x)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_job_gives_its_result_or_what_it_raised(at_once: bool) -> None:
    with Beside(at_once) as beside:
        threads = [beside.start(threading.get_ident)() for _ in range(2)]
        assert len(set(threads)) == 1
        assert (threads[0] == threading.get_ident()) is not at_once
        with pytest.raises(ZeroDivisionError):
            beside.start(lambda: 1 // 0)()


def test_a_job_for_idle_moments_comes_after_those_that_wait() -> None:
    begun, order = threading.Event(), list[str]()
    with Beside(True) as beside:
        beside.start(begun.wait)
        last = beside.start(lambda: order.append("idle"), when_idle=True)
        first = [beside.start(partial(order.append, str(number))) for number in range(3)]
        begun.set()
        for wait in (*first, last):
            wait()
    assert order == ["0", "1", "2", "idle"]


def _noted_steps(monkeypatch: pytest.MonkeyPatch, begin: threading.Event) -> list[str]:
    """What is done, in order; the original runs when `begin` is set."""
    steps = list[str]()
    measure, probe, compare = baseline.measure_original, isolated.probe, in_place.check_in_place

    def late(*args: Any, **options: Any) -> Any:
        assert begin.wait(60)
        steps.append("ran")
        return measure(*args, **options)

    def noted(case: Any, *args: Any, **options: Any) -> Any:
        steps.append("probe")
        if steps == ["probe"] * 3:
            begin.set()
        return probe(case, *args, **options)

    def noted_in_place(*args: Any, **options: Any) -> Any:
        steps.append("in place")
        return compare(*args, **options)

    monkeypatch.setattr(baseline, "measure_original", late)
    monkeypatch.setattr(isolated, "probe", noted)
    monkeypatch.setattr(in_place, "check_in_place", noted_in_place)
    return steps


def test_folds_are_probed_while_the_original_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not compared in place before it has run."""
    steps = _noted_steps(monkeypatch, threading.Event())
    verification = fuse(blocks(3)).report.verification
    assert verification
    assert [len(verdict.stages) for verdict in verification.folds] == [2, 2, 2]
    assert steps == ["probe"] * 3 + ["ran"] + ["in place"] * 3


def test_folds_that_take_much_memory_wait_for_the_original_and_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, sizes = threading.Event(), list[int]()

    def many(case: FoldCase) -> int:
        sizes.append(1 << 30)
        if len(sizes) == 3:
            begin.set()
        return sizes[-1]

    monkeypatch.setattr(prove_folds, "_elements", many)
    monkeypatch.setattr(FoldCase, "names_its_sizes", True)
    steps = _noted_steps(monkeypatch, begin)
    verification = fuse(blocks(3)).report.verification
    assert verification
    assert [len(verdict.stages) for verdict in verification.folds] == [2, 2, 2]
    assert steps == ["ran"] + ["probe", "in place"] * 3


def test_what_was_begun_is_done_at_the_end_and_what_was_not_is_left() -> None:
    begun, done = threading.Event(), []

    def job() -> None:
        begun.set()
        done.append(1)

    with Beside(True) as beside:
        beside.start(job)
        begun.wait()
    assert done == [1]


def _computes() -> None:
    """Many small steps in Python, each an operator of the oracle."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x = Tensor.of(np.zeros(4))
    for _ in range(3000):
        time.sleep(0.01)
        evaluate_node(node, Context.of(node, 17), [x])


def _runs() -> None:
    """A Loop that takes hours."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        endless (float[4] x) => (float[4] y) <int64 many = {1000000000000}, bool is_on = {1}> {
            y = Loop (many, is_on, x) <body = turn (int64 i, bool c, float[4] s) => (bool c2, float[4] s2) {
                c2 = Identity (c)
                s2 = Sin (s)
            }>
        }""")
    open_session(model).run({"x": np.zeros(4, np.float32)})


@pytest.mark.parametrize("work", [_computes, _runs])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError, None])
def test_an_interrupt_or_an_error_ends_what_was_begun(
    error: type[BaseException] | None, work: Callable[[], None]
) -> None:
    begun, done = threading.Event(), []

    def job() -> None:
        begun.set()
        work()
        done.append(1)

    with suppress(KeyboardInterrupt, OutputError), Beside(True) as beside:
        beside.start(job)
        beside.start(lambda: done.append(2))
        begun.wait()
        time.sleep(0.2)  # so that the model runs
        if error is not None:
            raise error
        beside.stop()
    assert not done


def test_jobs_are_done_by_us_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with Beside(True) as beside:
        assert beside.start(threading.get_ident)() == threading.get_ident()


def test_jobs_are_done_where_the_main_thread_has_ended() -> None:
    script = """if True:
        import threading
        def late():
            threading.main_thread().join()
            from onnx_repfuse.pipeline.beside import Beside
            with Beside(True) as beside:
                print(beside.start(lambda: "done")())
        threading.Thread(target=late).start()
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


@pytest.mark.parametrize("small", [run.SMALL_BYTES, 0])
def test_an_interrupt_while_the_result_is_written_runs_no_model(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def not_run(*_: Any, **__: Any) -> Any:
        measured.append(1)
        raise InputError("it does not run")

    monkeypatch.setattr(run, "SMALL_BYTES", small)
    monkeypatch.setattr(run, "save", interrupted)
    monkeypatch.setattr("onnx_repfuse.verifier.outputs.baseline.measure_original", not_run)
    onnx.save(blocks(), tmp_path / "m.onnx")
    with pytest.raises(KeyboardInterrupt):
        fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert small or not measured
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_proof_is_the_same_in_one_thread_and_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for small in (run.SMALL_BYTES, 0):
        monkeypatch.setattr(run, "SMALL_BYTES", small)
        result = fuse(blocks())
        both.append((result.report.verification, result.model.SerializeToString()))
    assert both[0] == both[1]


@pytest.mark.parametrize("runs", [True, False])
def test_a_disk_that_is_full_is_told_at_once(
    runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the model runs, which may take long, is not waited for; of other errors it is, as it may explain them."""
    onnx.save(blocks(), tmp_path / "m.onnx")
    begun, done = threading.Event(), []

    def measure(*_: Any, **__: Any) -> Any:
        begun.set()
        if not runs:
            raise InputError("it does not run")
        _computes()
        done.append(1)

    def fails(error: Exception) -> Callable[..., Any]:
        def save(*_: Any, **__: Any) -> Any:
            begun.wait(10)
            raise error

        return save

    monkeypatch.setattr("onnx_repfuse.verifier.outputs.baseline.measure_original", measure)
    monkeypatch.setattr(run, "save", fails(OutputError("no space left")))
    with pytest.raises(OutputError, match="no space"):
        fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert not done
    if not runs:
        monkeypatch.setattr(run, "save", fails(ValueError("what nobody expected")))
        with pytest.raises(InputError, match="does not run"):
            fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("small", "times"), [(run.SMALL_BYTES, 1), (0, 2)])
def test_a_weight_is_computed_once_where_it_can_be_held(
    small: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SMALL_BYTES", small)
    computed: Counter[int] = Counter()
    real = emit.materialized

    def counted(kernel: Any, data_type: int) -> Any:
        computed[id(kernel)] += 1
        return real(kernel, data_type)

    monkeypatch.setattr(emit, "materialized", counted)
    fuse(blocks())
    assert list(computed.values()) == [times] * 3


@pytest.mark.parametrize(
    ("few", "shape", "given", "sessions"),
    [
        (1 << 27, (1, 16, 9, 9), {}, 1),
        (0, (1, 16, 9, 9), {}, 2),
        (1 << 27, (1, 16, 9, 9), {"x": (1, 16, 9, 9)}, 1),
        (1 << 27, ("N", 16, 9, 9), {"x": (500, 16, 9, 9)}, 2),  # whatever is assumed of it
    ],
)
def test_one_session_of_the_original_reads_what_takes_little_memory(
    few: int,
    shape: tuple[int | str, ...],
    given: dict[str, tuple[int, ...]],
    sessions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnx_repfuse.pipeline.prove_folds.FEW_BYTES", few)
    opened: list[int] = []
    plain = intermediates.open_session

    def counted(*given: Any, **more: Any) -> Session:
        session = plain(*given, **more)
        opened.append(len(session.outputs))
        return session

    monkeypatch.setattr(intermediates, "open_session", counted)
    verification = fuse(blocks(shape=shape), options=Options(input_shapes=given)).report.verification
    assert verification is not None
    assert [len(fold.stages) for fold in verification.folds] == [2, 2, 2]
    assert len(opened) == sessions + 1  # and one of the result


def test_tensors_that_no_later_fold_needs_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SMALL_BYTES", 0)
    held: list[set[str]] = []
    real = in_place.check_in_place

    def counted(case: Any, seen: Any, *rest: Any) -> Any:
        held.append(set(seen))
        return real(case, seen, *rest)

    monkeypatch.setattr(in_place, "check_in_place", counted)
    verification = fuse(blocks()).report.verification
    assert verification is not None
    assert [fold.status for fold in verification.folds] == [Status.PASSED] * 3
    first, second, third = held
    assert first > second > third
    assert first - second == {"x", verification.folds[0].output}


def test_tensors_are_given_up_while_other_folds_are_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end only: the activations of a network take far more memory than its weights."""
    held: list[int] = []
    forget, give_back = prove_folds._forget, prove_folds._Judge._give_back

    def forgetting(seen: Any, *args: Any) -> int:
        freed = forget(seen, *args)
        held.append(len(seen))
        return freed

    def waiting(*args: Any) -> None:
        time.sleep(0.02)  # in this time, the fold before is compared in place
        give_back(*args)

    monkeypatch.setattr(prove_folds, "_forget", forgetting)
    monkeypatch.setattr(prove_folds._Judge, "_give_back", waiting)
    report = fuse(blocks(8)).report
    assert report.verification
    assert report.verification.status is Status.PASSED
    assert len(held) == 8
    assert held[-1] < held[0] - 4


@pytest.mark.parametrize("at_once", [True, False])
def test_a_job_says_when_nothing_is_left_to_wait_for(at_once: bool) -> None:
    gate = threading.Event()
    with Beside(at_once) as beside:
        started = beside.start(gate.wait)
        assert started.is_over() is not at_once
        gate.set()
        assert started()
        assert started.is_over()
