"""Running a candidate on the feeds of the original, whatever its inputs and outputs are called there."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_repfuse.verifier.distance import flatten
from onnx_repfuse.verifier.inputs import FeedKey, converted, renamed
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_names
from onnx_repfuse.verifier.outputs.baseline import Baseline, Row
from onnx_repfuse.verifier.outputs.decision_tails import has_same_tail
from onnx_repfuse.verifier.outputs.interfaces import DifferentInterface, Pairing
from onnx_repfuse.verifier.session import Model, Session, load

__all__ = ["Ran", "run_candidate"]

Ran = tuple[dict[FeedKey, Row], str]


def run_candidate(baseline: Baseline, fused: Model, pairing: Pairing | None = None) -> Ran:
    """(the candidate's outputs and deciding tensors under the original's names, its backend).

    Raises:
        DoesNotRun, DifferentInterface.
    """
    deciding = _deciding_tensors(baseline, fused)
    values: dict[FeedKey, Row] = {}
    with open_with_extra_outputs(fused, deciding, baseline.runtime) as session:
        if pairing is None:
            _check_names(baseline, session, deciding)
        inputs, outputs = (
            {name: name for name in baseline.inputs} if pairing is None else pairing.inputs.paired,
            {name: name for name in baseline.outputs} if pairing is None else pairing.outputs.paired,
        )
        for key in baseline.keys:
            feed = baseline.feed(key)
            results = session.run(
                converted(renamed(feed, inputs), session.inputs), [*outputs.values(), *deciding]
            )
            row = {name: results[name] for name in deciding}
            row.update({name: results[other] for name, other in outputs.items()})
            values[key] = baseline.with_deciding_inputs(flatten(row), feed)
        return values, session.backend


def _check_names(baseline: Baseline, session: Session, deciding: Sequence[str]) -> None:
    """Raise DifferentInterface unless inputs and outputs have the original's names."""
    outputs = [value.name for value in session.outputs if value.name not in deciding]
    for what, first, second in (
        ("inputs", baseline.inputs, [value.name for value in session.inputs]),
        ("outputs", baseline.outputs, outputs),
    ):
        if set(first) != set(second):
            raise DifferentInterface(f"the {what} differ: {second} instead of {list(first)}")


def _deciding_tensors(baseline: Baseline, fused: Model) -> list[str]:
    """Those the candidate has, too, where its tails are the original's."""
    if not baseline.tails:
        return []
    graph = load(fused, weights=False).graph
    shared = {
        name for tail in baseline.tails.values() if has_same_tail(graph, tail) for name in tail.deciding
    }
    produced, _ = tensor_names(fused)
    return [name for name in baseline.deciding if name in shared & produced]
