"""What must hold of every model and its fused form, as functions that raise AssertionError where it does not."""

from __future__ import annotations

import glob
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.quiet_runtime import ort
from onnx_repfuse.records.report import Report
from onnx_repfuse.verifier.scopes.computed_scales import compute_scales
from tests.random_variants import ops, outlined
from tests.reference import InvalidError, Tally, Value, evaluate

Array = NDArray[Any]
TALLY = Counter[str]()
WORST = {"float32": 0.0, "float16": 0.0}
ALLOWED = 16  # standard deviations
SMALL = [(n, n, n) for n in range(1, 7)] + [(1, 6, 6), (6, 1, 6), (6, 2, 5), (2, 6, 3), (3, 5, 2), (6, 6, 1)]
UNCHECKED = Options(check=False)  # so that a wrong fold is seen here, not undone by verification


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """An ONNX Runtime session without graph optimizations, on one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def plain(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def compare(first: onnx.ModelProto, second: onnx.ModelProto, feeds: list[dict[str, Array]]) -> int:
    """Compare the second model in ONNX Runtime with the first in float64; returns the number of feeds that ran.

    The first model in ONNX Runtime must pass, too, so that a fault of the evaluator is not taken for one of the
    package.
    """
    ran = 0
    pairs = [(first, second)]
    if any(node.op_type == "If" for body in (first.graph, *first.functions) for node in body.node):
        pairs.append((_other_branches(first), _other_branches(second)))
    for one, other in pairs:
        ran += _compare(one, other, feeds)
    return ran


def _other_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the conditions of the Ifs turned round: the scalar bools; the others are always taken."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    bodies = (copy.graph, *copy.functions)
    nodes = (node for body in bodies for node in body.node if node.op_type == "Constant")
    for tensor in (*copy.graph.initializer, *(a.t for node in nodes for a in node.attribute)):
        if tensor.data_type == onnx.TensorProto.BOOL and not tensor.dims:
            turned = np.logical_not(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    return compute_scales(copy)


Run = Callable[[dict[str, Array]], dict[str, Array]]


def _runners(first: onnx.ModelProto, second: onnx.ModelProto) -> tuple[Run, Run] | None:
    """Both models in ONNX Runtime; below opset 7, which it does not run, in our own evaluator."""

    def in_runtime(model: onnx.ModelProto) -> Run:
        opened = session(model)
        names = [o.name for o in model.graph.output]
        return lambda feed: dict(zip(names, opened.run(names, feed), strict=True))

    def in_float64(model: onnx.ModelProto) -> Run:
        kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        names = [o.name for o in model.graph.output]

        def run(feed: dict[str, Array]) -> dict[str, Array]:
            values = evaluate(model, feed, Tally(0.0))
            return {name: values[name].x.astype(kind) for name in names}

        return run

    if next(v.version for v in first.opset_import if not v.domain) < 7:
        return in_float64(first), in_float64(second)
    try:
        before = in_runtime(first)
    except Exception as error:  # ONNX Runtime refuses some graphs that ONNX allows
        TALLY[f"no session: {str(error)[:200]}"] += 1
        return None
    return before, in_runtime(second)


def _compare(first: onnx.ModelProto, second: onnx.ModelProto, feeds: list[dict[str, Array]]) -> int:
    runners = _runners(first, second)
    if runners is None:
        return 0
    names = [o.name for o in first.graph.output]
    assert names == [o.name for o in second.graph.output]
    ran = 0
    for feed in feeds:
        kind = str(feed["x"].dtype)
        u, tiny, top = (2.0**-24, 0.0, 1e30) if kind == "float32" else (2.0**-11, 2.0**-25, 1e4)
        try:
            old = runners[0](feed)
        except Exception as error:
            TALLY[f"no run: {str(error)[:200]}"] += 1
            continue
        new = runners[1](feed)
        if not all(np.isfinite(value).all() for value in old.values() if value.dtype.kind == "f"):
            continue  # what vanishes in the model's type and is divided by then is no measure, either
        try:
            values = evaluate(first, feed, Tally(u, tiny))
        except InvalidError:  # a branch that no recipe entered made a tensor without elements
            TALLY["not evaluated"] += 1
            continue
        floats = [v.x for v in values.values() if v.x.dtype.kind == "f"]
        if not all((np.abs(x) <= top).all() for x in floats):  # NaN, as of 0/0, is no measure either
            continue
        ran += 1
        for name in names:
            _judge(name, values[name], old[name], new[name], kind, u, tiny)
    return ran


def _judge(name: str, truth: Value, was: Array, now: Array, kind: str, u: float, tiny: float) -> None:
    assert was.shape == now.shape == truth.x.shape, f"{name}: {was.shape} became {now.shape}"
    assert was.dtype == now.dtype
    scale = truth.e + u * np.abs(truth.x) + 2 * tiny
    for who, got in (("the evaluator", was), ("the result", now)):
        error = np.abs(got.astype(np.float64) - truth.x) / np.maximum(scale, 1e-300)
        assert not np.isnan(error).any(), f"{who}: {name} is not a number"
        assert error.max() < ALLOWED, f"{who}: {name} is off by {error.max():.3g} deviations"
        WORST[kind] = max(WORST[kind], float(error.max()))


def macs(model: onnx.ModelProto, feed: dict[str, Array]) -> int:
    """Multiply-adds of an evaluation."""
    tally = Tally(0.0)
    evaluate(model, feed, tally)
    return tally.macs


def no_more_multiply_adds(
    model: onnx.ModelProto, fused: onnx.ModelProto, feeds: list[dict[str, Array]]
) -> bool:
    """At the one size of a model, or at ordinary ones; a rise at sizes of a few pixels only is counted.

    There, most of what a convolution sees may be padding: a kernel composed of two that pad makes outputs from padding
    alone, which the first of the two would have left to the second.

    Returns whether there are fewer at some size. Behind an If no report knows the sizes.
    """
    larger = {n: np.zeros((*a.shape[:2], *(8 * d for d in a.shape[2:]))) for n, a in feeds[-1].items()}
    is_dynamic = any(d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim)
    saves = False
    for feed in [*feeds, larger] if is_dynamic else feeds:
        try:
            before = macs(model, feed)
        except InvalidError:  # a product over the last axis runs at one size only
            continue
        after = macs(fused, feed)
        saves |= after < before
        is_small = is_dynamic and feed is not larger
        if after > before and is_small:
            TALLY["multiply-adds rise at a small size"] += 1
        else:
            assert after <= before, f"{after} multiply-adds instead of {before} at {feed['x'].shape}"
    return saves


def a_second_run_changes_nothing(fused: onnx.ModelProto, options: Options) -> None:
    second = fuse(fused, options=options)
    again = [fold.output for fold in second.report.folds] + [c.claim for c in second.report.changes]
    assert not again, f"a second run folds {again}"
    assert plain(second.model) == plain(fused), "a second run changes bytes"


def the_same_at_small_sizes(model: onnx.ModelProto, fused: onnx.ModelProto, seed: int) -> int:
    """At sizes around those of windows: where a model runs, its result runs and agrees; returns at how many.

    Unless it concatenates an empty tensor, of which ONNX Runtime copies what was in memory.
    """
    try:
        before = session(_with_concatenated(model))
    except Exception as error:  # ONNX Runtime refuses some graphs that ONNX allows
        TALLY[f"no session: {str(error)[:200]}"] += 1
        return 0
    after, count, ran = session(fused), len(model.graph.output), 0
    for space in SMALL:
        feed = _feed_of(model, space, np.random.default_rng(seed))
        try:
            was = before.run(None, feed)
        except Exception:  # smaller than a window
            continue
        if any(value.size == 0 for value in was[count:]):
            continue
        try:
            now = after.run(None, feed)
        except Exception as error:
            raise AssertionError(f"does not run at {space}, as its original does: {error}") from error
        differences = [_rough_difference(*pair, space) for pair in zip(was[:count], now, strict=True)]
        for difference in filter(None, differences):
            # A quotient by what is nearly zero may differ so much: then float64 tells.
            assert compare(model, fused, [feed]), difference
        ran += 1
    return ran


def _with_concatenated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all tensors that are concatenated as further outputs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    given = {value.name for value in (*copy.graph.input, *copy.graph.initializer, *copy.graph.output)}
    names = {name for node in copy.graph.node if node.op_type == "Concat" for name in node.input}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(names - given))
    return copy


def _feed_of(model: onnx.ModelProto, space: tuple[int, ...], rng: np.random.Generator) -> dict[str, Array]:
    """Random inputs with these sizes where no size is fixed."""
    feed = {}
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        sizes = (1, 1, *space)
        shape = [dim.dim_value or size for dim, size in zip(kind.shape.dim, sizes, strict=False)]
        feed[value.name] = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feed


def _rough_difference(old: Array, new: Array, space: tuple[int, ...]) -> str:
    """Where two outputs differ by more than rounding does; a window cut otherwise is wrong by far more."""
    assert old.shape == new.shape, f"at {space}, {old.shape} became {new.shape}"
    was, now = old.astype(np.float64), new.astype(np.float64)
    if not was.size or not np.isfinite(was).all():
        return ""
    allowed = (1e-3 if old.dtype == np.float32 else 0.1) * (np.abs(was).max() + 1e-3)
    most = np.abs(was - now).max()
    return "" if most <= allowed else f"at {space}, off by {most:.3g}"


def a_function_gives_the_same(model: onnx.ModelProto, feeds: list[dict[str, Array]], seed: int) -> None:
    """The model as a function whose attributes refer to the call's."""
    fused = fuse(outlined(model, seed), options=UNCHECKED).model
    TALLY["as a function"] += 1
    TALLY["as a function: compared"] += bool(compare(model, fused, feeds))
    TALLY["as a function: folded alike"] += ops(fused) == ops(fuse(model, options=UNCHECKED).model)


