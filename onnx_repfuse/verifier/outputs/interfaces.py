"""The interfaces of two models that are to be compared: which inputs belong together, and which sizes both accept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onnx_repfuse.verifier.input_sizes import Shapes
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds
from onnx_repfuse.verifier.session import Dim, DoesNotRun, Model, ValueInfo, input_values, load, open_session

__all__ = ["DifferentInterface", "asked_for", "pair", "sizes_of_other", "spec_for_both"]


class DifferentInterface(Exception):  # noqa: N818 - an outcome, like DoesNotRun
    """Inputs or outputs of the two models cannot be paired."""


def pair(what: str, original: Sequence[str], fused: Sequence[str], by_position: bool) -> dict[str, str]:
    """The original's names -> the candidate's.

    Args:
        what: "inputs" or "outputs".
        original, fused: the names of both.
        by_position: exporters rename interfaces ("input.1", "x"), but keep their order.

    Raises:
        DifferentInterface: they cannot be paired.
    """
    if set(original) == set(fused):
        return {name: name for name in original}
    if by_position and len(original) == len(fused):
        return dict(zip(original, fused, strict=True))
    raise DifferentInterface(f"the {what} differ: {list(fused)} instead of {list(original)}")


def spec_for_both(original: Model, fused: Model, spec: FeedSpec, by_position: bool) -> FeedSpec:
    """`spec` with the sizes that only the second model fixes, so that sizes which both accept are tried.

    Raises:
        DifferentInterface: no input fits both: they have other inputs, types, ranks, or fixed sizes.
    """
    try:
        first, second = (input_values(load(model, weights=False).graph) for model in (original, fused))
    except DoesNotRun:
        return spec  # whoever runs them says why
    names = pair("inputs", [value.name for value in first], [value.name for value in second], by_position)
    others = {value.name: value for value in second}
    fixed = {value.name: _fixed_by_either(value, others[names[value.name]]) for value in first}
    return replace(spec, fixed=fixed)


def _fixed_by_either(first: ValueInfo, second: ValueInfo) -> tuple[Dim, ...]:
    """The dims of an input in both models; a size counts before a name. Raises DifferentInterface."""
    both = f"input '{first.name}' has {{}} in the first model and {{}} in the second, so no input fits both"
    if first.type != second.type:
        raise DifferentInterface(both.format(f"the type {first.type}", second.type))
    if not first.shape or not second.shape:  # an unknown rank, or a scalar
        return first.shape
    apart = [
        a != b
        for a, b in zip(first.shape, second.shape, strict=False)
        if isinstance(a, int) and isinstance(b, int)
    ]
    if len(first.shape) != len(second.shape) or any(apart):
        raise DifferentInterface(both.format(f"the shape {_dims(first.shape)}", _dims(second.shape)))
    return tuple(b if isinstance(b, int) else a for a, b in zip(first.shape, second.shape, strict=True))


def _dims(shape: Iterable[Dim]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def asked_for(spec: FeedSpec) -> str:
    """The first input of which neither model fixes all sizes, as --input-shape takes it; "" if there is none."""
    for name, dims in spec.fixed.items():
        if any(not isinstance(dim, int) for dim in dims):
            return f"{name}:{','.join('?' if dim is None else str(dim) for dim in dims)}"
    return ""


def sizes_of_other(original: Model, fused: Model, spec: FeedSpec, by_position: bool) -> Shapes:
    """The input shapes at which the second model runs, under the first one's names. Raises InputError: at none."""
    with open_session(fused) as session:
        group, *_ = choose_feeds(session, FeedSpec(seeds=spec.seeds[:1]))
    first = [value.name for value in input_values(load(original, weights=False).graph)]
    names = pair("inputs", first, [value.name for value in session.inputs], by_position)
    return {name: group.shapes[other] for name, other in names.items() if other in group.shapes}
