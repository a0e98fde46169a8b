"""What the planner leaves out to be fast changes nothing: prices are estimated, and few combinations are tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

import onnx_repfuse
from benchmarks.synthetic import write
from onnx_repfuse import InputError, Options
from onnx_repfuse.algebra.kernels import Composed, Scaled, Stored, Total
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner.cover_scope import cover_scope
from onnx_repfuse.planner.search import candidates
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check
from tests.random_graphs import Recipe, build, recipes
from tests.random_properties import session

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.train*.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name.removesuffix(".onnx"))
def test_a_candidate_costs_what_is_written(path: Path) -> None:
    with Document.open(path) as document:
        compared = 0
        for scope in read_scopes(document):
            cover = cover_scope(scope, Options())
            for name, entry in cover.entries.items():
                for candidate in filter(None, (*entry.candidates, entry.choice)):
                    written = cover.lower(cover.lifts[name], candidate)
                    price = cover.price(cover.lifts[name], candidate)
                    assert (price is None) == (written is None)
                    if price is not None and written is not None:
                        assert price == candidate.setup.plus(written.price)
                        compared += 1
    assert compared > 10


@settings(max_examples=75, derandomize=True, deadline=None, suppress_health_check=(HealthCheck.too_slow,))
@given(recipes)
def same_plan_as_exhaustive_search(recipe: Recipe) -> None:
    model, _ = build(recipe)
    found = []
    for bound in (candidates.FEW_COMBINATIONS, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(candidates, "FEW_COMBINATIONS", bound)
            patch.setattr(candidates, "MAX_COMBINATIONS", max(bound, candidates.MAX_COMBINATIONS))
            try:
                after = onnx_repfuse.plan(model).after
            except InputError:
                return
        found.append((after.macs, after.ops))
    assert found[0] == found[1]


def test_combinations_that_are_not_tried_were_more_expensive() -> None:
    same_plan_as_exhaustive_search()


def test_a_node_created_in_an_earlier_round_is_lifted_as_itself() -> None:
    net = Net(4)
    x = net.op("Relu", "x")
    # becomes one Conv; the next one cannot see its bias
    inner = net.op("Add", x, net.conv(x, 4, 4, 3, group=4))
    outer = net.conv(inner, 4, 4, 3)
    result = check(net.model(net.op("Relu", outer)), {"Relu": 2, "Conv": 2})
    refused = [refusal for refusal in result.report.refusals if refusal.reason is Reason.BORDER]
    assert [refusal.nodes for refusal in refused] == [(outer, inner)], result.report.refusals


def _chain(links: int) -> onnx.ModelProto:
    """`x + bn(conv(x))`, a number of times: its folds grow over several rounds."""
    net = Net(4)
    x = net.op("Relu", "x")
    for _ in range(links):
        x = net.op("Add", net.bn(net.conv(x, 4, 4, 1), 4), x)
    return net.model(net.op("Relu", x))


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel fails the test that reads it."""

    def read(*_: object) -> None:
        raise AssertionError("a kernel was read")

    for kind in (Stored, Composed, Total, Scaled):
        monkeypatch.setattr(kind, "rows", read)


@pytest.mark.parametrize("links", [2, 40, 80])
@pytest.mark.usefixtures("unreadable")
def test_no_kernel_is_read_in_any_round(links: int) -> None:
    after = onnx_repfuse.plan(_chain(links)).after
    assert after.ops == {"Conv": 1, "Relu": 2}


def test_a_deferred_bias_is_added_up_exactly() -> None:
    check(_chain(40), {"Conv": 1, "Relu": 2})


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name.removesuffix(".onnx"))
@pytest.mark.usefixtures("unreadable")
def test_no_kernel_of_a_network_is_read_and_the_multiply_adds_of_the_folds_add_up(path: Path) -> None:
    report = onnx_repfuse.plan(path)
    if report.before.macs is None or report.after.macs is None:
        assert path.name.startswith(("dbb_", "efficientvit"))  # sizes that no inference finds
        return
    absorbed = [node.name for fold in report.folds for node in fold.absorbed]
    saved = sum(fold.macs_before - fold.macs_after for fold in report.folds)
    shared = len(absorbed) > len(set(absorbed))  # a node that two folds absorb is on both bills
    assert saved == report.before.macs - report.after.macs or (
        shared and saved > report.before.macs - report.after.macs
    )


def test_the_multiply_adds_of_folds_that_grow_add_up(tmp_path: Path) -> None:
    path = tmp_path / "concats.onnx"
    write("concats", 800, 2, path)  # several rounds, and folds that two others build upon
    report = onnx_repfuse.plan(path)
    saved = sum(fold.macs_before - fold.macs_after for fold in report.folds)
    assert report.before.macs == report.after.macs
    assert saved == 0


@pytest.mark.parametrize("axis", [1, -1])
def test_a_concat_of_tensors_of_unknown_rank_does_not_say_how_many_channels_it_has(axis: int) -> None:
    net = Net(4, shape=(2, 4))
    unknown = net.behind_an_if()
    first = net.op("Gemm", unknown, net.random(4, 4), net.random(4))
    scaled = net.op("Mul", unknown, net.random(4))
    joined = net.op("Concat", first, scaled, axis=axis)
    model = net.model(net.op("Sum", joined, joined))
    result = onnx_repfuse.fuse(model, options=Options(check=False))
    feed = {"x": np.ones((2, 4), np.float32)}
    before, after = (session(one).run(None, feed)[0] for one in (model, result.model))
    assert before.shape == after.shape == (2, 8)
    assert np.allclose(before, after)
