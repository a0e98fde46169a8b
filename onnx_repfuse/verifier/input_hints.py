"""What a graph demands of its inputs: indices within a table, probabilities, and sizes that its constants imply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt, prod

import numpy as np
import onnx

from onnx_repfuse.verifier.flat_graph import constant_shapes, flat_graph
from onnx_repfuse.verifier.folds.windows import window_of
from onnx_repfuse.verifier.input_axes import AxisHints, axis_hints, int_attribute
from onnx_repfuse.verifier.session import Dim, Model, ValueInfo, input_at, load

__all__ = ["InputHints", "input_hints"]

# Operators that hand on the values of their first input.
_KEEP_VALUES = frozenset(["Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten"])
# (operator, input): what has to lie in [0, 1). Dropout and NonMaxSuppression refuse other values.
_FRACTIONS = frozenset([("Dropout", 1), ("Bernoulli", 0), ("NonMaxSuppression", 3), ("NonMaxSuppression", 4)])
_SCALES = frozenset([("Resize", 2), ("Upsample", 1)])  # (operator, input): factors of sizes, which are 1 here
# Operators whose integer constants are sizes, or positions up to one.
_SHAPED = frozenset(["Reshape", "Expand", "Slice", "Tile", "Gather", "Range", "ConstantOfShape"])
_ELEMENTWISE = frozenset(["Add", "Sub", "Mul", "Div"])
_MAX_READ = 64  # elements of an integer constant that is read
_MAX_SIZE = 1 << 18  # of a dim
_MAX_SIZES = 32


@dataclass(frozen=True)
class InputHints:
    """What is known of the values and sizes of inputs.

    Attributes:
        bounds: input name -> number of values that an integer input may take, as it indexes a table.
        fractions: inputs whose values have to lie in [0, 1).
        scales: inputs that are factors of sizes.
        sizes: sizes of free dims at which the graph's constants may fit, to be tried where usual sizes do not.
        extent: the largest extent of a kernel.
        axes: what the nodes that read an input tell of its rank and sizes.
        unranked: the inputs whose rank is not declared.
        steady: the first element, and the others, of integers that nothing bounds; None: random ones.
    """

    bounds: Mapping[str, int] = field(default_factory=dict)
    fractions: frozenset[str] = frozenset()
    scales: frozenset[str] = frozenset()
    sizes: tuple[int, ...] = ()
    extent: int = 1
    axes: Mapping[str, AxisHints] = field(default_factory=dict)
    unranked: frozenset[str] = frozenset()
    steady: tuple[int, int] | None = None

    def readings(self, inputs: Sequence[ValueInfo]) -> Iterator[list[ValueInfo]]:
        """The inputs with what is known of their axes in the place of what is open, one list for each rank to try.

        At last, with recurrent states of the batch's size, and with inputs of one rank that have one size.
        """
        ranks = [self._axes(value).ranks() for value in inputs if value.name in self.unranked]
        for attempt in range(max(map(len, ranks), default=1)):
            read = [self._read(value, attempt) for value in inputs]
            sizes: dict[Dim, Dim] = {}  # of dims that have a name, which means one size in all inputs
            for value, known in zip(inputs, read, strict=True):
                pairs = zip(value.shape, known.shape, strict=False)
                sizes.update((dim, size) for dim, size in pairs if isinstance(dim, str) and dim != size)
            yield [known._replace(shape=tuple(sizes.get(dim, dim) for dim in known.shape)) for known in read]
        first = [self._read(value, 0) for value in inputs]
        yield from _with_states(first)
        yield from _of_one_size(first)

    def _axes(self, value: ValueInfo) -> AxisHints:
        return self.axes.get(value.name, AxisHints())

    def _read(self, value: ValueInfo, attempt: int) -> ValueInfo:
        axes, shape = self._axes(value), value.shape
        if value.name in self.unranked:
            ranks = axes.ranks()
            shape = (None,) * ranks[min(attempt, len(ranks) - 1)]
        return value._replace(shape=axes.applied(shape))


def _with_states(inputs: Sequence[ValueInfo]) -> Iterator[list[ValueInfo]]:
    """The inputs, of which recurrent states, (layers, N, channels) as of an LSTM, have the batch size of the first."""
    with_batch = [value for value in inputs if value.shape and not isinstance(value.shape[0], int)]
    states = {value.name for value in inputs if _is_like_a_state(value)}
    if not (with_batch and states):
        return
    name, dims = with_batch[0].name, with_batch[0].shape
    batch = dims[0] or f"{name}.0"
    result = []
    for value in inputs:
        shape = (batch, *dims[1:]) if value.name == name else value.shape
        layers_and_channels = (shape[0], batch, shape[-1]) if value.name in states else shape
        result.append(value._replace(shape=layers_and_channels))
    yield result


def _is_like_a_state(value: ValueInfo) -> bool:
    """Whether only the middle one of three dims is open. It may be a sequence, so this reading is among the last."""
    return [isinstance(dim, int) for dim in value.shape] == [True, False, True]


def _of_one_size(inputs: Sequence[ValueInfo]) -> Iterator[list[ValueInfo]]:
    """The inputs, of which those of one rank have the sizes of the first, where sizes are open: they may be added."""
    firsts: dict[int, tuple[Dim, ...]] = {}
    result = []
    for value in inputs:
        named = tuple(f"{value.name}.{axis}" if dim is None else dim for axis, dim in enumerate(value.shape))
        first = firsts.setdefault(len(named), named)
        pairs = zip(value.shape, first, strict=True)
        result.append(
            value._replace(shape=tuple(own if isinstance(own, int) else other for own, other in pairs))
        )
    if any(value.shape != like.shape for value, like in zip(inputs[1:], result[1:], strict=True)):
        yield result


def input_hints(original: Model, inputs: Iterable[ValueInfo]) -> InputHints:
    """Read a model for hints; its weights need not be loaded. Raises DoesNotRun."""
    inputs = list(inputs)
    has_open_dims = any(not isinstance(dim, int) for value in inputs for dim in value.shape)
    integers = {value.name for value in inputs if "int" in value.type}
    numbers = integers | {value.name for value in inputs if "float" in value.type}
    if not numbers and not has_open_dims:
        return InputHints()
    graph = flat_graph(load(original, weights=False))
    extents = [extent for extent, _ in _windows(graph)]
    hints = InputHints(
        bounds=_table_rows(graph, integers),
        fractions=_that_reach(graph, numbers, _FRACTIONS),
        scales=_that_reach(graph, numbers, _SCALES),
        extent=max(extents, default=1),
        unranked=_unranked(graph),
    )
    if not has_open_dims and hints.unranked.isdisjoint(value.name for value in inputs):
        return hints
    hints = replace(hints, axes=axis_hints(graph, inputs))
    sizes = _implied_sizes(graph, next(hints.readings(inputs)))
    return replace(hints, sizes=tuple(dict.fromkeys(sizes))[:_MAX_SIZES])


def _unranked(graph: onnx.GraphProto) -> frozenset[str]:
    """The inputs whose rank is not declared. To ONNX Runtime's Python interface they look like scalars."""
    tensors = [
        (value.name, value.type.tensor_type) for value in graph.input if value.type.HasField("tensor_type")
    ]
    return frozenset(name for name, tensor in tensors if not tensor.HasField("shape"))


