"""Two models that anybody may have made: paired, run on the same inputs, judged, and measured.

The noise of one of them is the measure. If they have other float types, it is the coarser one's: a float32 network and
its float16 version differ by what float16 rounds and by nothing else. That is the noise of the float16 weights, and how
far the float16 model is from its own float32 twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.comparison import Comparison, Layers, OutputStatistics
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status, Verification
from onnx_repfuse.verifier.comparing.layers import compare_layers
from onnx_repfuse.verifier.comparing.statistics import output_statistics
from onnx_repfuse.verifier.distance import is_part, is_structure, ulp
from onnx_repfuse.verifier.inputs import FeedSpec, converted, float_dtype, renamed
from onnx_repfuse.verifier.outputs.compare import (
    Compared,
    Terms,
    compare_at_common_sizes,
    incomparable_interfaces,
)
from onnx_repfuse.verifier.outputs.float32_twin import coarsest_float
from onnx_repfuse.verifier.outputs.interfaces import (
    DifferentInterface,
    Pairing,
    pair_interfaces,
    why_incomparable,
)
from onnx_repfuse.verifier.outputs.judge import verdict_without_figures
from onnx_repfuse.verifier.outputs.tolerance import user_tolerance
from onnx_repfuse.verifier.scopes.in_both import with_inner_graphs
from onnx_repfuse.verifier.session import Model, input_values, load

__all__ = ["compare_models"]

_BY_ORDER = "; --by-order matches them by their order"


def compare_models(
    first: Model,
    second: Model,
    *,
    spec: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    by_order: bool = False,
    layers: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare two models output by output, and tensor by tensor if asked for.

    Args:
        first, second: paths, or models in memory.
        spec: shapes and data of the first model's inputs.
        rtol, atol: the tolerance, instead of one measured from noise.
        runtime: how both are run.
        by_order: pair inputs and outputs by their order, not by name.
        layers: also compare the tensors inside that both have, on the first input.
        on_progress: called with (tensors compared, tensors in all).

    Raises:
        InputError: a model cannot be read, or the first one does not run.
    """
    pairing = pair_interfaces(first, second, by_order)
    try:
        reason = why_incomparable(pairing, every_output=False, advice="" if by_order else _BY_ORDER)
        if reason:
            raise DifferentInterface(reason)
        coarseness = _coarseness(first), _coarseness(second)
        is_swapped = coarseness[1][:2] > coarseness[0][:2]
        other_precision = coarseness[0] != coarseness[1]
        terms = Terms(rtol, atol, pairing=pairing, other_precision=other_precision)
        try:
            result = _run(first, second, terms, is_swapped, spec or FeedSpec(), runtime)
        except InputError as error:
            if not is_swapped:
                raise
            return _incomparable(pairing, f"the second model does not run: {error}")
    except DifferentInterface as error:
        return _incomparable(pairing, str(error))
    missing = tuple(_missing(name) for name in pairing.outputs.only_second)
    verification = result.verification
    if not is_swapped and not other_precision and not by_order:
        verification = with_inner_graphs(result, second, rtol, atol)
    verification = replace(verification, outputs=(*verification.outputs, *missing))
    if is_swapped:
        verification = _renamed(verification, pairing)
    return Comparison(
        verification,
        _statistics(result, pairing, is_swapped),
        pairing.differences,
        "second" if is_swapped else "first",
        (coarseness[0].name, coarseness[1].name),
        _layers(first, second, result, terms, is_swapped, on_progress) if layers else None,
    )


def _layers(
    first: Model,
    second: Model,
    result: Compared,
    terms: Terms,
    is_swapped: bool,
    on_progress: Callable[[int, int], None],
) -> Layers:
    """The tensors inside; none, and a note, where one of the two was not run."""
    assert terms.pairing is not None
    if not result.values:
        return Layers((), notes=("no tensors were compared, since one of the models does not run",))
    measure, other = (second, first) if is_swapped else (first, second)
    return compare_layers(
        measure,
        other,
        result.baseline,
        terms.pairing.swapped() if is_swapped else terms.pairing,
        is_swapped=is_swapped,
        other_precision=terms.other_precision,
        user=user_tolerance(terms.rtol, terms.atol),
        on_progress=on_progress,
    )


