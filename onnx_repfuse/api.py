"""The library: `fuse`, `plan`, `verify`, `compare`.

Each takes a file, an `onnx.ModelProto`, or an `onnx_graphsurgeon.Graph`, and never changes it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.snapshot import safe_to_run
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.input_shapes import reshaped
from onnx_repfuse.pipeline.level import at_level
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.pipeline.run import run
from onnx_repfuse.pipeline.runtime import runtime_of
from onnx_repfuse.records.comparison import Comparison
from onnx_repfuse.records.report import Report
from onnx_repfuse.records.verdict import Verification

if TYPE_CHECKING:
    from onnx_repfuse.verifier.inputs import FeedSpec

__all__ = ["Result", "compare", "document_of", "fuse", "plan", "verify"]

Model: TypeAlias = "onnx.ModelProto | gs.Graph | str | os.PathLike[str]"


@dataclass(frozen=True)
class Result:
    """A fused model.

    Attributes:
        report: what was done, what was not, and how it was proved.
        path: the file written, or None.
        model: the fused model in memory; read from `path` on first use.
    """

    report: Report
    path: Path | None
    _load: Callable[[], onnx.ModelProto]

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The fused model in memory."""
        return self._load()


def fuse(
    model: Model,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Fold the linear branches of a model, prove the result equal to the original, and return it.

    Args:
        model: a file, or a model in memory; never changed.
        output: the file to write; None writes none. An older file is replaced, even if it is the input.
        options: see `Options`.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model cannot be read or does not run.
        OutputError: the result cannot be written.
        VerificationError: the result was not proved equal (or not observed, under `Options.strict`), and nothing was
            written; `report` has the figures.

    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    ...     <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {0.5}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }''')
    >>> result = fuse(model)
    >>> [node.op_type for node in result.model.graph.node], [node.op_type for node in model.graph.node]
    (['Mul'], ['Conv', 'Mul', 'Add'])
    >>> bool(result.report.verification)
    True
    """
    chosen = options or Options()
    target = None if output is None else Path(output)
    with document_of(model) as document:
        name = _name(model)
        if target is not None:
            report = run(document, target, chosen, name=name, progress=progress)
            return Result(report, target, lambda: onnx.load(target))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model.onnx"
            report = run(document, place, chosen, name=name, output_name="", progress=progress)
            fused = onnx.load(place)
        return Result(report, None, lambda: fused)


def plan(model: Model, options: Options | None = None) -> Report:
    """A dry run: what would be folded, what not and why. Reads no weights of convolutions, runs and writes nothing.

    Args:
        model, options: as for `fuse`; options that concern running and writing have no effect.

    Returns:
        The report, without verification.

    Raises:
        InputError: the model cannot be read.

    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    ...     <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {0.5}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }''')
    >>> report = plan(model)
    >>> [(fold.output, str(fold.kind)) for fold in report.folds], report.verification
    ([('y', 'branches')], None)
    """
    chosen = options or Options()
    with document_of(model) as document:
        return at_level(
            reshaped(document, chosen.overwrite_input_shapes) if chosen.overwrite_input_shapes else document,
            chosen,
            lambda given, final: make_report(make_plan(given, final), name=_name(model)),
            tempfile.TemporaryDirectory,
        )


def verify(
    original: Model,
    fused: Model,
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    provider: str | None = None,
    threads: int = 1,
) -> Verification:
    """Compare the outputs of two models that have the same inputs and outputs.

    The tolerance is a multiple of the noise: how far the original's outputs move when its inputs or weights change
    by one unit in the last place.

    Args:
        original, fused: files, or models in memory. Their inputs and outputs have the same names.
        feeds: shapes or data of the inputs; random data without it.
        rtol, atol: the tolerance, `|difference| <= atol + rtol * |y|`, instead of the one measured from noise.
        custom_ops: shared libraries with custom operators, registered with ONNX Runtime.
        provider: its execution provider to run both on; None is its CPU provider.
        threads: of an operator; 0 is one per core.

    Returns:
        The verdicts on every output; true if they are equal.

    Raises:
        InputError: a model cannot be read, or the original does not run.
        UsageError: the installed ONNX Runtime does not have the provider.

    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    ...     <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {0.5}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }''')
    >>> bool(verify(model, fuse(model).model))
    True
    """
    from onnx_repfuse.verifier.outputs.compare import verify_outputs

    runtime = runtime_of(Options(custom_ops=tuple(map(Path, custom_ops)), provider=provider, threads=threads))
    with _runnable(original, fused) as (first, second):
        return verify_outputs(first, second, spec=feeds, rtol=rtol, atol=atol, runtime=runtime)


def compare(
    first: Model,
    second: Model,
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    provider: str | None = None,
    threads: int = 1,
    by_order: bool = False,
    layers: bool = False,
) -> Comparison:
    """Compare any two models: the verdicts of `verify`, error statistics, interfaces, and the tensors inside.

    Between float32 and float16, the noise of float16 is the measure.

    Args:
        first, second: files, or models in memory.
        feeds: shapes or data of the first model's inputs; random data without it.
        rtol, atol: the tolerance, `|difference| <= atol + rtol * |y|`, instead of the one measured from noise.
        custom_ops, provider, threads: as of `verify`.
        by_order: match inputs and outputs by their order, not by name.
        layers: compare every tensor that both have, on the first input; `Comparison.layers.first_divergence` is the
            first that differs by more than noise, with the node that computes it.

    Returns:
        The comparison; true if all outputs are equal.

    Raises:
        InputError: a model cannot be read, or the first does not run.
        UsageError: the installed ONNX Runtime does not have the provider.

    >>> text = '''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    ...     <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {SCALE}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }'''
    >>> models = [onnx.parser.parse_model(text.replace("SCALE", scale)) for scale in ("0.5", "0.6")]
    >>> result = compare(*models, layers=True)
    >>> bool(result), result.layers.first_divergence.tensor, result.layers.first_divergence.first.op
    (False, 'm', 'Mul')
    """
    from onnx_repfuse.verifier.comparing.two_models import compare_models

    runtime = runtime_of(Options(custom_ops=tuple(map(Path, custom_ops)), provider=provider, threads=threads))
    with _runnable(first, second) as (one, other):
        return compare_models(
            one, other, spec=feeds, rtol=rtol, atol=atol, runtime=runtime, by_order=by_order, layers=layers
        )


@contextmanager
def _runnable(*models: Model) -> Iterator[tuple[onnx.ModelProto | Path, ...]]:
    """Models as sessions take them: those with external data as copies that no other program can shorten.

    Raises InputError for a file that cannot be read: it is not a different model.
    """
    given = [_plain(model) for model in models]
    with safe_to_run(*(model for model in given if isinstance(model, Path))) as files:
        paths = iter(files)
        yield tuple(next(paths) if isinstance(model, Path) else model for model in given)


def _plain(model: Model) -> onnx.ModelProto | Path:
    """A path as it is, a graph as a ModelProto. Raises InputError for anything else."""
    if isinstance(model, str | os.PathLike):
        return Path(model)
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, gs.Graph):
        exported: onnx.ModelProto = gs.export_onnx(model.copy())
        return exported
    raise InputError(
        f"a model is a path, an onnx.ModelProto or a graphsurgeon Graph, not {type(model).__name__}"
    )


def _name(model: Model) -> str:
    return str(model) if isinstance(model, str | os.PathLike) else ""


def document_of(model: Model) -> Document:
    """The model opened for planning, to be closed by a `with` statement. Raises InputError."""
    plain = _plain(model)
    return Document.open(plain) if isinstance(plain, Path) else Document.from_model(plain)
