"""A fold's replacement on the original's own intermediates, against what the original has at the fold's output.

No depth, no saturation and no argmax is in the way: what the fold gets wrong shows where it is computed. The tolerance
is the probes', with the magnitudes of a small tile whose channels hold levels that the intermediates reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.verdict import StageVerdict
from onnx_repfuse.verifier.distance import Array, difference
from onnx_repfuse.verifier.folds.blocks import blocks, part_of
from onnx_repfuse.verifier.folds.comparison import Comparison
from onnx_repfuse.verifier.folds.error_bound import (
    SIZE_ERRORS,
    Evaluation,
    Side,
    folding_bound,
    measured_bound,
    runtime_bound,
)
from onnx_repfuse.verifier.folds.fold_case import FoldCase, Source, is_chain, reach
from onnx_repfuse.verifier.folds.structures import Structures
from onnx_repfuse.verifier.intermediates import Intermediates, shape_name
from onnx_repfuse.verifier.noise import nudge_feed
from onnx_repfuse.verifier.oracle.tensor import Unsupported
from onnx_repfuse.verifier.session import DoesNotRun

__all__ = ["check_in_place"]

_REFERENCE_PRODUCTS = 300_000_000  # onnx's evaluator is slow: it runs only folds that take fewer than this
# so many at most are evaluated in float64 for a fold that would fail: some seconds
_TRUTH_PRODUCTS = 4_000_000_000
_WHOLE_ELEMENTS = 1 << 20  # of its sources, that are evaluated where no smaller tile fits a fold
_LARGE_OUTPUT, _LARGE_PRODUCTS = 1 << 18, 60_000_000  # from here on the oracle takes longer than the runtime
_OWN_ERROR_FACTOR = 2.0  # times the original's own error from float64 a correct fold may have
# With this many channels and more, a sum of their largest values is far from what any sum of them reaches.
_MANY_CHANNELS = 32
_TAKE_TILES = {"Add", "BatchNormalization", "Conv", "Mul"}


def check_in_place(
    case: FoldCase, intermediates: Intermediates, structures: Structures | None = None
) -> StageVerdict:
    """Judge one fold by tensors of the original's main graph.

    Args:
        case: the fold.
        intermediates: the values of its sources and its output among others, or why they cannot be read.
        structures: runs the replacement.

    Returns:
        PASSED, FAILED, or NOT_OBSERVED where there are no values, or they hold no signal.
    """
    structures = structures or Structures()
    comparison = Comparison(case.output, "in-place")
    if isinstance(intermediates, str):
        return comparison.not_observed(intermediates)
    feed = {source.name: _activations(source, intermediates) for source in case.sources}
    read = [value for name, value in feed.items() if name not in case.measured]
    expected = np.asarray(intermediates[case.output])
    if not expected.size or (read and not any(map(np.any, read))):
        return comparison.not_observed("the activations it reads are all zero")
    case = _with_ranks_of(case, feed)
    try:
        after = structures.open(case, case.after)
        comparison.backend = after.backend
        if after.backend == "reference" and case.products(expected.shape) > _REFERENCE_PRODUCTS:
            return comparison.not_observed("onnx's reference evaluator is too slow for it")
        actual = after.run(feed)[case.output]
    except DoesNotRun as error:
        return comparison.failed(f"its replacement does not run in place: {error}")
    if actual.shape != expected.shape:
        return comparison.failed(f"in place its shape is {actual.shape} instead of {expected.shape}")
    if not any(_usable(case, expected[block]).any() for block in blocks(expected.shape)):
        return comparison.not_observed("the original's activations overflow there")
    if actual.dtype == expected.dtype and np.array_equal(actual, expected):  # as where values are moved alone
        return comparison.equal("its values are the original's, in place")
    for narrow in _narrow_tolerances(case, feed, expected, structures):
        quick = comparison.anew()
        _record(case, quick, expected, actual, expected, narrow)
        if not quick.fails:
            return quick.verdict()
    return _judge(case, comparison, feed, expected, actual, structures)


def _narrow_tolerances(
    case: FoldCase, feed: Mapping[str, Array], expected: Array, structures: Structures
) -> Iterator[Array]:
    """What is known soon, and no wider than the tolerance: what passes with one of these passes."""
    of_replacement = _tolerance_of_replacement(case, feed, expected.shape)
    if of_replacement is not None:
        yield of_replacement
    if _takes_long(case, expected):
        # one move shows no more noise than several
        by_noise = _tolerance_by_noise(case, feed, structures, moves=1)
        if by_noise is not None:
            yield by_noise


def _judge(
    case: FoldCase,
    comparison: Comparison,
    feed: Mapping[str, Array],
    expected: Array,
    actual: Array,
    structures: Structures,
) -> StageVerdict:
    """With the bounds of both sides and, where that fails, the original's own error."""
    tolerance: Array | None
    try:
        tolerance = _tolerance(case, feed, expected.shape)
    except Unsupported as reason:
        comparison.note(f"the oracle does not know {reason}; the runtime alone was the judge")
        tolerance = _tolerance_by_noise(case, feed, structures)
        if tolerance is None:
            return comparison.failed("its nodes do not run alone")
    _record(case, comparison, expected, actual, expected, tolerance)
    measured = _by_own_error(case, feed, expected, tolerance) if comparison.fails else None
    if measured is not None:
        comparison = comparison.anew()
        truth, tolerance = measured
        _record(case, comparison, expected, actual, truth, tolerance, "from float64, ")
    return comparison.verdict()


