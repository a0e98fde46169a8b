"""A user's program, for type checkers only: what they must know of each public function, without a cast."""

from __future__ import annotations

from pathlib import Path

import onnx
from typing_extensions import assert_type

import onnx_repfuse
from onnx_repfuse.cli.main import main


def program() -> None:
    options = onnx_repfuse.Options(skip=frozenset({onnx_repfuse.Kind.POOL}))
    result = onnx_repfuse.fuse("model.onnx", options=options)
    assert_type(result, onnx_repfuse.Result)
    assert_type(result.model, onnx.ModelProto)
    assert_type(result.report, onnx_repfuse.Report)
    assert_type(result.path, Path | None)
    assert_type(onnx_repfuse.plan(result.model), onnx_repfuse.Report)
    assert_type(onnx_repfuse.verify("model.onnx", result.model), onnx_repfuse.Verification)
    assert_type(result.report.verification, onnx_repfuse.Verification | None)
    for fold in result.report.folds:
        assert_type(fold, onnx_repfuse.Fold)
    for refusal in result.report.refusals:
        assert_type(refusal.reason, onnx_repfuse.Reason)
    assert_type(main(["--version"]), int)
    onnx_repfuse.fusee  # type: ignore[attr-defined]  # noqa: B018 - a misspelled name is an error