def choices_are_honoured(
    model: onnx.ModelProto, report: Report, feeds: list[dict[str, Array]], seed: int
) -> None:
    """Some kinds skipped, or allowed alone, and some nodes kept.

    Args:
        model: the model.
        report: of the model, folded without choices.
        feeds: inputs.
        seed: chooses the kinds and the nodes.
    """
    rng = np.random.default_rng(seed)
    found = sorted({kind for fold in report.folds for kind in fold.kinds} | {c.kind for c in report.changes})
    some = frozenset(kind for kind in found if rng.random() < 0.5)
    names = [node.name for node in model.graph.node if node.name and node.op_type != "Constant"]
    kept = tuple(str(name) for name in rng.choice(names, min(2, len(names)), replace=False)) if names else ()
    choices = [Options(check=False, skip=some)]
    choices += [Options(check=False, only=some)] if some else []
    choices += [Options(check=False, keep=tuple(map(glob.escape, kept)))] if kept else []
    for options in choices:
        result = fuse(model, options=options)
        _only_what_is_allowed(result.report, options)
        if options.keep:
            _kept_as_they_were(model, result.model, result.report, kept)
        compare(model, result.model, feeds)
        no_more_multiply_adds(model, result.model, feeds)
        a_second_run_changes_nothing(result.model, options)
        TALLY["choices honoured"] += 1


