"""Every committed export, fused, is at least as small as what its author's own conversion makes of the network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.reasons import Reason

FOLDER = Path(__file__).parent.parent / "models"
TRAINED = sorted(FOLDER.glob("*.train*.onnx"))
KINDS = {
    "Conv": ("Conv", "ConvTranspose"),
    "BatchNormalization": ("BatchNormalization",),
    "Add": ("Add", "Sub", "Sum"),
    "MatMul": ("Gemm", "MatMul"),
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


def test_what_has_nothing_to_fuse_counts_as_verified() -> None:
    result = fuse(FOLDER / "repvgg.deploy.onnx")
    assert not result.report.folds
    assert result.report.verification
    assert result.report.verification.unchanged