def _activations(source: Source, intermediates: Mapping[str, Any]) -> Array:
    """The values of a source, or zeros where nothing but its sizes was read."""
    value = intermediates.get(
        source.name
    )  # of some tensors, this fold needs the values and another the sizes
    return (
        np.zeros(intermediates[shape_name(source.name)], source.dtype) if value is None else np.asarray(value)
    )


def _record(
    case: FoldCase,
    comparison: Comparison,
    expected: Array,
    actual: Array,
    truth: Array,
    tolerance: Array,
    how: str = "",
) -> None:
    """Compare with `truth` what is usable of the original's tensor, `expected`."""
    for block in blocks(expected.shape):
        gap = difference(truth[block], actual[block])
        usable = _usable(case, expected[block])
        if not usable.all():  # rare; the masks take time
            gap = np.where(usable, gap, 0.0)
        where = f"{how}on the model's own activations"
        comparison.record(gap, part_of(tolerance, block), where, block)


def _usable(case: FoldCase, values: Array) -> Array:
    return case.is_usable(values if values.dtype == np.float32 else values.astype(np.float64))


def _takes_long(case: FoldCase, expected: Array) -> bool:
    """Whether the oracle has to evaluate a tensor as large as the model's own, as the fold takes no other size.

    Then its noise in the runtime is the measure, as of whole models, and what fails is judged by the oracle. Not in
    half precision, where noise hides more.
    """
    takes_tiles = any(source.space for source in case.sources) and not _sums_positions(case)
    is_large = expected.size >= _LARGE_OUTPUT or case.products(expected.shape) >= _LARGE_PRODUCTS
    return is_large and not takes_tiles and not case.float_format.is_half


def _sums_positions(case: FoldCase) -> bool:
    """Whether results grow with the number of positions, as those of an average do not."""
    return any(node.op_type in ("Einsum", "ReduceSum") for node in case.before.graph.node)


