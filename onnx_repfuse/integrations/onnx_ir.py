"""Fusion as an onnx_ir pass, for the pass pipelines of onnxscript and onnx_ir; `pip install 'onnx-repfuse[onnx-ir]'`.

>>> import onnx_ir
>>> from onnx_repfuse.integrations.onnx_ir import FusePass
>>> FusePass().in_place
False
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir

from onnx_repfuse.api import Report, fuse
from onnx_repfuse.options import Options

__all__ = ["FusePass"]


class FusePass(onnx_ir.passes.FunctionalPass):
    """Fold the linear branches of an `onnx_ir.Model` and prove the result equal; the model given is not changed.

    The model is saved in a temporary folder with external data, since it may be larger than protobuf's 2 GB. The new
    model holds its weights in memory.

    Args:
        options: see `Options`.

    Attributes:
        report: of the last call; None before it.

    Raises:
        InputError, OutputError, VerificationError: as `fuse` does; inside a pass manager, onnx_ir's PassError is
            raised from them.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.report: Report | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """Fuse; `modified` says whether anything was folded or changed."""
        with tempfile.TemporaryDirectory(prefix="repfuse-") as name:
            target = Path(name) / "fused.onnx"
            self.report = fuse(model, target, self.options).report
            fused = onnx_ir.external_data.load_to_model(onnx_ir.load(target))
        return onnx_ir.passes.PassResult(fused, modified=bool(self.report.folds or self.report.changes))
