"""Random graphs, linear and not, and the properties that each must have.

    python -m tests.random_graphs --examples 20000 --seed 1

draws that many. It prints what failed, reduced to the steps that are needed, and then exits with code 1.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from onnx import helper

from onnx_repfuse import InputError, Options, fuse
from onnx_repfuse.records.report import Report
from tests.build import Net
from tests.random_builder import Builder
from tests.random_properties import (
    TALLY,
    UNCHECKED,
    WORST,
    Array,
    a_function_gives_the_same,
    a_second_run_changes_nothing,
    choices_are_honoured,
    compare,
    external_data_changes_nothing,
    no_more_multiply_adds,
    plain,
    session,
    the_same_at_small_sizes,
)
from tests.random_steps import grow, steps
from tests.random_variants import VARIANTS, same_plan

Recipe = dict[str, Any]
SPACES = ((1, 1, 2), (2, 4, 1), (3, 3, 3), (5, 6, 4))  # the last is the largest
ALL_VARIANTS = False
REDUCED = 5  # failures of one kind that are shown

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
    computed = [n for node in net.nodes if node.op_type not in _NO_OUTPUTS for n in node.output]
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


# Constants, and the conditions of Ifs, which are bools.
_NO_OUTPUTS = ("Constant", "Cast", "And")


def examine(recipe: Recipe, options: Options = UNCHECKED) -> Report:
    """Everything that must hold."""
    model, feeds = build(recipe)
    report = examine_model(model, feeds, options)
    fused = fuse(model, options=UNCHECKED).model
    seed = recipe["seed"]
    chosen = list(VARIANTS)[seed % len(VARIANTS)]
    for variant in VARIANTS if ALL_VARIANTS else [chosen]:
        same_plan(model, fused, variant, UNCHECKED, seed)
    if (ALL_VARIANTS or seed % 5 == 0) and recipe["opset"] >= 12:
        a_function_gives_the_same(model, feeds, seed)
    if (ALL_VARIANTS or seed % 4 == 1) and (report.folds or report.changes):
        choices_are_honoured(model, report, feeds, seed)
    if recipe["external"]:
        external_data_changes_nothing(model, fused)
    return report


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
    assert not [note for note in report.notes if "please report" in note], "planning does not end"
    changes = (*report.folds, *report.changes)
    if not changes:
        assert plain(fused) == original, "changed without a fold"
        return report
    TALLY["folded"] += 1
    TALLY.update(f"fold: {change.kind}" for change in changes)
    onnx.checker.check_model(fused, full_check=is_inferable)
    TALLY["compared"] += bool(compare(model, fused, feeds))
    assert [r.message for r in report.refusals if r.reason.value == "verification"] == []
    if next(v.version for v in model.opset_import if not v.domain) >= 7:  # which ONNX Runtime runs
        TALLY["small sizes"] += the_same_at_small_sizes(model, fused, 0)
    saves = no_more_multiply_adds(model, fused, feeds)
    before, after = report.before.macs, report.after.macs
    assert before is None or after is None or after <= before, f"{after} multiply-adds reported, not {before}"
    if before == after and (before is not None or not saves):  # fewer multiply-adds may take more nodes
        assert len(_inner(fused)) <= len(_inner(model)), "more nodes"
    assert plain(fuse(model, options=options).model) == plain(fused), "two runs differ"
    a_second_run_changes_nothing(fused, options)
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
        session(model)
    except Exception:  # of what ONNX Runtime does not load, nothing can be proved
        return UNCHECKED
    try:
        fuse(model, options=options)
    except InputError as error:
        if "runs at no size that was tried" not in str(error):
            raise
        options = replace(options, input_shapes={name: value.shape for name, value in feed.items()})
    return options


def _inner(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type != "Constant"]


def hunt(examples: int, seed: int, options: Options = UNCHECKED) -> list[str]:
    """Draw examples; return the failures, each reduced to the steps it needs."""

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
        try:
            examine(recipe, options)
        except Exception as error:
            TALLY[f"FAILED: {_kind(error)}"] += 1
            if sum(_kind(error) == kind for kind, _ in failed) < REDUCED:
                failed.append((_kind(error), recipe))

    failed: list[tuple[str, Recipe]] = []
    test()
    return [_reduced(kind, recipe, options) for kind, recipe in failed]


def _kind(error: Exception) -> str:
    """What failed, without names and numbers."""
    text = f"{type(error).__name__}: {error}".split(chr(10))[0]
    return re.sub(r"[\[{(].*|\d[\d.e+-]*|\w*_\w*", "..", text)[:80]


def _reduced(kind: str, recipe: Recipe, options: Options) -> str:
    """The failure in words, and a recipe with fewer steps that fails likewise."""

    def failure(candidate: Recipe) -> str:
        try:
            examine(candidate, options)
        except Exception as error:
            return f"{type(error).__name__}: {error}" if _kind(error) == kind else ""
        return ""

    for number in reversed(range(len(recipe["steps"]))):
        fewer = {**recipe, "steps": [s for i, s in enumerate(recipe["steps"]) if i != number]}
        if failure(fewer):
            recipe = fewer
    return f"{failure(recipe)}\n{recipe}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", action="store_true", help="each model in every spelling, not in one")
    parser.add_argument("--check", action="store_true", help="with the package's own proof")
    arguments = parser.parse_args()
    global ALL_VARIANTS
    ALL_VARIANTS = arguments.variants
    start = time.perf_counter()
    found = hunt(arguments.examples, arguments.seed, Options(check=arguments.check))
    print(f"seed {arguments.seed}: {dict(TALLY)}, worst {WORST}, {time.perf_counter() - start:.0f} s")
    print("\n".join(found) or "nothing found")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
