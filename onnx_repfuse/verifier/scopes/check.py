"""Each scope that has folds, run as a model of its own, before and after.

The inputs of a run may never enter a branch, and a Loop or a function may be fed otherwise by other inputs. So what
stands there is run by itself, on the tensors it had in the model and on others, and compared as whole models are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.verifier.distance import is_float_array
from onnx_repfuse.verifier.inputs import Feed, FeedKey, FeedSpec
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_names
from onnx_repfuse.verifier.noise import WEIGHTS_LIMIT, file_bytes
from onnx_repfuse.verifier.outputs.baseline import Baseline
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from onnx_repfuse.verifier.scopes.computed_scales import compute_scales
from onnx_repfuse.verifier.scopes.extract import ScopeModel, extract
from onnx_repfuse.verifier.scopes.feeds import (
    MAX_TRIED,
    element_type,
    example_of,
    feeds_seen,
    feeds_to_try,
)
from onnx_repfuse.verifier.scopes.instances import Frame, Key, Way, instances, resolve
from onnx_repfuse.verifier.scopes.loops import may_never_end
from onnx_repfuse.verifier.session import DoesNotRun, Model, all_nodes, load, open_session

__all__ = ["ScopeVerdict", "Terms", "check_scopes"]

# A scope of few elements shows little of its noise in the few draws that are made. A probe has judged each fold by its
# rounding errors; what is looked for here are wrong shapes and values.
_FACTOR = 8.0  # times the tolerance of whole outputs
_ROUNDS = 3  # of a Loop
_MAX_COMPARED = 48  # inputs on which the two sides are compared


class ScopeVerdict(NamedTuple):
    """The outcome for one scope: `message` says what differs, or why nothing could be compared.

    `output` has the figures of what differs.
    """

    key: tuple[str | int, ...]
    status: Status
    message: str
    inputs: int = 0
    output: OutputVerdict | None = None


class Terms(NamedTuple):
    """On what scopes run and how they are judged.

    Attributes:
        only_seen: on the tensors that they have in the model alone: whoever made the result may know their sizes.
        rtol, atol: replace the calibrated tolerance.
    """

    only_seen: bool = False
    rtol: float | None = None
    atol: float | None = None


_USUAL = Terms()


def check_scopes(
    baseline: Baseline,
    result: Model,
    keys: Sequence[Key],
    skeleton: onnx.ModelProto | None = None,
    terms: Terms = _USUAL,
) -> list[ScopeVerdict]:
    """Run subgraphs and function bodies of the original and of the result alone, and compare them.

    Args:
        baseline: the original, measured.
        result: the model to judge.
        keys: the scopes that have folds, as positions in `skeleton`.
        skeleton: the original with its nodes sorted, weights or not; None if they are.
        terms: how they are compared.

    Returns:
        One verdict per key; NOT_OBSERVED where nothing could be compared.
    """
    if not keys:
        return []
    if max(map(_bytes_of, (baseline.original, result))) > WEIGHTS_LIMIT:
        return [_not_observed(key, "the model is too large for that") for key in keys]
    pair = load(baseline.original), load(result)
    ways = {tuple(key): instances(skeleton or pair[0], key) for key in keys}
    seen = _tensors_of_main_graph(baseline, pair, [way for found in ways.values() for way in found])
    return [_judge(key, found, pair, seen, baseline.runtime, terms) for key, found in ways.items()]


def _bytes_of(model: Model) -> int:
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return len(model) if isinstance(model, bytes) else file_bytes(Path(model))


def _not_observed(key: Key, why: str) -> ScopeVerdict:
    return ScopeVerdict(tuple(key), Status.NOT_OBSERVED, why)


def _judge(
    key: Key,
    ways: list[Way],
    pair: tuple[onnx.ModelProto, onnx.ModelProto],
    seen: Sequence[Mapping[str, Any]],
    runtime: Runtime,
    terms: Terms,
) -> ScopeVerdict:
    """The verdict over all ways to a scope: a difference on one of them is enough."""
    compared, why = 0, "nothing calls it"
    for way in ways:
        try:
            frames = resolve(pair[0], way)
            before, after = extract(pair[0], frames), extract(pair[1], resolve(pair[1], way))
        except LookupError as error:
            why = f"'{error.args[0]}' is not found"
            continue
        if before.outside.keys() != after.outside.keys():
            why = "it reads other tensors than before"
            continue
        if terms.only_seen and _are_equal(before.model, after.model):
            compared += 1
            continue
        failed, count, why = _compare(before, after, seen, runtime, _states(frames[-1]), terms)
        if failed is not None:
            return ScopeVerdict(tuple(key), Status.FAILED, failed.message, count, failed)
        compared += count
    if not compared:
        return _not_observed(key, why)
    return ScopeVerdict(tuple(key), Status.PASSED, "", compared)


def _are_equal(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    return bool(first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True))


def _states(frame: Frame) -> dict[str, str]:
    """Output of the body of a Loop -> the input that takes it in the next round."""
    if frame.node is None or frame.node.op_type != "Loop":
        return {}
    return {f"output {number}": value.name for number, value in enumerate(frame.graph.input[2:], 1)}


def _compare(
    before: ScopeModel,
    after: ScopeModel,
    seen: Sequence[Mapping[str, Any]],
    runtime: Runtime,
    states: Mapping[str, str],
    terms: Terms,
) -> tuple[OutputVerdict | None, int, str]:
    """(what differs, on how many inputs they were compared, why on none)."""
    if may_never_end(before.model):
        return None, 0, "it holds a Loop, which may never end on other inputs"
    tries = _declared_inputs(before, after, seen, terms)
    if not tries:
        return None, 0, "not all that it reads is in the main graph"
    feeds, why = _feeds_that_run(before.model, tries, runtime, states)
    if not feeds:
        return None, 0, why
    verification = verify_outputs(
        before.model,
        after.model,
        spec=FeedSpec(data=tuple(feeds)),
        rtol=terms.rtol,
        atol=terms.atol,
        runtime=runtime,
        optimized=False,
    )
    differing = [
        verdict
        for verdict in verification.outputs
        if verdict.status is Status.FAILED and not verdict.max_abs <= _FACTOR * verdict.tolerance
    ]
    for verdict in differing[:1]:
        if terms.only_seen and _is_for_other_sizes(verdict):
            return None, 0, f"{verdict.message}, and it may never be entered at such sizes"
        return verdict, len(feeds), ""
    if all(verdict.status is Status.NOT_OBSERVED for verdict in verification.outputs):
        return None, 0, "none of its outputs could have shown a difference"
    return None, len(feeds), ""


def _declared_inputs(
    before: ScopeModel, after: ScopeModel, seen: Sequence[Mapping[str, Any]], terms: Terms
) -> Iterable[Feed]:
    """The inputs to try, which both sides then declare; an empty list where there are none.

    No ranks are declared, as others may come, but beside a Scan: ONNX Runtime wants to know them of what it gives out.
    """
    operators = {node.op_type for node in all_nodes(before.model)}
    outside = list(before.outside.values())
    for side in (before, after):
        compute_scales(side.model)
    # Constants between nodes count, too: a body's weights may be nodes.
    weights = [*before.model.graph.initializer, *_constants(before.model.graph)]
    for side in (before, after):
        for item in outside:
            example = example_of(item, seen)
            has_rank = "Scan" in operators and example is not None
            dims = [None] * np.ndim(example) if has_rank else None
            kind = element_type(item, weights, example)
            side.model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, kind, dims))
    # A number of rounds that is made up may be any number.
    if terms.only_seen or "Loop" in operators:
        return list(feeds_seen(outside, seen))
    return feeds_to_try(outside, weights, seen, has_conv="Conv" in operators)


def _is_for_other_sizes(verdict: OutputVerdict) -> bool:
    """Whether a result does not take the sizes, or has another one: it may know those at which a branch is entered."""
    return " has shape " in verdict.message or "does not run" in verdict.message


def _constants(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    return [a.t for node in nodes for a in node.attribute if a.HasField("t")]


def _feeds_that_run(
    model: onnx.ModelProto, feeds: Iterable[Feed], runtime: Runtime, states: Mapping[str, str]
) -> tuple[list[Feed], str]:
    """The first inputs on which a scope runs with finite results; else why not.

    A Loop also runs on what it makes of them, which may have another rank.
    """
    kept: list[Feed] = []
    why = "no inputs were found on which it runs"
    try:
        with open_session(model, runtime) as session:
            for _, feed in zip(range(MAX_TRIED), feeds, strict=False):
                for _ in range(_ROUNDS if states else 1):
                    try:
                        results = session.run(feed)
                    except DoesNotRun as error:
                        why = str(error)
                        break
                    if all(_is_finite(value) for value in results.values()):
                        kept.append(feed)
                    feed = {**feed, **{name: results[output] for output, name in states.items()}}
                if len(kept) >= _MAX_COMPARED:
                    break
    except DoesNotRun as error:
        return [], str(error)
    return kept, why


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    if not is_float_array(value):
        return True
    return bool(np.isfinite(value.astype(np.float32)).all())


def _tensors_of_main_graph(
    baseline: Baseline, pair: tuple[onnx.ModelProto, onnx.ModelProto], ways: Sequence[Way]
) -> list[dict[str, Any]]:
    """The tensors that the scopes start from, on the first feed of each shape."""
    wanted: set[str] = set()
    for way in ways:
        try:
            found = extract(pair[0], resolve(pair[0], way)).outside
        except LookupError:
            continue
        wanted |= {item.main for item in found.values() if item.main}
    produced, outputs = tensor_names(pair[0])
    extra = sorted((wanted & produced) - outputs - set(baseline.inputs))
    rows: list[dict[str, Any]] = []
    try:
        with open_with_extra_outputs(baseline.original, extra, baseline.runtime) as session:
            for group in range(len(baseline.groups)):
                feed = baseline.feed(FeedKey(group, 0))
                rows.append({**feed, **session.run(feed, [*extra, *(wanted & outputs)])})
    except DoesNotRun:  # a tensor that cannot be an output: the scopes run on synthetic inputs alone
        return []
    return [{name: value for name, value in row.items() if _is_plain(value)} for row in rows]


def _is_plain(value: Any) -> bool:
    """A tensor that may be a graph input."""
    return isinstance(value, np.ndarray) and value.dtype.kind != "O"
