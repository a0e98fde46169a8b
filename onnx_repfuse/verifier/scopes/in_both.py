"""What no input of a run may reach, of any two models: branches, bodies and functions that both have, run alone.

Who made the second model is not known, and may have used what holds in the first alone, such as its sizes. So they run
on tensors of the first model's main graph, and on no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status, Verification
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.outputs.compare import Compared, compared_outputs
from onnx_repfuse.verifier.scopes.check import ScopeVerdict, Terms, check_scopes
from onnx_repfuse.verifier.scopes.instances import Key, first_output
from onnx_repfuse.verifier.session import Model, load

__all__ = ["verify_models", "with_inner_graphs"]

_MOST_SCOPES = 64  # that are run: a few sessions each


def verify_models(
    original: Model,
    fused: Model,
    *,
    spec: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> Verification:
    """Compare two models with one interface: `verify_outputs`, and what no input leads to."""
    found = compared_outputs(original, fused, spec=spec, rtol=rtol, atol=atol, runtime=runtime)
    return with_inner_graphs(found, fused, rtol, atol) if isinstance(found, Compared) else found


def with_inner_graphs(
    compared: Compared, fused: Model, rtol: float | None = None, atol: float | None = None
) -> Verification:
    """The verdicts on the outputs of two models, and on each inner graph that differs.

    Args:
        compared: the outputs; the names of inner graphs are those of the first model.
        fused: the second model.
        rtol, atol: the user's tolerance.
    """
    verification, baseline = compared.verification, compared.baseline
    if verification.status is Status.FAILED or baseline.backend == "reference":
        return verification
    skeleton = load(baseline.original, weights=False)
    keys = list(_scopes(skeleton))
    verdicts = check_scopes(baseline, fused, keys[:_MOST_SCOPES], terms=Terms(True, rtol, atol))
    failed = [_of_scope(skeleton, verdict) for verdict in verdicts if verdict.status is Status.FAILED]
    notes = []
    unseen = [verdict for verdict in verdicts if verdict.status is Status.NOT_OBSERVED]
    if unseen:
        first = f"{_label(skeleton, unseen[0].key)}: {unseen[0].message}"
        count = len(unseen) + max(0, len(keys) - _MOST_SCOPES)
        notes.append(f"{count} of {len(keys)} branches, bodies and functions were not run alone, as {first}")
    return replace(
        verification, outputs=(*verification.outputs, *failed), notes=(*verification.notes, *notes)
    )


def _scopes(model: onnx.ModelProto) -> Iterator[Key]:
    """The keys of all subgraphs and functions."""
    yield from _inside(model.graph, ())
    for number, function in enumerate(model.functions):
        yield ("function", number)
        yield from _inside(function, ("function", number))


def _inside(owner: onnx.GraphProto | onnx.FunctionProto, key: tuple[str | int, ...]) -> Iterator[Key]:
    for place, node in enumerate(owner.node):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = (*key, place, attribute.name)
                yield inner
                yield from _inside(attribute.g, inner)


def _of_scope(skeleton: onnx.ModelProto, verdict: ScopeVerdict) -> OutputVerdict:
    """The figures of what differs, under the name of its graph."""
    assert verdict.output is not None
    label = _label(skeleton, verdict.key)
    message = f"{label}, run alone on tensors of the main graph: {verdict.message}"
    return replace(verdict.output, name=label, message=message)


def _label(model: onnx.ModelProto, key: Key) -> str:
    """As "then_branch of 'y'", from the inside out."""
    owner: onnx.GraphProto | onnx.FunctionProto = model.graph
    parts: list[str] = []
    rest = list(key)
    if rest[:1] == ["function"]:
        owner = model.functions[int(rest[1])]
        parts, rest = [f"function {owner.domain}.{owner.name}"], rest[2:]
    for place, attribute in zip(rest[::2], rest[1::2], strict=True):
        node = owner.node[int(place)]
        parts.append(f"{attribute} of {first_output(node)!r}")
        owner = next(found.g for found in node.attribute if found.name == attribute)
    return " in ".join(reversed(parts))
