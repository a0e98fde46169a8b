"""The tensors inside two models, side by side in topological order: where do they begin to differ?

A tensor is judged as an output is, by the noise of the model that is the measure. So the first that diverges is where
the models part, and not where a small difference has grown beyond some number.

All tensors at once would be too much for memory. A runtime keeps every graph output until its run ends, asked for or
not, so each slice of the graph is read through sessions of its own, in which only its tensors are outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_repfuse.records.comparison import Layer, Layers
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.verifier.comparing.layer_verdict import LayerTerms, SliceValues, judge_layer
from onnx_repfuse.verifier.comparing.shared_tensors import SharedTensor, shared_tensors, trace
from onnx_repfuse.verifier.distance import flatten
from onnx_repfuse.verifier.inputs import Feed, FeedKey, converted, renamed
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_bytes
from onnx_repfuse.verifier.noise import nudge_feed, nudged_weights
from onnx_repfuse.verifier.outputs.baseline import Baseline, Row
from onnx_repfuse.verifier.outputs.float32_twin import (
    behind_short_weights,
    float32_twin,
    uses_short_floats,
    widened,
)
from onnx_repfuse.verifier.outputs.interfaces import Pairing
from onnx_repfuse.verifier.outputs.tolerance import UserTolerance
from onnx_repfuse.verifier.session import DoesNotRun, Model, input_values, load, release_heap

__all__ = ["MAX_SLICE_BYTES", "compare_layers"]

MAX_SLICE_BYTES = 256 << 20  # of the tensors that are held at once, of all models and variants
_MAX_UNREADABLE = 8  # tensors that no session gives out; with more of them, none of the rest is tried
_FIRST_FEED = FeedKey(0, 0)


def compare_layers(
    measure: Model,
    other: Model,
    baseline: Baseline,
    pairing: Pairing,
    *,
    is_swapped: bool,
    other_precision: bool,
    user: UserTolerance | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Layers:
    """Compare every tensor that both models have, on the first feed of a comparison.

    Args:
        measure: the model whose noise is the measure, and `other` the other one.
        baseline: of `measure`, for its feeds.
        pairing: of `measure` with `other`.
        is_swapped: whether `other` is the first model, whose names and order count.
        other_precision: whether the two may have other float types.
        user: a tolerance that was given; it replaces the noise here, too.
        on_progress: called with (tensors compared, tensors in all).

    Raises:
        DoesNotRun: a model cannot be read, or `measure` does not run on its own feed.
    """
    first, second = (other, measure) if is_swapped else (measure, other)
    outputs = (pairing.swapped() if is_swapped else pairing).outputs
    shared = shared_tensors(first, second, outputs)
    reader = _reader(measure, other, baseline, pairing, is_swapped)
    names = [reader.name(tensor) for tensor in shared]
    sizes = reader.measure.sizes(names)
    behind = behind_short_weights(load(measure, weights=False))
    terms = LayerTerms(baseline.random, frozenset(behind), other_precision, user)
    layers: list[Layer] = []
    slices = 0
    for part in _slices(shared, [sizes.get(name, 0) for name in names], MAX_SLICE_BYTES // reader.copies):
        for tensors, values in reader.read(part):
            slices += 1
            layers += (judge_layer(tensor, reader.name(tensor), values, terms) for tensor in tensors)
        on_progress(len(layers), len(shared))
    shapes = baseline.groups[_FIRST_FEED.group].shapes
    back = pairing.swapped().inputs.paired if is_swapped else {}
    return Layers(
        trace(first, layers),
        slices,
        {back.get(name, name): dims for name, dims in shapes.items()},
        tuple(f"'{name}' cannot be read: {why}" for name, why in reader.unreadable),
    )


def _slices(
    tensors: Sequence[SharedTensor], sizes: Sequence[int], max_bytes: int
) -> Iterator[list[SharedTensor]]:
    """The tensors in parts of at most `max_bytes`; a larger tensor is alone."""
    part: list[SharedTensor] = []
    held = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        if part and held + size > max_bytes:
            yield part
            part, held = [], 0
        part.append(tensor)
        held += size
    if part:
        yield part


@dataclass(frozen=True)
class _Source:
    """A model, or a variant of it, and what to feed it; `outputs` are its graph outputs."""

    model: Model
    outputs: frozenset[str]
    feed: Feed
    runtime: Runtime

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of tensors; empty if they cannot be told, so that all are read at once. Raises DoesNotRun."""
        extra = [name for name in names if name not in self.outputs]
        return tensor_bytes(self.model, self.feed, extra, self.runtime)

    def row(self, names: Mapping[str, str]) -> Row:
        """Tensors on the feed; `names` are names here -> names in the row. Raises DoesNotRun."""
        return self.rows(names)[0]

    def rows(self, names: Mapping[str, str], variant: Feed | None = None) -> tuple[Row, Row]:
        """Tensors on the feed, and on a variant of it, which may fail: its row is empty then. Raises DoesNotRun."""
        extra = [name for name in names if name not in self.outputs]
        with open_with_extra_outputs(self.model, extra, self.runtime) as session:
            values = _row(session.run(self.feed, list(names)), names)
            if variant is None:
                return values, {}
            try:
                return values, _row(session.run(variant, list(names)), names)
            except DoesNotRun:  # as where a size is computed from the inputs
                return values, {}