def _origins(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, str]:
    """Tensor -> the input whose values it holds, also behind casts and reshapes."""
    origin = {name: name for name in names}
    for node in graph.node:  # token ids are often int64, cast to int32 or flattened first
        if node.op_type in _KEEP_VALUES and input_at(node, 0) in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return origin


def _table_rows(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, int]:
    """Rows of the smallest constant table that each of `names` indexes with Gather."""
    origin = _origins(graph, names)
    table_shapes = constant_shapes(graph)
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Gather":
            continue
        name, shape = origin.get(input_at(node, 1)), table_shapes.get(input_at(node, 0), ())
        axis = int_attribute(node, "axis")
        if name is not None and axis < len(shape):
            bounds[name] = min(bounds.get(name, shape[axis]), shape[axis])
    return bounds


def _that_reach(
    graph: onnx.GraphProto, names: Iterable[str], places: frozenset[tuple[str, int]]
) -> frozenset[str]:
    """The inputs whose values an operator reads at one of `places`."""
    origin = _origins(graph, names)
    return frozenset(
        origin[name]
        for node in graph.node
        for place, name in enumerate(node.input)
        if name in origin and (node.op_type, place) in places
    )


def _windows(graph: onnx.GraphProto) -> Iterator[tuple[int, int]]:
    """(largest extent, largest stride) of each node with a kernel."""
    shapes = constant_shapes(graph)
    for node in graph.node:
        window = window_of(node, shapes)
        if window is not None:
            extents, strides = window
            yield max(extents), max(strides)


