"""Every committed export, fused, is at least as small as what its author's own conversion makes of the network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.verifier import session

FOLDER = Path(__file__).parents[2] / "models"
TRAINED = sorted(FOLDER.glob("*.train*.onnx"))
KINDS = {
    # a Gemm behind a pool may become a Conv before it
    "Conv": ("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "BatchNormalization": ("BatchNormalization",),
    "Add": ("Add", "Sub", "Sum"),
    "MatMul": ("MatMul", "Gemm"),  # or a Gemm behind an average a MatMul before it
}


def tally(model: onnx.ModelProto) -> dict[str, int]:
    ops = Counter(node.op_type for node in model.graph.node)
    return {kind: sum(ops[op] for op in members) for kind, members in KINDS.items()}


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.name)
def test_no_more_than_the_author_leaves(path: Path) -> None:
    author = tally(onnx.load(path.with_name(path.name.replace(".train", ".deploy"))))
    result = fuse(onnx.load(path))
    ours = tally(result.model)
    assert all(ours[kind] <= author[kind] for kind in KINDS), (ours, author)
    undone = [r.message for r in result.report.refusals if r.reason is Reason.VERIFICATION]
    assert undone == []
    if result.report.folds:
        assert result.report.verification is not None
        assert result.report.verification.status.value == "passed"
        of_original, of_result = result.report.verification.runs
        assert of_original <= 6
        assert of_result <= 3


@pytest.mark.parametrize("name", ["levit", "efficientvit", "repvgg"])
def test_the_runs_that_are_reported_are_all_there_are(name: str, tmp_path: Path, monkeypatch) -> None:
    path = FOLDER / f"{name}.train.onnx"
    graph = onnx.load(path).graph
    outputs = {value.name for value in graph.output}
    sizes: list[int] = []
    real = session.Session.run

    def counted(self, feed, names=None):
        if outputs <= {port.name for port in self.outputs} and graph.input[0].name in feed:
            sizes.append(feed[graph.input[0].name].size)
        return real(self, feed, names)

    monkeypatch.setattr(session.Session, "run", counted)
    runs = fuse(path, tmp_path / "o.onnx").report.verification.runs
    assert sizes.count(max(sizes)) == sum(runs) <= 6 + 3


def test_what_has_nothing_to_fuse_counts_as_verified() -> None:
    result = fuse(FOLDER / "repvgg.deploy.onnx")
    assert not result.report.folds
    assert result.report.verification
    assert result.report.verification.unchanged
