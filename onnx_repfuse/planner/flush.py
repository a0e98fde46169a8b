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
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.scope import Const, Scope, node_name, optional_input
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.options import Options
from onnx_repfuse.planner.gains import MAX_GAIN, Gains
from onnx_repfuse.planner.weight_channels import (
    LINEAR_OPERATORS,
    by_channel,
    channel_rule,
    largest_by_channel,
)
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Change, Flushed, Kind

__all__ = ["Flushing", "invisible_constants"]

Values = NDArray[Any]
# Below these, products of two numbers may be subnormal, and no sum of ordinary terms sees one.
TINY: dict[int, float] = {
    onnx.TensorProto.FLOAT: 1e-30,
    onnx.TensorProto.BFLOAT16: 1e-30,
    onnx.TensorProto.DOUBLE: 1e-300,
}
UNSEEN = 2.0**-60  # of the channel's largest weight
BLOCK = 1 << 18  # elements that are looked at together: they stay in the processor's cache
WEIGHT, BIAS = 1, 2  # the inputs of a linear operator


@dataclass(eq=False)
class Flushing:
    """The weights of the main graph that become zero in part.

    Weights of the file are looked at before planning (`flush_file`), one after another: folds then read zeros. Those
    that folds make are looked at when they are computed.

    Attributes:
        scope: the main graph.
        is_deep: whether the result is checked.
        is_kept: whether a node stays as it is.
        scanned: name -> whether a weight of the file has a small element; what several plans of one document share.
        flushed: what became zero so far, by the tensor's name.
    """

    scope: Scope
    is_deep: bool
    is_kept: Callable[[gs.Node], bool]
    scanned: dict[str, bool] = field(default_factory=dict)
    flushed: dict[str, Flushed] = field(default_factory=dict)
    _nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _computed: dict[str, Const] = field(
        default_factory=dict
    )  # what folds made, as it was before it was flushed
    _gains: Gains | None = None

    def flush_file(self) -> None:
        """Let what reads the weights of the file see zeros.

        Once before planning, so that folds read zeros; and once after, as then weights have other neighbours.
        """
        self._gains = None
        for name in [name for name in self._file_weights() if name not in self.flushed]:
            const = self.scope.constants[name]
            if name not in self.scanned:
                self.scanned[name] = _has_small(_magnitude(const.read()), TINY[const.data_type])
            if not self.scanned[name]:
                continue
            small = self._small(name, const.read())
            if small is not None:
                # As bits: an eighth of a byte for each element, where the weight itself is not kept.
                self._replace(name, partial(_zeroed, const, np.packbits(small)))

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
            Change(Kind.FLUSH, self._nodes[name], _claim(one), flushed=one)
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
        data_type, size = self.scope.constants[name].data_type, _magnitude(values)
        if not _has_small(size, TINY[data_type]):
            return None
        uses = self._uses(name)
        if not uses or not all(self._is_hidden(node) for node, _ in uses):
            return None
        small = self._below_limit(uses, size, data_type)
        if not small.any():
            return None
        dropped = np.where(small, size, 0)
        self._nodes[name] = tuple(dict.fromkeys(node_name(node) for node, _ in uses))
        self.flushed[name] = Flushed(
            name,
            int(small.sum()),
            size.size,
            float(dropped.max()),
            max(_largest_sum(node, place, dropped) for node, place in uses),
            uses[0][1] == WEIGHT,
        )
        return small

    def _is_hidden(self, node: gs.Node) -> bool:
        """Whether a small change of a node's output shows nowhere."""
        if self._gains is None:
            self._gains = Gains(self.scope, self._read, self._read_weight)
        return self._gains.hides(node)

    def _read(self, name: str) -> Values | None:
        """A constant in float64; of one that a fold made, as it is computed."""
        const = self._computed.get(name) or self.scope.const(name)
        value = None if const is None else const.computed()
        return None if value is None else np.asarray(value).astype(np.float64)

    def _read_weight(self, node: gs.Node, is_hidden: bool) -> Values | None:
        """As it will be in the file: what becomes zero passes nothing on."""
        name = optional_input(node, WEIGHT)
        values = self._read(name) if self.scope.const(name) is not None else None
        uses = self._uses(name)
        data_type = self.scope.data_type(name)
        if values is None or not is_hidden or data_type not in TINY or len(uses) != 1:  # others may show it
            return values
        size = _magnitude(values.astype(numpy_dtype(data_type)))
        return np.where(self._below_limit(uses, size, data_type), 0, values)

    def _below_limit(
        self, uses: list[tuple[gs.Node, int]], size: Values, data_type: int
    ) -> NDArray[np.bool_]:
        """Which elements, given by their magnitudes, become zero."""
        small: NDArray[np.bool_] = (size > 0) & (size < FLOAT_FORMATS[data_type].smallest_normal)
        if not self.is_deep or len({(place, channel_rule(node)) for node, place in uses}) > 1:
            return small
        limit = TINY[data_type]
        tiny = (size > 0) & (size < limit)
        for node, place in uses:
            largest = self._largest(node, place, size)
            if largest is None:
                return small
            view = size if place == BIAS else by_channel(node, size)[0]
            tiny = tiny & ((view < UNSEEN * largest) | (largest < limit)).reshape(size.shape)
        return np.asarray(small | tiny)

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


def _claim(flushed: Flushed) -> str:
    by_input = " times the largest input" if flushed.is_times_input else ""
    return (
        f"{flushed.count} of {flushed.size} elements of '{flushed.tensor}', of magnitude {flushed.largest:.3g} at "
        f"most, are zero: no output of its nodes changes by more than {flushed.bound:.3g}{by_input}"
    )


def _magnitude(values: Values) -> Values:
    """Absolute values, in a type that numpy computes with at full speed."""
    return np.asarray(np.abs(values if values.dtype.kind == "f" else values.astype(np.float32)))


def _zeroed(const: Const, bits: NDArray[np.uint8]) -> Values:
    values = const.read()
    small = np.unpackbits(bits, count=values.size).astype(np.bool_).reshape(values.shape)
    return np.where(small, values.dtype.type(0), values)


def _has_small(size: Values, limit: float) -> bool:
    """Whether a magnitude is below a limit, but not zero."""
    flat = size.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        block = flat[begin : begin + BLOCK]
        if np.count_nonzero(block < limit) > np.count_nonzero(block == 0):
            return True
    return False


def _largest_sum(node: gs.Node, place: int, dropped: Values) -> float:
    """What the outputs of a node change by at most, for inputs of magnitude 1."""
    if place == BIAS or dropped.ndim < 2:
        return float(dropped.max())
    view, axes = by_channel(node, dropped)
    return float(view.sum(axis=axes, dtype=np.float64).max())
