"""Random graphs, linear and not, and the properties that each must have.

    python -m tests.random_graphs --examples 20000 --seed 1

draws that many. It prints the first failure, reduced to the steps it needs, and exits with code 1.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from onnx_repfuse import InputError, Options, fuse
from onnx_repfuse.records.report import Report
from tests.build import Net
from tests.random_builder import Builder
from tests.random_steps import grow, steps
from tests.reference import InvalidError, Tally, Value, evaluate

Array = NDArray[Any]
Recipe = dict[str, Any]
TALLY = Counter[str]()
SPACES = ((1, 1, 2), (2, 4, 1), (3, 3, 3), (5, 6, 4))  # the last is the largest
WORST = {"float32": 0.0, "float16": 0.0}
ALLOWED = 16  # standard deviations
UNCHECKED = Options(check=False)  # so that a wrong fold is seen here, not undone by verification

recipes: st.SearchStrategy[Recipe] = st.fixed_dictionaries(
    {
        "steps": steps(),
        "channels": st.sampled_from([4, 2, 3, 1]),
        "rank": st.sampled_from([2, 2, 2, 2, 1, 3]),
        "dynamic": st.sampled_from([True, True, False]),
        "half": st.sampled_from([False] * 5 + [True]),
        "opset": st.sampled_from([17, 9, 11, 13, 18, 20, 17, 13, 6]),
        "old": st.sampled_from([False] * 5 + [True]),
        "second": st.sampled_from([""] * 4 + ["same", "loose"]),
        "outputs": st.lists(st.integers(0, 9), max_size=2),
        "all_outputs": st.booleans(),
        "annotated": st.booleans(),
        "constants": st.sampled_from([False] * 4 + [True]),
        "range": st.sampled_from([1, 1, 1, 255, 0.01]),
        "external": st.sampled_from([False] * 9 + [True]),
        "seed": st.integers(0, 1000),
    }
)


def build(recipe: Recipe) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """A model, and feeds of several sizes (one if it is static), some so small that padding reaches most outputs."""
    rank, channels, opset = recipe["rank"], recipe["channels"], recipe["opset"]
    dtype = np.dtype(np.float16 if recipe["half"] else np.float32)
    spaces = [s[:rank] for s in SPACES] if recipe["dynamic"] else [SPACES[-1][:rank]]
    symbols: tuple[int | str, ...] = ("N", channels, *("H", "W", "D")[:rank])
    second_shape: tuple[int | str, ...] = symbols
    if recipe["second"] == "loose":
        second_shape = ("N", channels, *("H2", "W2", "D2")[:rank])
    rng = np.random.default_rng(recipe["seed"])
    feeds = []
    for number, space in enumerate(spaces):
        batch = 1 + number % 2 if recipe["dynamic"] else 2
        feed = {"x": (rng.standard_normal((batch, channels, *space)) * recipe["range"]).astype(dtype)}
        if recipe["second"]:
            one = (1,) * rank if recipe["second"] == "loose" and number == 1 else space
            feed["x2"] = rng.standard_normal((batch, channels, *one)).astype(dtype)
        feeds.append(feed)
    if not recipe["dynamic"]:
        symbols = second_shape = feeds[0]["x"].shape
    # IR version 3 keeps initializers among the graph inputs
    net = Net(
        shape=symbols,
        opset=opset,
        ir=3 if recipe["old"] and opset < 10 else 8,
        dtype=dtype,
        seed=recipe["seed"],
    )
    if recipe["second"]:
        net.more_inputs.append(
            helper.make_tensor_value_info("x2", helper.np_dtype_to_tensor_dtype(dtype), second_shape)
        )
    builder = Builder(net, feeds)
    builder.nodes_as_constants = recipe["constants"]
    grow(builder, recipe["steps"])
    computed = [n for node in net.nodes if node.op_type != "Constant" for n in node.output]
    if not computed:
        builder.op("Identity", "x")
        computed = [builder.pick(0)]
    read = {n for node in net.nodes for n in node.input}
    wanted = [computed[-1], *(computed[-1 - back % len(computed)] for back in recipe["outputs"])]
    if recipe["all_outputs"]:
        wanted += [n for n in computed if n not in read]
    kept = [feeds[i] for i in sorted(builder.alive)]
    model = net.model(*dict.fromkeys(wanted))
    # ONNX wants a shape for each output: a tensor of unknown rank is put out as a vector.
    unknown = {o.name for o in model.graph.output if not o.type.tensor_type.HasField("shape")}
    if unknown:
        flat = {name: str(net.op("Reshape", name, builder.ints(-1))) for name in unknown}
        model = net.model(*dict.fromkeys(flat.get(name, name) for name in wanted))
        for output in model.graph.output:
            if output.name in flat.values() and not output.type.tensor_type.shape.dim:
                output.type.tensor_type.shape.dim.add()
    if recipe["annotated"]:
        model = onnx.shape_inference.infer_shapes(model)
    return model, kept


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
    if any(node.op_type == "If" for node in first.graph.node):
        pairs.append((_other_branches(first), _other_branches(second)))
    for one, other in pairs:
        ran += _compare(one, other, feeds)
    return ran


def _other_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the conditions of all Ifs, the only bools there are, turned round."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = (node for node in copy.graph.node if node.op_type == "Constant")
    for tensor in (*copy.graph.initializer, *(a.t for node in nodes for a in node.attribute)):
        if tensor.data_type == onnx.TensorProto.BOOL:
            turned = np.logical_not(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    return copy


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
        values = evaluate(first, feed, Tally(u, tiny))
        if any(np.abs(v.x).max(initial=0) > top for v in values.values() if v.x.dtype.kind == "f"):
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


def examine(recipe: Recipe, options: Options = UNCHECKED) -> Report:
    """Everything that must hold."""
    model, feeds = build(recipe)
    return examine_model(model, feeds, options)


def examine_model(
    model: onnx.ModelProto, feeds: list[dict[str, Array]], options: Options = UNCHECKED
) -> Report:
    """Everything that must hold."""
    is_inferable = _can_be_inferred(model)
    original = plain(model)
    options = _sized(model, feeds[-1], options) if options.check else options
    result = fuse(model, options=options)
    fused, report = result.model, result.report
    assert plain(model) == original, "the input was changed"
    TALLY["examples"] += 1
    changes = (*report.folds, *report.changes)
    if not changes:
        assert plain(fused) == original, "changed without a fold"
        return report
    TALLY["folded"] += 1
    TALLY.update(f"fold: {change.kind}" for change in changes)
    onnx.checker.check_model(fused, full_check=is_inferable)
    TALLY["compared"] += bool(compare(model, fused, feeds))
    assert [r.message for r in report.refusals if r.reason.value == "verification"] == []
    before, after = macs(model, feeds[-1]), macs(fused, feeds[-1])
    if after > before and any(d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim):
        usual = {n: np.zeros((*a.shape[:2], *(8 * d for d in a.shape[2:]))) for n, a in feeds[-1].items()}
        try:
            before, after = (
                macs(model, usual),
                macs(fused, usual),
            )  # sizes at which some outputs do not touch the padding
        except InvalidError:  # a product over the last axis runs at one size only
            TALLY["multiply-adds rise at a tiny size"] += 1
            after = before
    assert after <= before, f"{after} multiply-adds instead of {before}"
    assert report.before.macs is None or report.after.macs is None or report.after.macs <= report.before.macs
    assert len(_inner(fused)) <= len(_inner(model)), "more nodes"
    assert plain(fuse(model, options=options).model) == plain(fused), "two runs differ"
    second = fuse(fused, options=options)
    again = [
        *[fold.output for fold in second.report.folds],
        *[change.claim for change in second.report.changes],
    ]
    assert not again, f"a second run changes {again}"
    assert plain(second.model) == plain(fused), "a second run changes bytes"
    return report


def _can_be_inferred(model: onnx.ModelProto) -> bool:
    """Whether shape inference takes a model, which must be valid; it does not where branches differ in rank."""
    onnx.checker.check_model(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _sized(model: onnx.ModelProto, feed: dict[str, Array], options: Options) -> Options:
    """Options with the size of the last feed, if verification finds none at which the model runs."""
    try:
        fuse(model, options=options)
    except InputError as error:
        if "runs at no size that was tried" not in str(error):
            raise
        options = replace(options, input_shapes={name: value.shape for name, value in feed.items()})
    return options


def _inner(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type != "Constant"]


def hunt(examples: int, seed: int, options: Options = UNCHECKED) -> str | None:
    """Draw examples; return the first failure, reduced to the steps it needs, or None."""

    @seeded(seed)
    @settings(
        max_examples=examples,
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes)
    def test(recipe: Recipe) -> None:
        last.append(recipe)
        examine(recipe, options)

    last: list[Recipe] = []
    try:
        test()
    except Exception as error:
        recipe = last[-1]
        for number in reversed(range(len(recipe["steps"]))):
            fewer = {**recipe, "steps": [s for i, s in enumerate(recipe["steps"]) if i != number]}
            if _fails(fewer, options):
                recipe = fewer
        return f"{type(error).__name__}: {error}\n{recipe}"
    return None


def _fails(recipe: Recipe, options: Options) -> bool:
    try:
        examine(recipe, options)
    except Exception:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="with the package's own proof")
    arguments = parser.parse_args()
    start = time.perf_counter()
    found = hunt(arguments.examples, arguments.seed, Options(check=arguments.check))
    print(f"seed {arguments.seed}: {dict(TALLY)}, worst {WORST}, {time.perf_counter() - start:.0f} s")
    print(found or "nothing found")
    return int(found is not None)


if __name__ == "__main__":
    raise SystemExit(main())
