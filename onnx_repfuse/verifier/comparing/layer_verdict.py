"""Whether one tensor inside two models is the same, up to noise."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, NamedTuple

from onnx_repfuse.records.comparison import Layer
from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.verifier.comparing.shared_tensors import SharedTensor
from onnx_repfuse.verifier.distance import is_inexact, is_part, largest, relative_to
from onnx_repfuse.verifier.inputs import FeedKey
from onnx_repfuse.verifier.outputs.baseline import Row
from onnx_repfuse.verifier.outputs.float32_twin import is_short
from onnx_repfuse.verifier.outputs.judge import judge_output
from onnx_repfuse.verifier.outputs.tolerance import Sample, UserTolerance

__all__ = ["LayerTerms", "SliceValues", "judge_layer"]

_KEY = FeedKey(0, 0)


class SliceValues(NamedTuple):
    """The tensors of one slice, under the first model's names; parts of sequences have names of their own.

    Attributes:
        measure: of the model whose noise is the measure, and `other` of the other one.
        by_inputs, by_weights: of `measure` with inputs, or weights, moved by one ulp; empty where not measured.
        twin: of its float32 twin; empty if it is not in half precision.
    """

    measure: Row
    other: Row
    by_inputs: Row
    by_weights: Row
    twin: Row


class LayerTerms(NamedTuple):
    """What is known of the tensors, by their names in the measure.

    Attributes:
        random: those that depend on random numbers.
        behind_short_weights: those that depend on weights in half precision.
        other_precision: the two models may have other float types.
        user: a tolerance that replaces the one measured from noise.
    """

    random: Set[str]
    behind_short_weights: Set[str]
    other_precision: bool
    user: UserTolerance | None = None


def judge_layer(tensor: SharedTensor, name: str, values: SliceValues, terms: LayerTerms) -> Layer:
    """The verdict on a tensor, whose name in the measure is `name`; of a sequence, that on its worst part."""
    if name in terms.random:
        return _layer(tensor, "not comparable", message="it depends on random numbers")
    rows = values.measure, values.other
    parts = [part for part in dict.fromkeys([*rows[0], *rows[1]]) if is_part(part, tensor.first)]
    judged = []
    for part in parts:
        sample = _sample(part, name, values, terms)
        why = _why_incomparable(sample, terms)
        if why:
            return _layer(tensor, "not comparable", message=why)
        judged.append((judge_output(part, [sample], terms.user), sample))
    if not judged:
        return _layer(tensor, "not comparable", message="it is absent")
    verdict, sample = max(judged, key=lambda pair: _badness(pair[0]))
    return _from_verdict(tensor, verdict, sample)


def _sample(part: str, name: str, values: SliceValues, terms: LayerTerms) -> Sample:
    original = values.measure.get(part)
    is_in_half = original is not None and is_short(original.dtype)
    twin = values.twin.get(part) if is_in_half or name in terms.behind_short_weights else None
    return Sample(
        _KEY,
        original,
        values.other.get(part),
        values.by_inputs.get(part),
        values.by_weights.get(part),
        twin=twin,
        other_precision=terms.other_precision,
    )


def _why_incomparable(sample: Sample, terms: LayerTerms) -> str:
    """Why a tensor of one name is not one tensor in the two models; "" if it may be."""
    measure, other = sample.original, sample.fused
    if measure is None or other is None:
        return "" if measure is other else "it is present in only one of the two"
    if measure.shape != other.shape:
        return f"it has shape {list(measure.shape)} and {list(other.shape)}"
    are_floats = is_inexact(measure.dtype) and is_inexact(other.dtype)
    if measure.dtype != other.dtype and not (terms.other_precision and are_floats):
        return f"it has type {measure.dtype.name} and {other.dtype.name}"
    return ""


def _badness(verdict: OutputVerdict) -> tuple[bool, float]:
    return verdict.status is Status.FAILED, verdict.max_abs


def _from_verdict(tensor: SharedTensor, verdict: OutputVerdict, sample: Sample) -> Layer:
    diverges = verdict.status is Status.FAILED
    value, size, error = sample.original, 0.0, verdict.minimum_tolerance
    if value is not None and value.dtype.kind not in "OSU":  # text has no size
        size = largest(value)
        if is_inexact(value.dtype):  # of values that are compared exactly, `max_abs` is how many differ
            error = verdict.max_abs
    relative, allowed = relative_to(size, error), relative_to(size, verdict.tolerance)
    return _layer(
        tensor,
        "diverges" if diverges else "agrees",
        (error, verdict.tolerance, relative, allowed),
        verdict.cosine,
        verdict.message if diverges else "",
    )


def _layer(
    tensor: SharedTensor,
    status: Literal["agrees", "diverges", "not comparable"],
    figures: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    cosine: float | None = None,
    message: str = "",
) -> Layer:
    return Layer(
        tensor.first, tensor.producer, tensor.other_producer, status, *figures, cosine=cosine, message=message
    )
