"""A user's program, for type checkers only: what they must know of each public function, without a cast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
    assert_type(result.summary(verbose=True), str)
    result.report.save_html("report.html")
    result.save_json(Path("report.json"))
    batch = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    assert_type(onnx_repfuse.verify("model.onnx", result.model, feeds=batch), onnx_repfuse.Verification)
    assert_type(onnx_repfuse.compare("a.onnx", "b.onnx", feeds=[batch, batch]), onnx_repfuse.Comparison)
    timing = onnx_repfuse.benchmark("a.onnx", Path("b.onnx"), feeds=batch["input"])
    assert_type(timing, onnx_repfuse.Bench)
    assert_type(timing.ratio, tuple[float, float, float])
    onnx_repfuse.fuse("model.onnx", "model.onnx", in_place=True)
    assert_type(result.report.verification, onnx_repfuse.Verification | None)
    for fold in result.report.folds:
        assert_type(fold, onnx_repfuse.Fold)
    for refusal in result.report.refusals:
        assert_type(refusal.reason, onnx_repfuse.Reason)
    try:
        onnx_repfuse.fuse("model.onnx")
    except onnx_repfuse.VerificationError as error:
        assert_type(error.report, onnx_repfuse.Report | None)
        if error.report is not None:
            assert_type(error.report.verification, onnx_repfuse.Verification | None)
            error.report.save_html("failed.html")
    verification = onnx_repfuse.verify("a.onnx", "b.onnx")
    verification.save_json("verified.json")
    comparison = onnx_repfuse.compare("a.onnx", "b.onnx", layers=True)
    assert_type(comparison.verification, onnx_repfuse.Verification)
    assert_type(comparison.summary(), str)
    comparison.save_html(Path("compared.html"))
    assert_type(verification.names, tuple[str, str])
    assert_type(main(["--version"]), int)
    onnx_repfuse.verify("a.onnx", "b.onnx", feeds=3)  # type: ignore[arg-type]
    onnx_repfuse.fuse(3)  # type: ignore[arg-type]
    onnx_repfuse.fusee  # type: ignore[attr-defined]  # noqa: B018 - a misspelled name is an error