def _by_own_error(
    case: FoldCase, feed: Mapping[str, Array], expected: Array, tolerance: Array
) -> tuple[Array, Array] | None:
    """The truth, and the tolerance raised to what the original itself needs; None where that is unknown or no more.

    The tolerance takes roundings for independent. Where terms are equal (a kernel of one value on a constant image) all
    partial sums round one way, and the error grows with n instead of sqrt(n): up to sqrt(n) times the tolerance. What
    the original's own result is from float64 on the same tensors tells. A correct fold sums the same terms scaled, so
    it errs as much up to luck, for which twice as much is allowed. Evaluated only where the comparison would fail.
    """
    if case.products(expected.shape) > _TRUTH_PRODUCTS:
        return None
    try:
        truth = case.oracle(case.before)(feed)
    except (Unsupported, *SIZE_ERRORS):
        return None
    if truth.value.shape != expected.shape:
        return None
    usable = case.is_usable(truth.value) & np.isfinite(expected.astype(np.float64))
    own = np.where(usable, difference(truth.value, expected), 0.0)
    with np.errstate(all="ignore"):
        share = float(np.nan_to_num(own / tolerance, posinf=0.0).max())
    # Beyond that no order of summation goes: the oracle does not read the nodes as the runtime does.
    if _OWN_ERROR_FACTOR * share <= 1.0 or share > np.sqrt(truth.terms.max()):
        return None
    return truth.value, np.asarray(tolerance * _OWN_ERROR_FACTOR * share)


def _with_ranks_of(case: FoldCase, feed: Mapping[str, Array]) -> FoldCase:
    """The case with the ranks its sources have in the model, where it was declared with others.

    A product on the last axis takes any rank, and the file need not prove one.
    """
    other = {s.name: s for s in case.sources if len(s.dims) != np.ndim(feed[s.name])}
    if not other:
        return case
    models = []
    for model in (case.before, case.after):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for value in copy.graph.input:
            source = other.get(value.name)
            if source is None:
                continue
            is_last = source.channel == len(source.dims) - 1
            channels = source.dims[source.channel] if is_last else None
            free = (f"{value.name}.{axis}" for axis in range(np.ndim(feed[value.name]) - 1))
            kind = value.type.tensor_type.elem_type
            dims = [*free, channels or "channels"]
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, dims))
        models.append(copy)
    return replace(case, before=models[0], after=models[1])


