"""The interfaces of two models that are compared: what belongs together, what differs, which sizes both accept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx_repfuse.records.comparison import InterfaceDifference, TensorInfo
from onnx_repfuse.verifier.input_sizes import Shapes
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds, float_dtype
from onnx_repfuse.verifier.session import (
    Dim,
    Model,
    ValueInfo,
    input_values,
    load,
    open_session,
    output_values,
)

__all__ = [
    "DifferentInterface",
    "Pairing",
    "Side",
    "asked_for",
    "fixed_by_either",
    "pair_interfaces",
    "sizes_of_other",
    "why_incomparable",
]


class DifferentInterface(Exception):  # noqa: N818 - an outcome, like DoesNotRun
    """Inputs or outputs of the two models cannot be paired."""


@dataclass(frozen=True)
class Side:
    """The inputs, or the outputs, of two models.

    Attributes:
        first, second: their names, in order.
        paired: a name in the first -> the name in the second that belongs to it.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    paired: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether none is missing."""
        return len(self.paired) == len(self.first) == len(self.second)

    @property
    def only_second(self) -> tuple[str, ...]:
        """Those that the second alone has."""
        return tuple(name for name in self.second if name not in self.paired.values())

    def swapped(self) -> Side:
        """The same, seen from the second model."""
        return Side(self.second, self.first, {other: name for name, other in self.paired.items()})


@dataclass(frozen=True)
class Pairing:
    """Which inputs and outputs of two models belong together, and what is not alike."""

    inputs: Side
    outputs: Side
    differences: tuple[InterfaceDifference, ...] = ()

    def swapped(self) -> Pairing:
        """The same, seen from the second model; the differences stay those of the first from the second."""
        return Pairing(self.inputs.swapped(), self.outputs.swapped(), self.differences)


def pair_interfaces(first: Model, second: Model, by_order: bool = False) -> Pairing:
    """Pair inputs and outputs by name, or by order.

    By order is for exporters that name things differently ("input.1", "x") and keep their order. Nothing tells two
    outputs of one shape apart then, so it has to be asked for.

    Raises:
        DoesNotRun: a model cannot be read.
    """
    mine, other = (load(model, weights=False).graph for model in (first, second))
    inputs, of_inputs = _pair("input", input_values(mine), input_values(other), by_order)
    outputs, of_outputs = _pair("output", output_values(mine), output_values(other), by_order)
    return Pairing(inputs, outputs, (*of_inputs, *of_outputs))


def _pair(
    side: str, first: Sequence[ValueInfo], second: Sequence[ValueInfo], by_order: bool
) -> tuple[Side, list[InterfaceDifference]]:
    """(what belongs together, what is not alike)."""
    others = {value.name: value for value in second}
    if by_order:
        pairs = list(zip(first, second, strict=False))
    else:
        pairs = [(value, others[value.name]) for value in first if value.name in others]
    mine, theirs = (tuple(value.name for value in values) for values in (first, second))
    both = Side(mine, theirs, {value.name: other.name for value, other in pairs})
    only_first, only_second = both.swapped().only_second, both.only_second
    unpaired: list[tuple[ValueInfo | None, ValueInfo | None]] = []
    unpaired += [(value, None) for value in first if value.name in only_first]
    unpaired += [(None, other) for other in second if other.name in only_second]
    differences = [_difference(side, value, other, _how_they_differ(value, other)) for value, other in pairs]
    differences = [difference for difference in differences if difference.differs]
    return both, differences + [_difference(side, *values, ("missing",)) for values in unpaired]


def _difference(
    side: str, first: ValueInfo | None, second: ValueInfo | None, differs: tuple[str, ...]
) -> InterfaceDifference:
    mine, other = (None if value is None else TensorInfo(*value) for value in (first, second))
    return InterfaceDifference("input" if side == "input" else "output", mine, other, differs)


def _how_they_differ(first: ValueInfo, second: ValueInfo) -> tuple[str, ...]:
    """Sizes with a name, or without, may be any: only a size against another, or against any size, differs."""
    aspects = {
        "name": first.name != second.name,
        "type": first.type != second.type,
        "shape": _sizes(first.shape) != _sizes(second.shape),
    }
    return tuple(aspect for aspect, differs in aspects.items() if differs)


def _sizes(shape: Iterable[Dim]) -> list[int | None]:
    """The sizes of a shape that are fixed, None for any other."""
    return [dim if isinstance(dim, int) else None for dim in shape]


def why_incomparable(pairing: Pairing, every_output: bool, advice: str = "") -> str:
    """Why the two cannot be compared, as a sentence; "" if they can.

    Args:
        pairing: of the two.
        every_output: whether all outputs are needed; else one is enough.
        advice: what helps where names differ, and numbers do not.
    """
    inputs, outputs = pairing.inputs, pairing.outputs
    has_outputs = outputs.is_complete if every_output else bool(outputs.paired)
    for what, side, is_enough in (("inputs", inputs, inputs.is_complete), ("outputs", outputs, has_outputs)):
        if not is_enough:
            can_be_matched = len(side.first) == len(side.second)
            return (
                f"the {what} differ: {list(side.second)} instead of {list(side.first)}"
                f"{advice if can_be_matched else ''}"
            )
    return ""


def fixed_by_either(
    first: Model, second: Model, pairing: Pairing, any_float: bool = False
) -> dict[str, tuple[Dim, ...]]:
    """The sizes of the first model's inputs that either of the two fixes, so that both accept them.

    Args:
        first, second: the models, which can be read.
        pairing: of their inputs.
        any_float: accept inputs of other float types, which can be converted.

    Raises:
        DifferentInterface: no input fits both: they have other types, ranks, or fixed sizes.
    """
    mine, others = (input_values(load(model, weights=False).graph) for model in (first, second))
    by_name = {value.name: value for value in others}
    return {
        value.name: _fixed_by_either(value, by_name[pairing.inputs.paired[value.name]], any_float)
        for value in mine
    }


def _fixed_by_either(first: ValueInfo, second: ValueInfo, any_float: bool) -> tuple[Dim, ...]:
    """The dims of an input in both models; a size counts before a name. Raises DifferentInterface."""
    both = f"input '{first.name}' has {{}} in the first model and {{}} in the second, so no input fits both"
    # `is`, since numpy takes None for float64 where it compares
    are_floats = all(float_dtype(value.type) is not None for value in (first, second))
    if first.type != second.type and not (any_float and are_floats):
        raise DifferentInterface(both.format(f"the type {first.type}", second.type))
    if not first.shape or not second.shape:  # an unknown rank, or a scalar
        return first.shape
    pairs = list(zip(_sizes(first.shape), _sizes(second.shape), strict=False))
    has_other_sizes = any(len({*pair} - {None}) > 1 for pair in pairs)
    if len(first.shape) != len(second.shape) or has_other_sizes:
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


def sizes_of_other(second: Model, spec: FeedSpec, pairing: Pairing) -> Shapes:
    """The input shapes at which the second model runs, under the first one's names. Raises InputError: at none."""
    with open_session(second) as session:
        group, *_ = choose_feeds(session, FeedSpec(seeds=spec.seeds[:1]))
    return {
        name: group.shapes[other] for name, other in pairing.inputs.paired.items() if other in group.shapes
    }