def _row(values: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    return flatten({names[name]: value for name, value in values.items()})


@dataclass
class _Reader:
    """The models that are run on each slice, all on one feed.

    Attributes:
        measure, other: the two models.
        moved, twin: `measure` with weights moved by one ulp, and in float32; None where there is none.
        is_swapped: whether `measure` is the second model.
        unreadable: (tensor, why) of those that no session gives out.
    """

    measure: _Source
    other: _Source
    moved: _Source | None
    twin: _Source | None
    is_swapped: bool
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """How many values of a tensor are held at once."""
        return 3 + (self.moved is not None) + (self.twin is not None)

    def name(self, tensor: SharedTensor) -> str:
        """A tensor's name in `measure`."""
        return tensor.second if self.is_swapped else tensor.first

    def read(self, tensors: Sequence[SharedTensor]) -> Iterator[tuple[Sequence[SharedTensor], SliceValues]]:
        """The values of a slice; of its halves, if a tensor in it is none that sessions give out."""
        if len(self.unreadable) > _MAX_UNREADABLE:
            return
        try:
            values = self._values(tensors)
        except DoesNotRun as error:
            if len(tensors) == 1:
                self.unreadable.append((tensors[0].first, str(error)))
                return
            half = len(tensors) // 2
            yield from self.read(tensors[:half])
            yield from self.read(tensors[half:])
        else:
            yield tensors, values
            release_heap()

    def _values(self, tensors: Sequence[SharedTensor]) -> SliceValues:
        """One session is open at a time. Raises DoesNotRun: one of the two does not give the tensors out."""
        names = {self.name(tensor): tensor.first for tensor in tensors}
        others = {(t.first if self.is_swapped else t.second): t.first for t in tensors}
        measure, by_inputs = self.measure.rows(names, nudge_feed(self.measure.feed))
        other = self.other.row(others)
        by_weights, twin = (self._variant(source, names) for source in (self.moved, self.twin))
        return SliceValues(measure, other, by_inputs, by_weights, twin)

    def _variant(self, source: _Source | None, names: Mapping[str, str]) -> Row:
        """Empty where there is no such variant, or where it does not run: its noise is unknown then."""
        if source is None:
            return {}
        try:
            return source.row(names)
        except DoesNotRun:
            return {}


def _reader(measure: Model, other: Model, baseline: Baseline, pairing: Pairing, is_swapped: bool) -> _Reader:
    """Raises DoesNotRun: a model cannot be read."""
    proto, other_proto = (load(model, weights=False) for model in (measure, other))
    outputs, other_outputs = (frozenset(v.name for v in each.graph.output) for each in (proto, other_proto))
    feed, runtime = baseline.feed(_FIRST_FEED), baseline.runtime
    theirs = converted(renamed(feed, pairing.inputs.paired), input_values(other_proto.graph))
    moved = nudged_weights(measure)
    twin = float32_twin(measure) if uses_short_floats(proto) else None
    return _Reader(
        _Source(measure, outputs, feed, runtime),
        _Source(other, other_outputs, theirs, runtime),
        None if moved is None else _Source(moved, outputs, feed, runtime),
        None if twin is None else _Source(twin, outputs, widened(feed), runtime),
        is_swapped,
    )
