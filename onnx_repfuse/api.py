"""The library: `fuse`, `plan`, `verify`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnx_repfuse.options import Options
from onnx_repfuse.pipeline import describe, make_plan, open_document, run
from onnx_repfuse.report.record import Report
from onnx_repfuse.verify.verdict import Verification

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_repfuse.verify.feeds import FeedSpec

__all__ = ["Result", "fuse", "plan", "verify"]


@dataclass(frozen=True)
class Result:
    """A fused model.

    Attributes:
        report: what was done, what was not, and how it was proved.
        path: the file written, or None.
    """

    report: Report
    path: Path | None
    _made: Callable[[], onnx.ModelProto]

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The fused model in memory."""
        return self._made()


def fuse(
    model: onnx.ModelProto | gs.Graph | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Fold the linear branches of a model, prove the result equal to the original, and return it.

    Args:
        model: a file, or a model in memory; never changed.
        output: where to write the result; nothing is written without it.
        options: see `Options`.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model cannot be read or does not run.
        OutputError: the result cannot be written.
        VerificationError: the result was not proved equal; nothing was written.
    """
    chosen = options or Options()
    target = None if output is None else Path(output)
    with open_document(model) as document:
        name = str(model) if isinstance(model, str | os.PathLike) else ""
        if target is not None:
            done = run(document, target, chosen, name=name, progress=progress)
            return Result(done.report, target, lambda: onnx.load(target))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model.onnx"
            done = run(document, place, chosen, name=name, progress=progress)
            fused = onnx.load(place)
        return Result(done.report, None, lambda: fused)


def plan(
    model: onnx.ModelProto | gs.Graph | str | os.PathLike[str], options: Options | None = None
) -> Report:
    """A dry run: what would be folded, what not and why. Reads no kernel and writes nothing."""
    chosen = options or Options()
    with open_document(model) as document:
        planned = make_plan(document, chosen)
        name = str(model) if isinstance(model, str | os.PathLike) else ""
        return describe(planned, chosen, 0, [], None, {}, name, "")


def verify(
    original: onnx.ModelProto | str | os.PathLike[str],
    fused: onnx.ModelProto | str | os.PathLike[str],
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Verification:
    """Compare the outputs of two models with one interface, calibrated by the original's own noise.

    Raises:
        InputError: the original does not run.
    """
    from onnx_repfuse.verify.outputs import verify_outputs

    first, second = (Path(m) if isinstance(m, str | os.PathLike) else m for m in (original, fused))
    return verify_outputs(first, second, feeds=feeds, rtol=rtol, atol=atol)
