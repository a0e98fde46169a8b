"""Folds of one structure share sessions and what was proved; each is still judged by its own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds import structures as module
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.probe_sizes import sizes_of_border
from onnx_repfuse.verifier.folds.structures import Structures
from onnx_repfuse.verifier.session import DoesNotRun
from tests.verifier.test_fold_proofs import fold, info, node, rand

PASSED, FAILED = Status.PASSED, Status.FAILED


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that are opened."""
    models: list[Any] = []
    real = module.open_session

    def counted(model: Any, runtime: Any) -> Any:
        models.append(model)
        return real(model, runtime)

    monkeypatch.setattr(module, "open_session", counted)
    return models


def scaled(
    channels: int = 4,
    *,
    name: str = "",
    group: int = 1,
    kernel: int = 3,
    pads: Sequence[int] = (1, 1, 1, 1),
    stride: int = 1,
    wrong: float = 0.0,
    shift: float = 0.0,
) -> FoldCase:
    """Mul - Add - padded Conv as one Conv: right where nothing is added, as the padding is not shifted."""
    outputs = 1 if group == channels else 6
    per_group, scale = channels // group, rand(channels, 1, 1)
    weight = rand(outputs * group, per_group, kernel, kernel)
    # (groups, M / groups, C / groups, k, k) by (groups, 1, C / groups, 1, 1)
    moved = weight.reshape(group, outputs, per_group, kernel, kernel) * scale.reshape(
        group, 1, per_group, 1, 1
    )
    moved = moved.reshape(weight.shape)
    bias = (weight * np.float32(shift)).sum((1, 2, 3))
    moved.flat[moved.size // 2] += wrong
    before = [
        node("Mul", f"x s{name}", f"a{name}"),
        node("Add", f"a{name} b", f"c{name}"),
        node("Conv", f"c{name} w{name}", "y", pads=pads, strides=[stride] * 2, group=group),
    ]
    after = [node("Conv", f"x v{name} d", "y", pads=pads, strides=[stride] * 2, group=group)]
    first = {f"s{name}": scale, "b": np.full((channels, 1, 1), shift, np.float32), f"w{name}": weight}
    second = {f"v{name}": moved.astype(np.float32), "d": bias.astype(np.float32)}
    return fold(before, after, [info("x", ["n", channels, "h", "w"])], first, second)


def test_folds_with_other_names_weights_and_channels_share_their_sessions(opened: list[Any]) -> None:
    shared = Structures()
    for number, channels in enumerate((4, 4, 8)):
        case = scaled(channels, name=f"_{number}")
        assert probe(case, structures=shared).status is PASSED
        x = rand(2, channels, 9, 7)
        y = shared.open(case, case.before).run({"x": x})["y"]
        assert check_in_place(case, {"x": x, "y": y}, shared).status is PASSED
    assert len(opened) == 2


def test_folds_with_other_attributes_do_not(opened: list[Any]) -> None:
    shared = Structures()
    assert probe(scaled(), structures=shared).status is PASSED
    assert probe(scaled(pads=[0] * 4), structures=shared).status is PASSED
    assert len(opened) == 4


def test_no_more_sessions_stay_open_than_may(opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SESSIONS", 2)
    shared = Structures()
    for pads in (0, 1, 0):
        assert probe(scaled(pads=[pads] * 4), structures=shared).status is PASSED
    assert len(opened) == 6


@pytest.mark.parametrize("fault", [{"wrong": 1e-3}, {"shift": 0.01}])
def test_a_later_fold_is_judged_by_its_own_weights(fault: dict[str, float]) -> None:
    """A shift of the input is lost in the padding: that shows at the border alone, and not in a fold without one."""
    shared = Structures()
    assert probe(scaled(), structures=shared).status is PASSED
    assert shared.proved_rules(scaled(16)) is not None
    verdict = probe(scaled(16, **fault), structures=shared)
    assert verdict.status is FAILED
    assert probe(scaled(16, **fault)).status is FAILED


def test_of_a_later_fold_the_replacement_alone_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fold has shown that the oracle reads these nodes as the runtime does."""
    nodes: list[int] = []
    real = module.FoldSession.run

    def counted(self: module.FoldSession, feed: Any) -> Any:
        nodes.append(len(self.names))  # three nodes have more tensors than one
        return real(self, feed)

    monkeypatch.setattr(module.FoldSession, "run", counted)
    shared = Structures()
    assert probe(scaled(), structures=shared).status is PASSED
    assert len(set(nodes)) == 2
    nodes.clear()
    assert probe(scaled(16), structures=shared).status is PASSED
    assert len(set(nodes)) == 1


@pytest.mark.parametrize("runs", [True, False])
def test_where_a_later_fold_does_not_run_the_nodes_before_tell(
    runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a size that neither takes, nothing is shown; at one that only the nodes before take, a fault is."""
    shared = Structures()
    assert probe(scaled(), structures=shared).status is PASSED
    real = module.FoldSession.run
    later = scaled(16)
    names = later.side(later.after).anonymous.names

    def run(self: module.FoldSession, feed: Any) -> Any:
        if self.names == names or not runs:
            raise DoesNotRun("not at this size")
        return real(self, feed)

    monkeypatch.setattr(module.FoldSession, "run", run)
    assert probe(later, structures=shared).status is (FAILED if runs else PASSED)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        (3, 2, (0, 0, 1, 1)),
        (1, 2, (0, 0, 1, 1)),
        (3, 3, (0, 0, 2, 2)),
        (3, 2, (0, 0, 0, 1)),
        (2, 4, (0, 0, 1, 1)),
        (3, 9, (0, 0, 2, 2)),  # more remainders than are tried of a later fold
    ],
)
def test_of_strided_windows_the_padding_behind_the_input_is_read(
    kernel: int, stride: int, pads: Sequence[int]
) -> None:
    """At an input of 2k - 1 a window may end before it: whether it does depends on the size's remainder."""

    def case(shift: float) -> FoldCase:
        return scaled(kernel=kernel, stride=stride, pads=pads, shift=shift)

    shared = Structures()
    assert probe(case(0.0), structures=shared).status is PASSED
    assert probe(case(0.0), structures=shared).status is PASSED
    assert probe(case(0.5), structures=shared).status is FAILED


