"""A fold to be judged, as two small models, and what can be read off them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, FloatFormat
from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.anonymous import Anonymous, anonymous
from onnx_repfuse.verifier.folds.position_weights import weighs_elements, weighs_positions
from onnx_repfuse.verifier.folds.windows import deepest_sum, pads, path, windows
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from onnx_repfuse.verifier.session import input_at

__all__ = ["FoldCase", "Source", "Window", "is_chain", "reach", "total_extent", "total_stride"]

# Operators of which an output position depends on other positions of the input.
_MIXES_POSITIONS = {
    "AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "Pad", "ReduceMean",
    "ReduceSum", "Resize", "Slice", "SpaceToDepth",
}  # fmt: skip


_WINDOWS = {"AveragePool", "Conv", "ConvTranspose"}
# What is shown of these at one value is shown at all, of either sign; of others, as a PRelu or a Clip, it is not.
_LINEAR = {
    *_MIXES_POSITIONS, "Add", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Dropout",
    "Einsum", "Expand", "Flatten", "Gather", "Gemm", "Identity", "MatMul", "Mean", "Mul", "Neg", "Range", "Reshape",
    "Shape", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
_MAX_DIVISOR = 64  # of sizes; probes of a multiple of more would be large


@dataclass(frozen=True)
class Source:
    """A tensor the fold reads.

    Attributes:
        name: as in both models.
        dtype: numpy's.
        dims: sizes; None where the fold takes any.
        channel: the axis of the channels.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    channel: int

    @staticmethod
    def of(value: onnx.ValueInfoProto, convolves: bool) -> Source:
        """The source that a graph input declares; `convolves` tells that it is read as (N, C, *space)."""
        tensor = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
        dims = tuple(size if size > 0 else None for size in sizes)
        # A single fixed axis is that of the channels. Else it is where the operators have it: convolutions at 1,
        # products at the end.
        fixed = [axis for axis in range(1, len(dims)) if dims[axis] is not None]
        usual = 1 if convolves or len(dims) > 3 else len(dims) - 1
        channel = fixed[0] if len(fixed) == 1 else usual
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return Source(value.name, dtype, dims, channel)

    @property
    def has_channels(self) -> bool:
        """Whether one of its axes may hold channels: a scalar and a vector are treated alike at all elements."""
        return len(self.dims) > 1

    @property
    def space(self) -> tuple[int, ...]:
        """The free axes other than the first."""
        return tuple(axis for axis in range(1, len(self.dims)) if self.dims[axis] is None)

    @property
    def batch(self) -> int | None:
        """The size of the first axis, if the model fixes it."""
        return self.dims[0] if self.dims else None

    def shape(self, rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """A full shape: `rows` for a free first axis, and `sizes`, again and again, for the other free axes."""
        dims = [0 if dim is None else dim for dim in self.dims]  # the zeros are replaced below
        if dims and self.batch is None:
            dims[0] = rows
        for axis, size in zip(self.space, itertools.cycle(sizes), strict=False):
            dims[axis] = size
        return tuple(dims)


class Window(NamedTuple):
    """What slides over an axis of a tensor, and leaves `floor((size + slack) / stride) + 1`."""

    tensor: str
    axis: int
    stride: int
    slack: int


class _Side:
    """One model of a fold and what is made of it, once."""

    def __init__(self, model: onnx.ModelProto, apart: Mapping[str, Array]) -> None:
        self.model = model
        self.apart = apart

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The initializers by name."""
        return {
            tensor.name: self.apart[tensor.name]
            if tensor.name in self.apart
            else onnx.numpy_helper.to_array(tensor)
            for tensor in self.model.graph.initializer
        }

    @property
    def complete(self) -> onnx.ModelProto:
        """The model with the elements of all initializers."""
        if not self.apart:
            return self.model
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        for tensor in result.graph.initializer:
            if tensor.name in self.apart:
                tensor.raw_data = self.apart[tensor.name].tobytes()
        return result

    @cached_property
    def oracle(self) -> Oracle:
        """Raises Unsupported."""
        return Oracle(self.model, arrays=self.arrays)

    @cached_property
    def anonymous(self) -> Anonymous:
        """The model without names and weights."""
        return anonymous(self.model, self.arrays)


@dataclass(frozen=True)
class FoldCase:
    """One fold as two small models with the same inputs and the same outputs.

    Attributes:
        before: the original nodes. Graph inputs are the sources, with element type, rank and channels
            declared, batch and space symbolic; constants are initializers.
        after: the nodes that replace them.
        flushed: no weight above this became zero because it was too small to show; 0 if none did.
        proved: the shapes that sources have in the file, as far as it tells; an axis is None where it may vary.
        behind: what the axes of sources are sizes behind, as far as the file tells.
        weights_apart: the elements of initializers that the models only declare.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto
    flushed: float = 0.0
    proved: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    behind: Mapping[str, tuple[Window | None, ...]] = field(default_factory=dict)
    weights_apart: Mapping[str, Array] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the fold computes; today there is one."""
        return tuple(value.name for value in self.before.graph.output)

    @property
    def output(self) -> str:
        """The tensor whose name stands for the fold in verdicts and messages."""
        return self.outputs[0]

    @property
    def bytes_apart(self) -> int:
        """What `weights_apart` takes."""
        return sum(array.nbytes for array in self.weights_apart.values())

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The inputs of `before`."""
        graph = self.before.graph
        convolves = any(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
        constants = {tensor.name for tensor in graph.initializer}  # up to IR version 3 they are inputs, too
        return tuple(Source.of(value, convolves) for value in graph.input if value.name not in constants)

    @cached_property
    def measured(self) -> frozenset[str]:
        """The sources of which nothing but the sizes is read: their values decide nothing."""
        nodes = (*self.before.graph.node, *self.after.graph.node)
        read = {name for node in nodes if node.op_type != "Shape" or node.domain for name in node.input}
        return frozenset(source.name for source in self.sources) - read - set(self.outputs)

    @cached_property
    def float_format(self) -> FloatFormat:
        """The coarsest float type among sources and weights."""
        types = {value.type.tensor_type.elem_type for value in self.before.graph.input}
        types |= {tensor.data_type for tensor in self._constants}
        formats = [FLOAT_FORMATS[kind] for kind in types if kind in FLOAT_FORMATS]
        return max(formats, key=lambda limits: limits.epsilon, default=FLOAT_FORMATS[onnx.TensorProto.FLOAT])

    def oracle(self, model: onnx.ModelProto) -> Oracle:
        """The oracle of `before` or `after`; each is made once, as it has the weights in float64.

        Raises:
            Unsupported: it does not know the operators.
        """
        return self.side(model).oracle

    def side(self, model: onnx.ModelProto) -> _Side:
        """What was made of `before` or `after`."""
        return self._side_before if model is self.before else self._side_after

    @cached_property
    def _side_before(self) -> _Side:
        return _Side(self.before, self.weights_apart)

    @cached_property
    def _side_after(self) -> _Side:
        return _Side(self.after, self.weights_apart)

    @cached_property
    def structure(self) -> object:
        """What it has in common with folds that differ in names, weights and numbers of channels only; hashable."""
        sources = (
            (
                *(s.dtype.name, s.channel),
                *(_kind_of_dim(s, axis, self.has_weights) for axis in range(len(s.dims))),
            )
            for s in self.sources
        )
        return (self._side_before.anonymous.structure, self._side_after.anonymous.structure, *sources)

    @property
    def has_weights(self) -> bool:
        """Whether folds of one structure can differ."""
        return bool(self._side_before.anonymous.weights or self._side_after.anonymous.weights)

    @property
    def is_initializer(self) -> bool:
        """Whether no node is left: its output is an initializer, with the value that a runtime computed."""
        return not self.after.graph.node

    @cached_property
    def is_exact(self) -> bool:
        """Whether its output has no rounding: integers, booleans."""
        return self.before.graph.output[0].type.tensor_type.elem_type not in FLOAT_FORMATS

    @cached_property
    def is_per_position(self) -> bool:
        """Whether no operator of either model mixes positions."""
        nodes = (*self.before.graph.node, *self.after.graph.node)
        return not any(node.op_type in _MIXES_POSITIONS for node in nodes)

    @cached_property
    def mixes_without_window(self) -> bool:
        """Whether an operator that is no window mixes positions: a Slice, a Pad, a Resize."""
        nodes = (*self.before.graph.node, *self.after.graph.node)
        return any(node.op_type in _MIXES_POSITIONS - _WINDOWS for node in nodes)

    @cached_property
    def bends(self) -> bool:
        """Whether an operator of either model is not linear: it may be right for some values and wrong for others."""
        nodes = (*self.before.graph.node, *self.after.graph.node)
        return any(node.op_type not in _LINEAR for node in nodes)

    @cached_property
    def pads(self) -> bool:
        """Whether a window or a Pad of either model reaches beyond its input."""
        return any(map(pads, (*self.before.graph.node, *self.after.graph.node)))

    @cached_property
    def weighs_positions(self) -> bool:
        """Whether positions may have weights of their own, as in a product with a map: shown by signal there alone."""
        channels: set[int] = set()
        positions: set[int] = set()
        for source in self.sources:
            sizes = [dim or 1 for axis, dim in enumerate(source.dims) if axis not in (0, source.channel)]
            positions.update((*sizes, math.prod(sizes)))
            channels.update(dim or 1 for dim in source.dims[source.channel : source.channel + 1])
        return any(weighs_positions(model, channels, positions) for model in (self.before, self.after))

    @cached_property
    def weighs_elements(self) -> bool:
        """Whether a sum may give each channel of each position a weight of its own."""
        return any(map(weighs_elements, (self.before, self.after)))

    @cached_property
    def names_its_sizes(self) -> bool:
        """Whether a Reshape says how high and wide images are: other sizes do not fit, or by luck as batches."""
        # (N, C, H, W), or more axes: of 1x1 images it may be the channels that are counted
        return any(len(t) > 3 and min(t[1:]) > 0 and min(t[-2:]) > 1 for t in self._reshape_targets)

    @cached_property
    def _reshape_targets(self) -> list[list[int]]:
        """The constant lists of sizes of the Reshapes before."""
        lists = {t.name: t for t in self.before.graph.initializer if t.data_type == onnx.TensorProto.INT64}
        reshapes = (node for node in self.before.graph.node if node.op_type == "Reshape")
        targets = [lists[input_at(node, 1)] for node in reshapes if input_at(node, 1) in lists]
        return [onnx.numpy_helper.to_array(target).ravel().tolist() for target in targets]

    @cached_property
    def block(self) -> int:
        """What every size must be a multiple of: runtimes run SpaceToDepth on whole blocks alone."""
        return math.lcm(
            *(
                attribute.i
                for node in self.before.graph.node
                for attribute in node.attribute
                if node.op_type == "SpaceToDepth" and attribute.name == "blocksize" and attribute.i > 0
            )
        )

    @cached_property
    def divisor(self) -> int:
        """What sizes may have to be a multiple of: the graph divides by it, or takes every n-th position."""
        constants = {t.name: t for t in self.before.graph.initializer if t.data_type not in FLOAT_FORMATS}
        places = {"Div": 1, "Slice": 4}
        divisors = [
            constants.get(node.input[places[node.op_type]])
            for node in self.before.graph.node
            if len(node.input) > places.get(node.op_type, len(node.input))
        ]
        values = [onnx.numpy_helper.to_array(t).ravel() for t in divisors if t is not None]
        # a Slice lists a step for each axis
        return math.lcm(*(int(step) for value in values for step in value if 1 < step <= _MAX_DIVISOR))

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """What sizes may have to be a multiple of, likely numbers first: a Reshape counts what is in an image, too."""
        parts = math.lcm(*(math.prod(max(1, size) for size in target) for target in self._reshape_targets))
        axes = max((len(source.space) for source in self.sources), default=0)
        # the smallest that makes so many of an image of so many axes
        shared = next((size for size in range(1, _MAX_DIVISOR + 1) if size**axes % parts == 0), 1)
        divided = math.lcm(self.block, self.divisor)
        return tuple(dict.fromkeys((self.block, divided, math.lcm(divided, shared))))

    @cached_property
    def weights(self) -> int:
        """The number of elements of all float constants of both models: the products that one position takes."""
        return sum(math.prod(t.dims) for t in self._constants if t.data_type in FLOAT_FORMATS)

    @cached_property
    def depth(self) -> int:
        """The most channels that one output element sums."""
        return max(deepest_sum(self.before), deepest_sum(self.after))

    def is_usable(self, values: Array) -> Array:
        """Where float64 values are finite and far from the format's largest, bool of the same shape.

        Near that, a format may overflow on the way to a result that does not.
        """
        return np.asarray(np.isfinite(values) & (np.abs(values) < self.float_format.largest / 4))

    def products(self, shape: tuple[int, ...]) -> int:
        """How many products an output of this shape takes: one per weight and position. (N, C, *space) or (N, C)."""
        channels = shape[1] if len(shape) > 1 else 1
        return self.weights * math.prod(shape) // channels

    @property
    def _constants(self) -> list[onnx.TensorProto]:
        return [*self.before.graph.initializer, *self.after.graph.initializer]


def _kind_of_dim(source: Source, axis: int, has_weights: bool) -> int | str:
    """Of a source with sizes to choose, any number of channels is as good as another; else sizes are what they are.

    Without weights, nothing is tried of a later fold, and what moves channels depends on their number.
    """
    if has_weights and source.space and axis == source.channel:
        return "channels"
    return source.dims[axis] or "any"


def reach(case: FoldCase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(kernel extent, largest stride), each per spatial axis, over all windows of both models."""
    # A fold of parallel branches reaches as far as its largest kernel; a composed kernel, in `after`, farther.
    both = [*windows(case.before), *windows(case.after)]
    extents = itertools.zip_longest(*(extent for extent, _ in both), fillvalue=0)
    strides = itertools.zip_longest(*(stride for _, stride in both), fillvalue=1)
    return tuple(max(axis) for axis in extents), tuple(max(axis) for axis in strides)


def total_stride(case: FoldCase) -> int:
    """How many remainders of a size its windows tell apart: the stride of those that read each other's results."""
    return max(path(case.before)[0], path(case.after)[0])


def total_extent(case: FoldCase) -> int:
    """From which size on its windows fit without padding, also those that read each other's results."""
    return max(path(case.before)[1], path(case.after)[1])


def is_chain(case: FoldCase) -> bool:
    """Whether the replacement has several windows, of which one may read what another computes."""
    return sum(1 for _ in windows(case.after)) > 1