def _only_what_is_allowed(report: Report, options: Options) -> None:
    """A fold of several kinds needs all of them."""
    for fold in report.folds:
        assert options.allows_all(frozenset(fold.kinds)), (
            f"{options} made a fold of {fold.kinds}: {fold.output}"
        )
        assert options.allows_all(frozenset([fold.kind])), (
            f"{options} made a fold of {fold.kind}: {fold.output}"
        )
    for change in report.changes:
        assert options.allows(change.kind), f"{options} made the change {change.claim}"


def _kept_as_they_were(
    model: onnx.ModelProto, fused: onnx.ModelProto, report: Report, kept: tuple[str, ...]
) -> None:
    before, after = ({node.name: node for node in one.graph.node} for one in (model, fused))
    gone = {ref.name for fold in report.folds for ref in fold.absorbed}
    for name in kept:
        assert name in after, f"{before[name].op_type} {name!r} was to be kept, and is gone"
        one, other = before[name], after[name]
        assert (one.op_type, _settings(one)) == (other.op_type, _settings(other)), f"{name!r} changed"
        assert list(one.output) == list(other.output), f"the outputs of {name!r} changed"
        assert name not in gone, f"{name!r} was to be kept, and was absorbed"


def _settings(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """The attributes but subgraphs, whose nodes have names of their own."""
    return [entry for entry in node.attribute if entry.type != onnx.AttributeProto.GRAPH]


def external_data_changes_nothing(model: onnx.ModelProto, fused: onnx.ModelProto) -> None:
    """From disk, with all weights in a file beside the model."""
    with tempfile.TemporaryDirectory() as folder:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        source, target = Path(folder) / "model.onnx", Path(folder) / "fused.onnx"
        onnx.save(copy, source, save_as_external_data=True, size_threshold=0)
        fuse(source, target, options=UNCHECKED)
        written = onnx.load(target)
    assert ops(written) == ops(fused), "external data changes the plan"
    weights = {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in fused.graph.initializer}
    assert weights == {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in written.graph.initializer}
