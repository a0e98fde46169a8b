"""Weights so small that processors are slow with them become zeros.

A float below the smallest normal number is *subnormal*, and a processor takes a hundred times as long to multiply one.
Training with weight decay leaves them in channels that died, and folding a small factor makes more; products of
numbers around 1e-30 are subnormal, too. What zeroing them changes is bounded: `sum |w| max |x|` over the weights that
became zero. It is done where that cannot show (`gains`):

* below the smallest normal number: for no input below 1e20;
* if the result is checked afterwards, also below `FORMATS`' `tiny`, where the weight is below 2^-60 of its channel's
  largest, or the whole channel is that small.

float16 is left alone: its subnormals begin at 6e-5, and are visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Scaled
from onnx_repfuse.algebra.support import has_rows_below, largest_rows
from onnx_repfuse.graph.scope import Const, Scope, node_name, optional_input
from onnx_repfuse.options import Options
from onnx_repfuse.planner.flush.gains import MAX_GAIN, Gains
from onnx_repfuse.planner.flush.small_weights import (
    BIAS,
    LINEAR_OPERATORS,
    TINY,
    UNSEEN,
    WEIGHT,
    by_channel,
    channel_rule,
    claim,
    joined,
    largest_by_channel,
    largest_sum,
    least_magnitude,
    magnitude,
    without_channels,
    zeroed,
)
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Change, Flushed, Kind

__all__ = ["Flushing", "Scanned", "invisible_constants"]

Values = NDArray[Any]
Scanned = dict[str, float | None]


@dataclass(eq=False)
class Flushing:
    """The weights of the main graph that become zero in part.

    Weights of the file are looked at before planning (`flush_file`), one after another: folds then read zeros. Those
    that folds make are looked at when they are computed.

    Attributes:
        scope: the main graph.
        is_deep: whether the result is checked.
        is_kept: whether a node stays as it is.
        scanned: name -> the least magnitude in a weight of the file, None where it has a small element, see
            `least_magnitude`; what several plans of one document share.
        flushed: what became zero so far, by the tensor's name.
    """

    scope: Scope
    is_deep: bool
    is_kept: Callable[[gs.Node], bool]
    scanned: Scanned = field(default_factory=dict)
    flushed: dict[str, Flushed] = field(default_factory=dict)
    _nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _planned: dict[str, Flushed] = field(default_factory=dict)  # the part of `flushed` that planning saw
    _computed: dict[str, Const] = field(default_factory=dict)  # what folds made, before it was flushed
    _gains: Gains | None = None

    def flush_file(self) -> None:
        """Let what reads the weights of the file see zeros.

        Once before planning, so that folds read zeros; and once after, as then weights have other neighbours.
        """
        self._gains = None
        for name in [name for name in self._file_weights() if name not in self.flushed]:
            const = self.scope.constants[name]
            if name not in self.scanned:
                self.scanned[name] = least_magnitude(const.read(), TINY[const.data_type])
            least = self.scanned[name]
            if least is not None:
                const.least = least  # so that nobody reads the weight again to look for zeros
                continue
            small = self._small(name, const.read())
            if small is not None:
                # As bits: an eighth of a byte for each element, where the weight itself is not kept.
                self._replace(name, partial(zeroed, const, np.packbits(small)))

    def flush_planned(self) -> bool:
        """Between rounds: let planning see which channels and biases that folds made become zero; whether any did.

        A dead channel leaves both convolutions, and a bias of zeros goes through padding, as they would in a second run
        that reads zeros. The kernels of folds are not computed for that; what nodes of the file compute is.
        """
        self._gains = None
        written = False
        for name, const in list(self.scope.created.items()):
            uses = self._uses(name) if const.data_type in TINY else []
            if not uses:
                continue
            if const.inner:
                seen = self._evaluated_with_zeros(name, const)
            else:
                seen = self._with_zero_channels(name, const) or self._with_zero_bias(name, const, uses)
            if seen is not None:
                self.scope.created[name] = self.scope.constants[name] = seen
                written = True
        return written

    def _limit(self, data_type: int) -> float:
        return TINY[data_type] if self.is_deep else FLOAT_FORMATS[data_type].smallest_normal

    def _evaluated_with_zeros(self, name: str, const: Const) -> Const | None:
        """What nodes compute from constants alone with zeros for what is too small; None if nothing is."""
        values = None if name in self.flushed or self.scanned.get(name) is not None else const.computed()
        if values is None:
            return None
        self.scanned[name] = least_magnitude(values, TINY[const.data_type])
        small = self._small(name, values)
        if small is None:
            return None
        self._planned[name] = self.flushed[name]
        read = partial(zeroed, const, np.packbits(small))
        return Const(const.shape, const.data_type, read, inner=const.inner)

    def _with_zero_channels(self, name: str, const: Const) -> Const | None:
        """A weight with zeros for the channels that are too small as a whole; None if it has none."""
        kernel, limit = const.kernel, self._limit(const.data_type)
        if kernel is None or not has_rows_below(kernel, limit):
            return None
        rows = largest_rows(kernel)
        if rows is None:
            return None
        small = (rows > 0) & (rows < limit)
        uses = self._uses(name)
        if not small.any() or not all(self._is_hidden(node) for node, _ in uses):
            return None
        size = const.size // len(rows)
        largest = float(rows[small].max())
        self._note(uses, Flushed(name, int(small.sum()) * size, const.size, largest, largest * size, True))
        self._planned[name] = self.flushed[name]
        flushed = Scaled(kernel.geometry, kernel, np.where(small, 0.0, 1.0))
        return Const(
            const.shape, const.data_type, partial(without_channels, const, uses[0][0], small), flushed
        )

    def _with_zero_bias(self, name: str, const: Const, uses: list[tuple[gs.Node, int]]) -> Const | None:
        """A bias with zeros for its values that are too small; None if it has none, or is not known yet."""
        bias = const.bias
        if bias is None or bias.deferred or any(place != BIAS for _, place in uses):
            return None
        size = np.abs(bias.known)
        small = (size > 0) & (size < self._limit(const.data_type))
        if not small.any():
            return None  # then no kernel is looked at, either
        for node, _ in uses:
            largest = self._largest_planned(node)
            known = largest if largest is not None and largest.shape == size.shape else None
            small &= self._is_small(size, known, const.data_type)
        if not small.any() or not all(self._is_hidden(node) for node, _ in uses):
            return None
        largest_bias = float(size[small].max())
        self._note(uses, Flushed(name, int(small.sum()), const.size, largest_bias, largest_bias, False))
        self._planned[name] = self.flushed[name]
        zeros = Bias(np.where(small, 0.0, bias.known), (), bias.noise, bias.is_sum)
        return Const(const.shape, const.data_type, partial(zeroed, const, np.packbits(small)), None, zeros)

    def _largest_planned(self, node: gs.Node) -> Values | None:
        """The largest weight of each channel of a node, without computing a kernel."""
        const = self.scope.const(optional_input(node, WEIGHT))
        if const is None:
            return None
        if const.kernel is not None:
            return largest_rows(const.kernel)
        weight = self._read(optional_input(node, WEIGHT))
        return None if weight is None or weight.ndim < 2 else largest_by_channel(node, weight).ravel()

    def _note(self, uses: list[tuple[gs.Node, int]], flushed: Flushed) -> None:
        self._nodes[flushed.tensor] = tuple(dict.fromkeys(node_name(node) for node, _ in uses))
        self.flushed[flushed.tensor] = flushed

    def flush_created(self) -> None:
        """After planning: let the weights that folds made be computed with zeros."""
        self.flush_file()
        for name, const in list(self.scope.created.items()):
            if const.data_type in TINY and self._uses(name):
                self._computed[name] = const
                self._replace(name, partial(self._read_created, name, const))
                self.scope.created[name] = self.scope.constants[name]

    def rewritten(self) -> dict[str, Const]:
        """The weights of the file that have to be written anew."""
        present = {tensor.name for node in self.scope.nodes for tensor in node.inputs}
        return {
            name: self.scope.constants[name]
            for name in self.flushed
            if name in present and name not in self.scope.created
        }

    def changes(self) -> list[Change]:
        """What became zero so far, tensor by tensor, for the report."""
        return [
            Change(Kind.FLUSH, self._nodes[name], claim(one), flushed=one)
            for name, one in self.flushed.items()
        ]

    @property
    def bound(self) -> float:
        """The most that all of it together changes, for inputs of magnitude 1, before anything scales it."""
        return sum(one.bound for one in self.flushed.values())

    def limit_of(self, names: set[str]) -> float:
        """Below what some weights of these names became zero; 0 if none did."""
        found = [self.flushed[name].largest for name in names & self.flushed.keys()]
        return max(found, default=0.0)

    def _replace(self, name: str, read: Callable[[], Values]) -> None:
        const = self.scope.constants[name]
        self.scope.constants[name] = Const(const.shape, const.data_type, read, const.kernel, const.bias)
        if name in self.scope.initializers:
            self.scope.initializers[name] = self.scope.constants[name]

    def _read_created(self, name: str, const: Const) -> Values:
        values = const.read()
        small = self._small(name, values)
        return values if small is None else np.where(small, values.dtype.type(0), values)

    def _file_weights(self) -> Iterator[str]:
        scope = self.scope
        nodes = [node for node in scope.nodes if node.op == "Constant" and "value" in node.attrs]
        for name in (*scope.initializers, *(node.outputs[0].name for node in nodes)):
            const = scope.const(name)
            if const is not None and const.data_type in TINY and self._uses(name):
                yield name

    def _uses(self, name: str) -> list[tuple[gs.Node, int]]:
        """The nodes that read a weight or a bias, and as which input; none where somebody else reads it, too."""
        if self.scope.is_seen(name):
            return []
        uses = [
            (node, place)
            for node in self.scope.consumers.get(name, ())
            for place, tensor in enumerate(node.inputs)
            if tensor.name == name
        ]
        if any(self.is_kept(node) for node, _ in uses):
            return []
        is_linear = all(node.op in LINEAR_OPERATORS and place in (WEIGHT, BIAS) for node, place in uses)
        return uses if is_linear else []

    def _small(self, name: str, values: Values) -> NDArray[np.bool_] | None:
        """Which elements of a weight are too small to show, noted in `flushed`; None if none are."""
        data_type = self.scope.constants[name].data_type
        if least_magnitude(values, TINY[data_type]) is not None:
            return None
        size = magnitude(values)
        uses = self._uses(name)
        if not uses or not all(self._is_hidden(node) for node, _ in uses):
            return None
        small = self._below_limit(uses, size, data_type)
        if not small.any():
            return None
        dropped = np.where(small, size, 0)
        bound = max(largest_sum(node, place, dropped) for node, place in uses)
        found = Flushed(name, int(small.sum()), size.size, float(dropped.max()), bound, uses[0][1] == WEIGHT)
        self._note(uses, joined(found, self._planned.get(name)))
        return small

    def _is_hidden(self, node: gs.Node) -> bool:
        """Whether a small change of a node's output shows nowhere."""
        if self._gains is None:
            self._gains = Gains(self.scope, self._read, self._largest_left)
        return self._gains.hides(node)

    def _read(self, name: str) -> Values | None:
        """A constant in float64; of one that a fold made, as it is computed."""
        value = self._as_it_is(name)
        return None if value is None else np.asarray(value).astype(np.float64)

    def _as_it_is(self, name: str) -> Values | None:
        const = self._computed.get(name) or self.scope.const(name)
        return None if const is None else const.computed()

    def _largest_left(self, node: gs.Node, is_hidden: bool) -> Values | None:
        """The largest weight of each channel as it will be in the file: what becomes zero passes nothing on."""
        name = optional_input(node, WEIGHT)
        values = self._as_it_is(name)
        if values is None:
            return None
        largest = largest_by_channel(node, magnitude(values)).ravel()
        data_type = self.scope.data_type(name)
        if is_hidden and data_type in TINY and len(self._uses(name)) == 1:  # others may show it
            # where the largest of a channel becomes zero, all of it does
            largest = np.where(self._is_small(largest, largest, data_type), 0, largest)
        return largest.astype(np.float64)

    def _below_limit(
        self, uses: list[tuple[gs.Node, int]], size: Values, data_type: int
    ) -> NDArray[np.bool_]:
        """Which elements of a weight or bias, given by their magnitudes, become zero."""
        small = np.ones(size.shape, np.bool_)
        is_alike = len({(place, channel_rule(node)) for node, place in uses}) == 1
        for node, place in uses:
            largest = self._largest(node, place, size) if is_alike and self.is_deep else None
            view = by_channel(node, size)[0] if place == WEIGHT and largest is not None else size
            small &= self._is_small(view, largest, data_type).reshape(size.shape)
        return small

    def _is_small(self, size: Values, largest: Values | None, data_type: int) -> NDArray[np.bool_]:
        """Which magnitudes become zero, beside the largest of their channels; None if that is not known."""
        small: NDArray[np.bool_] = size < FLOAT_FORMATS[data_type].smallest_normal
        if self.is_deep and largest is not None:
            limit = TINY[data_type]
            small |= (size < limit) & ((size < UNSEEN * largest) | (largest < limit))
        return small & (size > 0)

    def _largest(self, node: gs.Node, place: int, size: Values) -> Values | None:
        """The largest weight of each channel, to be broadcast to the weight's view or the bias; None if unknown."""
        if place == WEIGHT:
            return largest_by_channel(node, size) if size.ndim >= 2 else None
        weight = (
            self._read(optional_input(node, WEIGHT))
            if self.scope.const(optional_input(node, WEIGHT))
            else None
        )
        if weight is None or weight.ndim < 2:
            return None
        largest = largest_by_channel(node, weight).ravel()
        return largest if size.shape[-1:] == largest.shape else None


def invisible_constants(scope: Scope, options: Options) -> Callable[[str, float], bool]:
    """Whether adding a constant of some magnitude to a tensor shows nowhere, by the rules of flushing."""
    if scope.key or not options.check or not options.allows(Kind.FLUSH):
        return lambda name, size: False

    def read(name: str) -> Values | None:
        const = scope.const(name)
        value = None if const is None else const.computed()
        return None if value is None else np.asarray(value).astype(np.float64)

    gains: list[Gains] = []

    def is_invisible(name: str, size: float) -> bool:
        limit = TINY.get(scope.data_type(name) or 0, 0.0)
        if size >= limit:
            return False
        if not gains:
            gains.append(Gains(scope, read))
        return size * gains[0].of(name) <= limit * MAX_GAIN

    return is_invisible
