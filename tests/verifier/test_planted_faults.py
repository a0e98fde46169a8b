"""Faults planted where folds are computed: `fuse` undoes the wrong fold and reports it, or writes nothing.

`test_whole_model_faults.py` gives wrong folds to each check alone. Here everything after the fault is as a user has it.
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
from onnx_repfuse.planner.folds import emit
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import FoldVerdict
from tests.build import Net, counts
from tests.planted_faults import missed
from tests.random_properties import compare

Array = NDArray[Any]
FIRST, SECOND = 6, 4  # output channels, which tell the two folds apart


def one_weight(w: Array) -> None:
    w[5, 1, 0, -1] += 1e-3  # of a channel the Relu lets through


def zero_first_row(w: Array) -> None:
    w[:, :, 0] = 0


def swap_two_channels(w: Array) -> None:
    w[[0, 1]] = w[[1, 0]]


def negate_a_channel(w: Array) -> None:
    w[3] *= -1


def shift_the_kernel(w: Array) -> None:
    w[:] = np.roll(w, 1, 2)


WEIGHTS: dict[str, Callable[[Array], None]] = {
    "one weight": one_weight,
    "first row of the kernel": zero_first_row,
    "swapped channels": swap_two_channels,
    "sign": negate_a_channel,
    "shifted kernel": shift_the_kernel,
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
        materialized = emit.materialized

        def wrong_weight(kernel: Any, data_type: int) -> Array:
            weight = np.array(materialized(kernel, data_type))
            if kernel.geometry.c_out == FIRST:
                WEIGHTS[fault](weight)
            return weight

        monkeypatch.setattr(emit, "materialized", wrong_weight)
    elif fault == "mean":
        diagonal = batchnorm_arithmetic.diagonal

        def without_shift(node: Any, name: str, layout: Any, scale: Array, shift: Array, **more: Any) -> Any:
            return diagonal(node, name, layout, scale, shift * (layout.channels != FIRST), **more)

        monkeypatch.setattr(batchnorm_arithmetic, "diagonal", without_shift)
    else:
        new_node = emit._Emitter.node

        def new_wrong_node(emitter: Any, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
            is_first = op == "Conv" and emitter.constants[inputs[1]].shape[0] == FIRST
            if is_first and fault == "alignment":
                top, left, bottom, right = attributes["pads"]
                attributes["pads"] = [top - 1, left, bottom + 1, right]
            elif is_first:
                inputs = inputs[:2]  # without its bias
            new_node(emitter, op, inputs, output, **attributes)

        monkeypatch.setattr(emit._Emitter, "node", new_wrong_node)


def without_probes(plan: Any, *_: Any) -> tuple[list[Any], list[FoldVerdict]]:
    """As `prove_folds`, but nothing is judged."""
    return [], [FoldVerdict(fold.name, planned.scope.label) for planned, fold in plan.folds]


@pytest.mark.parametrize("stride", [1, 2])
def test_without_a_fault_both_blocks_fold(stride: int) -> None:
    model, feeds = network(stride)
    result = fuse(model)
    assert counts(result.model) == {"Conv": 2, "Relu": 2}
    assert compare(model, result.model, feeds) == len(feeds)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fault", [*WEIGHTS, *OTHERS])
def test_a_wrong_fold_is_undone_and_reported_and_the_right_one_stays(
    fault: str, stride: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network(stride)
    plant(fault, monkeypatch)
    result = fuse(model, tmp_path / "out.onnx")
    refusals = [r for r in result.report.refusals if r.reason is Reason.VERIFICATION]
    assert refusals, "the fault was not seen"
    assert all("was undone" in r.message and r.nodes for r in refusals)
    assert [fold.output for fold in result.report.folds] != []
    assert compare(model, onnx.load(tmp_path / "out.onnx"), feeds) == len(feeds)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fault", [*WEIGHTS, *OTHERS])
def test_without_probes_the_comparison_of_outputs_sees_the_fault_before_anything_is_written(
    fault: str, stride: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network(stride)
    plant(fault, monkeypatch)
    monkeypatch.setattr(run, "prove_folds", without_probes)
    output = tmp_path / "out.onnx"
    try:
        result = fuse(model, output)
    except VerificationError:
        assert list(tmp_path.iterdir()) == []
    else:  # bisection found the fold, and the run went on without it
        assert any(r.reason is Reason.VERIFICATION for r in result.report.refusals)
        assert compare(model, onnx.load(output), feeds) == len(feeds)


def test_the_command_line_never_exits_with_0_and_a_wrong_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, feeds = network()
    onnx.save(model, tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    plant("sign", monkeypatch)
    assert main(["in.onnx", "out.onnx", "-q"]) == 0
    assert compare(model, onnx.load("out.onnx"), feeds) == len(feeds)
    Path("out.onnx").unlink()
    monkeypatch.setattr(run, "prove_folds", without_probes)
    code = main(["in.onnx", "out.onnx", "-q"])
    assert code == 3 or compare(model, onnx.load("out.onnx"), feeds) == len(feeds)
    assert code == 0 or not Path("out.onnx").exists()


def test_without_the_check_the_fault_would_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted folds are wrong at all."""
    model, feeds = network()
    plant("one weight", monkeypatch)
    result = fuse(model, options=Options(check=False))
    with pytest.raises(AssertionError, match="deviations"):
        compare(model, result.model, feeds)


def test_an_add_wrongly_taken_not_to_broadcast_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(3)
    net.more_inputs = [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 3, "P", "Q"])]
    total = net.conv(net.op("Add", "x", "z"), 3, 3, 3)
    model = net.model(net.add(total, net.conv("x", 3, 3, 3)))
    monkeypatch.setattr(sum_identity, "equal_shapes", lambda *given: True)
    assert fuse(model, options=Options(check=False)).report.folds
    try:
        folds = fuse(model).report.folds
    except VerificationError:
        folds = ()
    assert not folds


def test_probes_see_the_faults_of_float32_folds() -> None:
    """The long form, `python -m tests.planted_faults`, sees 220 of 220."""
    planted, unseen, alarms = missed(2)
    assert planted == 40
    assert not unseen
    assert not alarms