def _incomparable(pairing: Pairing, reason: str) -> Comparison:
    failed = incomparable_interfaces(pairing.outputs.first, reason)
    return Comparison(failed, interface=pairing.differences)


class _Coarseness(NamedTuple):
    """How coarse a model's floats are: one ulp of 1 in the coarsest type it has, and at its inputs; the type's name.

    Inputs count, as both models have to take what is fed.
    """

    epsilon: float
    of_inputs: float
    name: str


def _coarseness(model: Model) -> _Coarseness:
    proto = load(model, weights=False)
    inputs = (float_dtype(value.type) for value in input_values(proto.graph))
    coarsest = coarsest_float(proto)
    of_inputs = max((ulp(1.0, dtype) for dtype in inputs if dtype is not None), default=0.0)
    return _Coarseness(coarsest.epsilon, of_inputs, coarsest.dtype.name)


def _run(
    first: Model, second: Model, terms: Terms, is_swapped: bool, spec: FeedSpec, runtime: Runtime
) -> Compared:
    """The comparison, seen from the model whose noise is the measure: the second if `is_swapped`."""
    assert terms.pairing is not None
    if is_swapped:
        names = terms.pairing.inputs.paired
        data = tuple(renamed(feed, names) for feed in spec.data)
        spec = replace(spec, shapes=renamed(spec.shapes, names), data=data)
        terms = replace(terms, pairing=terms.pairing.swapped())
        first, second = second, first
    if terms.other_precision:  # the data may be of the other model's type
        inputs = input_values(load(first, weights=False).graph)
        spec = replace(spec, data=tuple(converted(feed, inputs) for feed in spec.data))
    return compare_at_common_sizes(first, second, terms, spec=spec, runtime=runtime, optimized=True)


def _missing(name: str) -> OutputVerdict:
    message = f"'{name}' is an output of the second model only"
    return verdict_without_figures(name, Status.FAILED, "", message)


def _renamed(verification: Verification, pairing: Pairing) -> Verification:
    """A verification that was seen from the second model, as one from the first."""
    inputs, outputs = pairing.swapped().inputs.paired, pairing.swapped().outputs.paired
    verdicts = []
    for verdict in verification.outputs:
        name = _first_name(verdict.name, outputs) or verdict.name
        message = verdict.message.replace(repr(verdict.name), repr(name))
        verdicts.append(replace(verdict, name=name, message=message))
    shapes = tuple(
        {inputs.get(name, name): dims for name, dims in each.items()} for each in verification.shapes
    )
    runs = verification.runs[1], verification.runs[0]
    return replace(verification, outputs=tuple(verdicts), shapes=shapes, runs=runs)


def _first_name(name: str, outputs: Mapping[str, str]) -> str:
    """The first model's name of an output of the second, or of a part of one; others keep theirs."""
    output, part = _output_and_part(name, outputs)
    return outputs.get(output, output) + part


def _output_and_part(name: str, outputs: Iterable[str]) -> tuple[str, str]:
    """("scores", "[2]") for the part `scores[2]` of the sequence "scores"; ("", "") if it is no output."""
    output = next((output for output in outputs if is_part(name, output)), "")
    return output, name.removeprefix(output) if output else ""


def _statistics(result: Compared, pairing: Pairing, is_swapped: bool) -> tuple[OutputStatistics, ...]:
    """Of every output that both have, and of every part of a sequence."""
    baseline, values = result.baseline, result.values
    outputs = pairing.swapped().outputs.paired if is_swapped else pairing.outputs.paired
    found = []
    for name in dict.fromkeys(name for row in values.values() for name in row):
        output, part = _output_and_part(name, outputs)
        if not output or is_structure(name):
            continue
        measure = [baseline.values[key].get(name) for key in values]
        other = [row.get(name) for row in values.values()]
        names, sides = (name, outputs[output] + part), (measure, other)
        if is_swapped:
            names, sides = names[::-1], sides[::-1]
        pairs = zip(*sides, strict=True)
        present = [(first, second) for first, second in pairs if first is not None and second is not None]
        found.append(output_statistics(names[0], present, other=names[1]))
    return tuple(found)