def _implied_sizes(graph: onnx.GraphProto, inputs: Iterable[ValueInfo]) -> Iterator[int]:
    """Sizes to try, likely ones first. `inputs`: with what is known of their axes.

    A constant of a Reshape, or a dim of a constant that is added, is a size inside the network: the input's, or the
    input's over the strides before it; of an image flattened into one dim, also its root.
    """
    windows = list(_windows(graph))
    reductions = _reductions([stride for _, stride in windows if stride > 1])
    known = (prod(dim for dim in value.shape[1:] if isinstance(dim, int)) for value in inputs)
    channels = dict.fromkeys((3, *filter(None, known), *_channels(graph)))
    for inner in dict.fromkeys(_inner_sizes(graph)):
        # Flattened: h * w; with a class token: h * w + 1; with channels: c * h * w.
        parts = [inner // count for count in channels if inner % count == 0]
        roots = [_root(inner), _root(inner - 1), *map(_root, parts)]
        for size in dict.fromkeys((inner, *filter(None, roots), *parts)):
            yield from (size * step for step in reductions if 1 < size * step <= _MAX_SIZE)
    for extent, stride in windows:
        yield from (extent, extent + stride, 4 * extent)


def _reductions(strides: Sequence[int]) -> list[int]:
    """By what sizes may be divided on the way to a constant: by all strides, by each, by those up to one of them."""
    so_far = (prod(strides[:count]) for count in range(2, len(strides)))
    return list(dict.fromkeys((1, min(prod(strides), _MAX_SIZE), *strides, *so_far)))


def _root(number: int) -> int:
    """The whole square root, 0 if there is none."""
    root = isqrt(max(number, 0))
    return root if root * root == number else 0


def _channels(graph: onnx.GraphProto) -> Iterator[int]:
    """The output channels of convolutions; the last ones first, as a classifier follows them."""
    shapes = constant_shapes(graph)
    for node in reversed(graph.node):
        weight = shapes.get(input_at(node, 1)) if node.op_type == "Conv" else None
        if weight:
            yield weight[0]


def _inner_sizes(graph: onnx.GraphProto) -> Iterator[int]:
    """Sizes that constants of the graph mention."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in constants:
                yield from _sizes_in(node, place, constants[name])


def _sizes_in(node: onnx.NodeProto, place: int, tensor: onnx.TensorProto) -> Iterator[int]:
    """Sizes that one constant input of a node mentions."""
    if node.op_type in _SHAPED:
        yield from _integers(tensor)
    elif node.op_type in _ELEMENTWISE:
        yield from (dim for dim in tensor.dims if dim > 1)  # positions are added to a sequence
    elif node.op_type in ("Gemm", "MatMul") and place == 1:
        yield from (dim for dim in tensor.dims[-2:] if dim > 1)  # features, or tokens that are mixed


def _integers(tensor: onnx.TensorProto) -> list[int]:
    """The values of a short integer constant that may be sizes; none where it is external or damaged."""
    is_integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    if not is_integer or prod(tensor.dims) > _MAX_READ:
        return []
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OSError):
        return []
    return [int(value) for value in np.ravel(values) if 1 < value <= _MAX_SIZE]