def test_a_fold_that_was_tried_at_fewer_sizes_proves_nothing_of_one_that_takes_more() -> None:
    """Of many weights, fewer sizes fit into the budget."""
    large, small = (scaled(channels, kernel=7, pads=[3] * 4) for channels in (768, 4))
    assert sizes_of_border(large) < sizes_of_border(small)
    shared = Structures()
    assert probe(large, structures=shared).status is PASSED
    assert shared.proved_rules(large) is not None
    assert shared.proved_rules(small) is None
    assert probe(small, structures=shared).status is PASSED
    assert shared.proved_rules(small) is not None
    assert shared.proved_rules(large) is not None


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_later_fold_passes_where_the_one_size_leaves_nothing(start: int) -> None:
    def case() -> FoldCase:
        cut = {"b": np.int64([start]), "e": np.int64([99]), "a": np.int64([2]), "s": rand(4, 1, 1)}
        before = [node("Mul", "x s", "m"), node("Slice", "m b e a", "y")]
        after = [node("Slice", "x b e a", "m"), node("Mul", "m s", "y")]
        return fold(before, after, [info("x", ["n", 4, "h", "w"])], cut, cut)

    shared = Structures()
    assert probe(case(), structures=shared).status is PASSED
    assert probe(case(), structures=shared).status is PASSED


def test_what_a_fold_proves_that_failed_is_nothing() -> None:
    shared = Structures()
    assert probe(scaled(wrong=0.1), structures=shared).status is FAILED
    assert shared.proved_rules(scaled()) is None


def test_depthwise_folds_share_what_was_proved_whatever_their_channels() -> None:
    shared = Structures()
    assert probe(scaled(4, group=4), structures=shared).status is PASSED
    assert shared.proved_rules(scaled(8, group=8)) is not None
    assert shared.proved_rules(scaled(8, group=2)) is None
    assert probe(scaled(8, group=8, wrong=1e-3), structures=shared).status is FAILED


def test_numbers_that_decide_sizes_belong_to_the_structure() -> None:
    def case(steps: int) -> FoldCase:
        values = {"b": np.int64([0]), "e": np.int64([99]), "a": np.int64([2]), "t": np.int64([steps])}
        inputs = [info("x", ["n", 4, "h", "w"])]
        first = [node("Slice", "x b e a t", "s"), node("Identity", "s", "y")]
        return fold(first, [node("Slice", "x b e a t", "y")], inputs, values, {**values, "t": np.int64([1])})

    shared = Structures()
    assert probe(case(1), structures=shared).status is PASSED
    later = probe(case(1), structures=shared)
    assert later.status is PASSED
    assert "no weights" in later.message
    assert probe(case(2), structures=shared).status is FAILED


def test_without_weights_the_number_of_channels_belongs_to_the_structure() -> None:
    """Of four channels the two modes are one; of eight, they are not."""

    def case(channels: int) -> FoldCase:
        before = [
            node("DepthToSpace", "x", "d", blocksize=2, mode="CRD"),
            node("SpaceToDepth", "d", "y", blocksize=2),
        ]
        return fold(before, [node("Identity", "x", "y")], [info("x", ["n", channels, "h", "w"])], {}, {})

    shared = Structures()
    assert probe(case(4), structures=shared).status is PASSED
    assert "no weights" in probe(case(4), structures=shared).message
    assert probe(case(8), structures=shared).status is FAILED


def test_elements_beside_the_models_are_used_as_those_in_them() -> None:
    whole = scaled()
    apart = {}
    for model in (whole.before, whole.after):
        for tensor in model.graph.initializer:
            apart[tensor.name] = whole.side(model).arrays[tensor.name]
            tensor.ClearField("raw_data")
    assert probe(FoldCase(whole.before, whole.after, weights_apart=apart)).status is PASSED
    wrong = {**apart, "v": apart["v"] * np.float32(1.001)}
    assert probe(FoldCase(whole.before, whole.after, weights_apart=wrong)).status is FAILED