def _tolerance(case: FoldCase, feed: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """What rounding may change at these values, per channel: broadcastable to `shape`, the output's.

    Evaluating magnitudes on whole tensors would cost as much as the network, so they come from a tile.

    Raises:
        Unsupported: the oracle does not know the nodes, or no tile fits them.
    """
    first, second = Side(case, case.before), Side(case, case.after)
    last: Exception | None = None
    # In half precision, what is stored is a part of the bounds.
    needs_values = case.bends or case.float_format.is_half
    for tile in _tiles(case, feed):
        try:
            before, after = (side.evaluate(tile, needs_values=needs_values) for side in (first, second))
        except SIZE_ERRORS as error:
            last = error
            continue
        # A fold that holds the model's sizes gives another shape than its nodes do of a smaller tile.
        if before.value.shape == after.value.shape:
            return _largest_of_channels(case, before, after, shape)
        last = ValueError("the shapes differ")
    raise Unsupported(f"these nodes at a small size ({last})")


def _tolerance_of_replacement(
    case: FoldCase, feed: Mapping[str, Array], shape: tuple[int, ...]
) -> Array | None:
    """The part of `_tolerance` that the replacement has in it, which is enough as a rule; None where it is not known.

    Windows and sums alone take a tile of any size; what else there is may read a small one otherwise.
    """
    if case.bends or case.float_format.is_half:
        return None
    takes_any = all(node.op_type in _TAKE_TILES for node in case.after.graph.node)
    try:
        side = Side(case, case.after)
        for tile in _tiles(case, feed):
            with suppress(*SIZE_ERRORS):
                after = side.evaluate(tile, needs_values=False)
                if takes_any or after.value.shape[1:] == shape[1:]:
                    return _largest_of_channels(case, None, after, shape)
    except Unsupported:
        return None
    return None


def _largest_of_channels(
    case: FoldCase, before: Evaluation | None, after: Evaluation, shape: tuple[int, ...]
) -> Array:
    """The bounds of both sides or of one, the largest of each channel: (C,) among axes of size 1."""
    rank, own = len(shape), after.value.shape
    if len(own) != rank:  # of the tile's output and of the model's own
        raise Unsupported("their rank")
    # The output's channels: where the source has them, or where convolutions and products have them.
    likely = [axis % rank for axis in (case.sources[0].channel, 1, -1) if -rank <= axis < rank]
    channel = next((axis for axis in likely if own[axis] == shape[axis]), None)
    others = tuple(axis for axis in range(rank) if axis != channel)
    if before is None:
        after = after.largest(tuple(axis for axis in others if axis))
        total = folding_bound(after.negligible, after)
    else:
        total = folding_bound(before, after) + runtime_bound(before, is_sample=True)
    return np.asarray((total + runtime_bound(after, is_sample=True)).max(others, keepdims=True))


def _tiles(case: FoldCase, feed: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Constant feeds at the level of the intermediates: small ones, at the size of a row of the batch, of all of it."""
    levels = {
        source.name: _level(feed[source.name], source.channel, case.depth, source.name in case.measured)
        for source in case.sources
    }
    if len(case.sources) == 1 and not _sums_positions(case):
        (source,) = case.sources
        level = levels[source.name]
        if source.has_channels and level.ndim == len(source.dims):
            extents, strides = reach(case)
            # A window that meets no padding: some stride of one begins at 0 or behind. Of several windows in a row, the
            # last meets none where there is more room.
            room = 1 if is_chain(case) else -1
            size = tuple(extent + stride + room for extent, stride in zip(extents, strides, strict=True)) or (
                2,
            )
            if math.prod(size) > _WHOLE_ELEMENTS:  # of large strides: the model's own size is not larger
                size = tuple(extents) or (2,)
            shape = list(source.shape(1, size))
            # also where the fold does not declare how many channels there are
            if level.shape[source.channel] > 1:
                shape[source.channel] = level.shape[source.channel]
            yield {source.name: np.broadcast_to(level, shape)}
    yield {
        name: np.broadcast_to(level, (1, *np.shape(feed[name])[1:]) if level.ndim > 1 else level.shape)
        for name, level in levels.items()
    }
    if sum(map(np.size, feed.values())) <= _WHOLE_ELEMENTS:
        yield {name: np.broadcast_to(level, np.shape(feed[name])) for name, level in levels.items()}


def _level(value: Array, channel: int, depth: int, is_measured: bool) -> Array:
    """Per channel, a size that is rarely exceeded by many channels at once; shape (1, ..., C, ..., 1).

    With few channels per sum (`depth`) that is the largest |x|. With many it is 1.5 times the root mean square, raised
    by how much the position with the most energy stands out. If nothing but the sizes is read, 0.
    """
    if is_measured and value.ndim > 1:
        return np.zeros([size if axis == channel else 1 for axis, size in enumerate(value.shape)])
    sizes = np.abs(value) if value.dtype == np.float32 else np.abs(value.astype(np.float64))
    if not np.isfinite(sizes.max(initial=0)):
        sizes = np.nan_to_num(sizes, nan=0.0, posinf=0.0)
    if sizes.ndim < 2:  # a vector of channels
        return sizes.astype(np.float64)
    others = tuple(axis for axis in range(sizes.ndim) if axis != channel)
    top = sizes.max(others, keepdims=True)
    if depth < _MANY_CHANNELS:
        return np.asarray(top, np.float64)
    squares = np.square(sizes, dtype=np.float64)
    energy = squares.mean(channel)  # per position
    peak = float(energy.max() / energy.mean()) if energy.any() else 1.0
    return np.asarray(np.minimum(top, 1.5 * np.sqrt(peak * squares.mean(others, keepdims=True))))


def _tolerance_by_noise(
    case: FoldCase, feed: Mapping[str, Array], structures: Structures, moves: int = 2
) -> Array | None:
    """From how far the original nodes' result moves with what they read; None if they do not run alone.

    Not from how far it is from the original's tensor: if these nodes did not compute that, the gap would excuse all.
    """
    try:
        before = structures.open(case, case.before)
        still = before.run(feed)[case.output]
        nudged = (before.run(nudge_feed(feed, seed))[case.output] for seed in range(1, moves + 1))
        return measured_bound(still, nudged)
    except DoesNotRun:
        return None
