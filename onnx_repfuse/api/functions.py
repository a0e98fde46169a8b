"""`fuse`, `plan`, `verify`, `compare`, `benchmark`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnx_repfuse import errors
from onnx_repfuse.api.comparisons import Comparison, Verification
from onnx_repfuse.api.given_models import Model, document_of, name_of, runnable
from onnx_repfuse.api.reports import Report, Result, VerificationError
from onnx_repfuse.errors import UsageError
from onnx_repfuse.modelfile.output_path import check_output
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.environment import Surroundings
from onnx_repfuse.pipeline.input_shapes import reshaped
from onnx_repfuse.pipeline.known_operators import check_operators
from onnx_repfuse.pipeline.level import at_level
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.plan_model import garbage_left, make_plan
from onnx_repfuse.pipeline.run import run
from onnx_repfuse.pipeline.runtime import runtime_of
from onnx_repfuse.records.outcome import Bench

if TYPE_CHECKING:
    from onnx_repfuse.verifier.user_inputs import Feeds

__all__ = ["benchmark", "compare", "document_of", "fuse", "plan", "verify"]


def fuse(
    model: Model,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    in_place: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Fold the linear branches of a model, prove the result equal to the original, and return it.

    Args:
        model: a file, or a model in memory; never changed.
        output: the file to write; None writes none. An older file is replaced, unless it is the input.
        options: see `Options`.
        in_place: the output may be the input, which is replaced then.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model cannot be read or does not run.
        UsageError: the output is the input, or no file.
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
    check_operators("Options.avoid", sorted(chosen.avoid))
    target = None if output is None else Path(output)
    if target is not None:
        inputs = [] if in_place or not name_of(model) else [name_of(model)]
        check_output(str(target), inputs, to_overwrite="in_place=True")
    name = name_of(model)
    around = Surroundings.of(chosen, input=name)
    if in_place:
        around = around.with_digests()
    try:
        with document_of(model) as document:
            if target is not None:
                done = run(document, target, chosen, name=name, progress=progress)
                report = Report.of(done, "file", around.after(output=target))
                return Result(report, target, lambda: onnx.load(target))
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "model.onnx"
                done = run(document, place, chosen, name=name, output_name="", progress=progress)
                fused = onnx.load(place)
            return Result(Report.of(done, "memory", around.after()), None, lambda: fused)
    except errors.VerificationError as error:
        failed = VerificationError(*error.args)
        if error.report is not None:
            failed.report = Report.of(error.report, "nothing", around.after())
        raise failed from error


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
    check_operators("Options.avoid", sorted(chosen.avoid))
    around = Surroundings.of(chosen, input=name_of(model))
    with garbage_left(), document_of(model) as document:
        report = at_level(
            reshaped(document, chosen.overwrite_input_shapes) if chosen.overwrite_input_shapes else document,
            chosen,
            lambda given, final, _: make_report(make_plan(given, final), name=name_of(model)),
            tempfile.TemporaryDirectory,
        )
    return Report.of(report, "plan", around.after())


def verify(
    original: Model,
    fused: Model,
    *,
    feeds: Feeds | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    provider: str | None = None,
    threads: int = 1,
) -> Verification:
    """Compare the outputs of two models that have the same inputs and outputs.

    The tolerance is a multiple of the noise: how far the original's outputs move when its inputs or weights change
    by one unit in the last place. Branches, bodies and functions that both have are also run alone, on tensors of the
    original; one that differs stands among the outputs.

    Args:
        original, fused: files, or models in memory. Their inputs and outputs have the same names.
        feeds: real inputs, a dict of arrays by input name for each run, or a `FeedSpec`; random data without it. The
            array alone will do for the only input.
        rtol, atol: the tolerance, `|difference| <= atol + rtol * |y|`, instead of the one measured from noise.
        custom_ops: shared libraries with custom operators, registered with ONNX Runtime.
        provider: its execution provider to run both on; None is its CPU provider.
        threads: of an operator; 0 is one per core.

    Returns:
        The verdicts on every output; true if they are equal.

    Raises:
        InputError: a model cannot be read, or the original does not run.
        UsageError: the installed ONNX Runtime does not have the provider, or `feeds` is nothing to feed.

    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    ...     <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {0.5}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }''')
    >>> bool(verify(model, fuse(model).model))
    True
    """
    from onnx_repfuse.verifier.scopes.in_both import verify_models
    from onnx_repfuse.verifier.user_inputs import given_feeds

    options = _options(custom_ops, provider, threads, rtol, atol)
    names = name_of(original), name_of(fused)
    around = Surroundings.of(options, first=names[0], second=names[1])
    with runnable(original, fused) as (first, second):
        spec = given_feeds(first, feeds)
        runtime = runtime_of(options)
        found = verify_models(first, second, spec=spec, rtol=rtol, atol=atol, runtime=runtime)
    return Verification.of(found, names, around.after())


def compare(
    first: Model,
    second: Model,
    *,
    feeds: Feeds | None = None,
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
        feeds: as of `verify`, by the names of the first model's inputs.
        rtol, atol: the tolerance, `|difference| <= atol + rtol * |y|`, instead of the one measured from noise.
        custom_ops, provider, threads: as of `verify`.
        by_order: match inputs and outputs by their order, not by name.
        layers: compare every tensor that both have, on the first input; `Comparison.layers.first_divergence` is the
            first that differs by more than noise, with the node that computes it.

    Returns:
        The comparison; true if all outputs are equal.

    Raises:
        InputError: a model cannot be read, or the first does not run.
        UsageError: the installed ONNX Runtime does not have the provider, or `feeds` is nothing to feed.

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
    from onnx_repfuse.verifier.user_inputs import given_feeds

    options = _options(custom_ops, provider, threads, rtol, atol)
    names = name_of(first), name_of(second)
    around = Surroundings.of(options, first=names[0], second=names[1])
    with runnable(first, second) as (one, other):
        found = compare_models(
            one,
            other,
            spec=given_feeds(one, feeds),
            rtol=rtol,
            atol=atol,
            runtime=runtime_of(options),
            by_order=by_order,
            layers=layers,
        )
    return Comparison.of(found, names, around.after())


def _options(
    custom_ops: Sequence[str | os.PathLike[str]],
    provider: str | None,
    threads: int,
    rtol: float | None = None,
    atol: float | None = None,
) -> Options:
    return Options(
        custom_ops=tuple(map(Path, custom_ops)), provider=provider, threads=threads, rtol=rtol, atol=atol
    )


def benchmark(
    original: Model,
    fused: Model,
    *,
    feeds: Feeds | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    provider: str | None = None,
    threads: int = 1,
    seconds: float = 5.0,
) -> Bench:
    """Time two models that take the same inputs, interleaved in this process, with ONNX Runtime's optimizations on.

    Args:
        original, fused: files, or models in memory. Inputs are matched by name, or by order if the names differ.
        feeds: as of `verify`; the first run is timed.
        custom_ops, provider, threads: as of `verify`.
        seconds: how long to measure; at least seven rounds are timed, however slow the models are.

    Returns:
        Milliseconds of both, their ratio, and in `.word` whether the second is "faster", "equal" or "slower".

    Raises:
        InputError: a model cannot be read, or does not run.
        UsageError: as of `verify`; or `seconds` is negative.

    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     block (float[1,1,8,8] x) => (float[1,1,8,8] y) { y = Relu(x) }''')
    >>> timing = benchmark(model, model, seconds=0)
    >>> timing.rounds, timing.shapes
    (7, {'x': (1, 1, 8, 8)})
    """
    from onnx_repfuse.pipeline.benchmark import measure
    from onnx_repfuse.verifier.user_inputs import given_feeds

    if not seconds >= 0:
        raise UsageError(f"seconds must be a number >= 0, not {seconds}")
    runtime = runtime_of(_options(custom_ops, provider, threads))
    with runnable(original, fused) as (first, second):
        return measure(first, second, given_feeds(first, feeds), runtime=runtime, seconds=seconds)
