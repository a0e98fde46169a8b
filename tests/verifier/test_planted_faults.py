"""Faults planted inside the package, through the whole of it: a wrong fold is undone and told, or nothing is written.

`tests/test_verify_faults.py` holds the judges against wrong folds one by one; here the fold itself is made wrong
where it is computed, and everything after it is as a user has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_repfuse import Options, fuse
from onnx_repfuse.cli.main import main
from onnx_repfuse.errors import VerificationError
from onnx_repfuse.lift import batchnorm_arithmetic, sum_identity
from onnx_repfuse.pipeline import run
from onnx_repfuse.planner import emit
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, counts
from tests.random_graphs import compare

Array = NDArray[Any]
FIRST, SECOND = 6, 4  # output channels tell the two folds apart


def _one_weight(w: Array) -> None:
    w[5, 1, 0, -1] += 1e-3  # of a channel the Relu lets through


def _border(w: Array) -> None:
    w[:, :, 0] = 0


def _swap(w: Array) -> None:
    w[[0, 1]] = w[[1, 0]]


def _sign(w: Array) -> None:
    w[3] *= -1


def _shift(w: Array) -> None:
    w[:] = np.roll(w, 1, 2)


WEIGHTS: dict[str, Callable[[Array], None]] = {
    "one weight": _one_weight,
    "border": _border,
    "swapped channels": _swap,
    "sign": _sign,
    "shifted": _shift,
}
OTHERS = ("mean", "alignment", "bias")


def network(stride: int = 1) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Two blocks with a Relu between them, each one fold; the first has `FIRST` channels."""
    net = Net(4)
    strides = [stride, stride]
    first = net.add(*(net.conv_bn("x", 4, FIRST, k, strides=strides) for k in (3, 1)))
    inner = net.op("Relu", first)
    last = net.add(net.conv_bn(inner, FIRST, SECOND, 3), net.conv(inner, FIRST, SECOND, 1))
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.standard_normal((1, 4, n, n + 1)).astype(np.float32)} for n in (1, 2, 5, 8)]
    return net.model(net.op("Relu", last)), feeds


def plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first fold wrong wherever it is computed."""
    if fault in WEIGHTS:
        right = emit.materialized

        def wrong(kernel: Any, data_type: int) -> Array:
            weight = np.array(right(kernel, data_type))
            if kernel.geometry.c_out == FIRST:
                WEIGHTS[fault](weight)
            return weight

        monkeypatch.setattr(emit, "materialized", wrong)
    elif fault == "mean":
        true = batchnorm_arithmetic.diagonal

        def ignorant(node: Any, name: str, layout: Any, scale: Array, shift: Array, **more: Any) -> Any:
            return true(node, name, layout, scale, shift * (layout.channels != FIRST), **more)

        monkeypatch.setattr(batchnorm_arithmetic, "diagonal", ignorant)
    else:
        build = emit._emit_convolution

        def crooked(step: Any, *rest: Any, **more: Any) -> None:
            made = rest[-1]

            def node(op: str, inputs: list[str], output: str, attrs: dict[str, Any]) -> None:
                if op == "Conv" and step.channels == FIRST and fault == "alignment":
                    top, left, bottom, right = attrs["pads"]
                    attrs = {**attrs, "pads": [top - 1, left, bottom + 1, right]}
                elif op == "Conv" and step.channels == FIRST:
                    inputs = inputs[:2]
                made(op, inputs, output, attrs)

            build(step, *rest[:-1], node, **more)

        monkeypatch.setattr(emit, "_emit_convolution", crooked)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_a_fault_both_blocks_fold(stride: int) -> None:
    model, feeds = network(stride)
    result = fuse(model)
    assert counts(result.model) == {"Conv": 2, "Relu": 2}
    assert compare(model, result.model, feeds) == len(feeds)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fault", [*WEIGHTS, *OTHERS])
def test_a_wrong_fold_is_undone_and_told_and_the_right_one_stays(
    fault: str, stride: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network(stride)
    plant(fault, monkeypatch)
    result = fuse(model, tmp_path / "out.onnx")
    told = [r for r in result.report.refusals if r.reason is Reason.VERIFICATION]
    assert told, "the fault was not seen"
    assert all("was undone" in r.message and r.nodes for r in told)
    assert [fold.output for fold in result.report.folds] != []
    assert compare(model, onnx.load(tmp_path / "out.onnx"), feeds) == len(feeds)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fault", [*WEIGHTS, *OTHERS])
def test_what_the_probes_would_miss_is_seen_before_anything_is_written(
    fault: str, stride: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network(stride)
    plant(fault, monkeypatch)
    monkeypatch.setattr(run, "prove", lambda *_: ([], []))
    output = tmp_path / "out.onnx"
    try:
        result = fuse(model, output)
    except VerificationError:
        assert list(tmp_path.iterdir()) == []
    else:  # the culprit was named and dropped
        assert any(r.reason is Reason.VERIFICATION for r in result.report.refusals)
        assert compare(model, onnx.load(output), feeds) == len(feeds)


def test_the_command_line_never_ends_well_with_a_wrong_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network()
    onnx.save(model, tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    plant("sign", monkeypatch)
    assert main(["in.onnx", "out.onnx", "-q"]) == 0
    assert compare(model, onnx.load("out.onnx"), feeds) == len(feeds)
    Path("out.onnx").unlink()
    monkeypatch.setattr(run, "prove", lambda *_: ([], []))
    code = main(["in.onnx", "out.onnx", "-q"])
    assert code == 3 or compare(model, onnx.load("out.onnx"), feeds) == len(feeds)
    assert code == 0 or not Path("out.onnx").exists()


def test_without_the_check_the_fault_would_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the plants above are wrong folds at all."""
    model, feeds = network()
    plant("one weight", monkeypatch)
    result = fuse(model, options=Options(check=False))
    with pytest.raises(AssertionError, match="deviations"):
        compare(model, result.model, feeds)


def test_an_add_that_is_wrongly_taken_not_to_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(3)
    net.more_inputs = [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 3, "P", "Q"])]
    total = net.conv(net.op("Add", "x", "z"), 3, 3, 3)
    model = net.model(net.add(total, net.conv("x", 3, 3, 3)))
    monkeypatch.setattr(sum_identity, "_equal_shapes", lambda *given: True)
    assert fuse(model, options=Options(check=False)).report.folds
    try:
        folds = fuse(model).report.folds
    except VerificationError:
        folds = ()
    assert not folds
