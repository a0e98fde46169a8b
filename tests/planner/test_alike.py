"""What is not tried for operators that look alike is of no use to them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_repfuse
from benchmarks.synthetic import write
from onnx_repfuse import Options
from onnx_repfuse.cli.explain import explain
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner import alike, candidates
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.planner.plan_scope import cover_scope
from tests.build import Net

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.train*.onnx"))


def same_as_everything(model: Path | onnx.ModelProto, options: Options | None = None) -> bool:
    """Whether a plan is what comes of trying every combination for every operator."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for worth in (alike.WORTH, candidates.PRODUCT + 1):
            patch.setattr(alike, "WORTH", worth)
            plan = onnx_repfuse.plan(model, options=options)
            found.append((plan.after, plan.folds, plan.refusals))
    return found[0] == found[1]


@pytest.mark.parametrize("cost", ["ort-cpu", "macs"])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name.removesuffix(".onnx"))
def test_what_was_useless_to_one_operator_is_useless_to_its_likes(path: Path, cost: str) -> None:
    assert same_as_everything(path, Options(cost=cost))


def test_a_block_is_tried_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    kept = alike.of_no_use

    def counted(
        found: dict[int, candidates.Candidate], entry: candidates.Entry, *, final: bool
    ) -> frozenset[int]:
        tried.append(len(found))
        return kept(found, entry, final=final)

    monkeypatch.setattr(sys.modules[Cover.__module__], "of_no_use", counted)
    write("blocks", 160, 4, tmp_path / "blocks.onnx")
    report = onnx_repfuse.plan(tmp_path / "blocks.onnx")
    assert len(report.folds) == 20
    assert len(tried) == 2  # two Adds a block


def test_likes_have_the_same_limits() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    y = "x"
    for kernel in ((1, 1), (1, 3)):  # what is too much for the first is not for the second
        parts = [net.conv(y, 4, 4, (1, 3)), *(net.conv(y, 4, 4, 1, group=4) for _ in range(2))]
        inner = net.op("Neg", net.op("Neg", net.op("Sum", *parts, net.conv(y, 4, 4, kernel))))
        outer = net.op("Sum", inner, net.conv(y, 4, 4, (3, 1)), net.conv(y, 4, 4, 1, group=4))
        y = net.op("Relu", outer)
    assert same_as_everything(net.model(y))


def test_a_tensor_read_by_a_split_with_a_dead_output_is_looked_through() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    total = net.op("Sum", net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1))
    half, _ = net.op("Split", total, net.const(np.array([2, 2])), outputs=2, axis=1)
    model = net.model(net.op("Relu", net.conv(half, 2, 4, 1)))
    with Document.from_model(model) as document:
        (scope,) = read_scopes(document)
        regions = cover_scope(scope, Options()).regions
    assert regions.is_private(total)
    assert not regions.is_final(total)


def test_the_forms_of_each_are_explained(tmp_path: Path) -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    y, sums = "x", []
    for _ in range(2):
        away = net.op("Relu", net.op("Neg", y))
        sums.append(net.op("Sum", net.conv(y, 4, 4, 3), net.conv(y, 4, 4, 1), net.conv(away, 4, 4, 1)))
        y = net.op("Relu", sums[-1])
    onnx.save(net.model(y), tmp_path / "model.onnx")
    first, second = (explain(str(tmp_path / "model.onnx"), name).count(" - ") for name in sums)
    assert first == second > 2


KERNELS = ((1, 1), (3, 3), (1, 3), (3, 1))


def blocks_that_differ_a_little(seed: int) -> onnx.ModelProto:
    """Three blocks of one random tree of sums; in two of them one convolution may have another kernel."""
    rng = np.random.default_rng(seed)
    side = int(rng.choice([4, 8, 28]))
    net = Net(4, shape=(1, 4, side, side), seed=seed)
    plan, y = int(rng.integers(1 << 30)), "x"
    for block in range(3):
        tree, other = np.random.default_rng(plan), int(rng.integers(12)) if block else -1
        count = 0

        def leaf(x: str, tree: np.random.Generator = tree, other: int = other) -> str:
            nonlocal count
            kind, group, bias = int(tree.integers(5)), int(tree.choice([1, 4])), bool(tree.integers(2))
            if kind == 4:
                return net.bn(x, 4)
            count += 1
            kernel = KERNELS[(kind + (count == other)) % 4]
            return net.conv(x, 4, 4, kernel, group=group, bias=bias)

        def total(depth: int, sources: list[str], tree: np.random.Generator = tree) -> str:
            parts = [
                total(depth - 1, sources)
                if depth and tree.random() < 0.4
                else leaf(sources[int(tree.integers(len(sources)))])
                for _ in range(int(tree.integers(2, 5)))
            ]
            found = net.op("Sum", *parts)
            return str(net.op("Neg", found) if tree.random() < 0.3 else found)

        sources = [y, net.op("Relu", net.op("Neg", y))][: 1 + plan % 2]
        half, _ = net.op("Split", total(2, sources), net.const(np.array([2, 2])), outputs=2, axis=1)
        y = net.op("Relu", net.conv(half, 2, 4, 1))
    return net.model(y)


def test_nothing_is_missed_in_blocks_that_differ_a_little() -> None:
    for seed in range(120):
        assert same_as_everything(blocks_that_differ_a_little(seed)), seed
