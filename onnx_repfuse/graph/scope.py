"""One scope of a model - the main graph, a subgraph, a function body - as graphsurgeon nodes with an index.

Weights are not read: a constant is its shape, its data type and a function that returns the values. The index of
producers and consumers (graph outputs and captures by subgraphs included) is our own, because removing from
graphsurgeon's edge lists is quadratic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Kernel
from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.edit import ScopeKey

__all__ = [
    "MAX_FOLDED_ELEMENTS",
    "MAX_SHAPE_ELEMENTS",
    "Const",
    "Infer",
    "Scope",
    "Shape",
    "Sizes",
    "Types",
    "all_known",
    "input_names",
    "node_name",
    "optional_input",
    "shape_in",
    "sizes_are_known",
    "static",
]

Shape = tuple[int | None, ...]
Types = dict[str, tuple[int, Shape | None]]  # tensor -> (data type, shape)
Sizes = dict[str, tuple[int, ...]]
Infer = Callable[..., tuple[Types, Sizes]]  # `shape_inference.infer`, of the nodes of a scope
Values = NDArray[Any]
_Known = TypeVar("_Known")
ONNX_DOMAINS = ("", "ai.onnx", None)
# before the name of an operator of which nothing is known, as its attributes cannot be read
OPAQUE = "onnx_repfuse.Opaque."
MAX_SHAPE_ELEMENTS = 64  # of a constant that may decide a shape
MAX_FOLDED_ELEMENTS = 1 << 16  # of a constant that may be computed while planning


@dataclass(eq=False, slots=True)  # not frozen: a plan makes many, see `algebra.affine_form`
class Const:
    """A constant tensor.

    Attributes:
        shape: its dims.
        size: number of elements.
        data_type: `onnx.TensorProto.DataType`.
        read: returns the payload, in the numpy dtype of `data_type`.
        inner: for what nodes compute: elements of the largest tensor on the way to it.
        kernel, bias: for weights and biases that a fold of this run made: their float64 values, not computed yet, so
            that a second fold does not round twice.
        least: no element has a smaller magnitude, as somebody looked; 0 where nobody did, or where one is 0.
    """

    shape: tuple[int, ...]
    data_type: int
    read: Callable[[], Values]
    kernel: Kernel | None = None
    bias: Bias | None = None
    inner: int = 0
    least: float = 0.0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = prod(self.shape)  # asked a hundred times of each
        # sizes, axes, scalars: one that others compute is read again and again
        if self.size <= MAX_SHAPE_ELEMENTS:
            self.read = _once(self.read)

    @property
    def effort(self) -> int:
        """Number of elements of the largest tensor that `read` holds."""
        return max(self.size, self.inner)

    @property
    def takes_kernel(self) -> bool:
        """Whether `read` folds weights of this run, which planning does not do."""
        return self.kernel is not None or (self.bias is not None and bool(self.bias.deferred))

    def computed(self) -> Values | None:
        """What `read` returns; None if it cannot be computed: no runtime can run the node that needs it."""
        try:
            return self.read()
        except Inexact:
            return None

    def integers(self) -> list[int] | None:
        """The values of a constant of integers as a flat list; None if they cannot be computed."""
        values = self.computed()
        return None if values is None else [int(number) for number in np.asarray(values).ravel()]


def _once(read: Callable[[], Values]) -> Callable[[], Values]:
    """The same function, which is called once: `functools.cache` takes ten times as long to make."""
    known: list[Values] = []

    def remembered() -> Values:
        if not known:
            known.append(read())
        return known[0]

    return remembered


@dataclass(eq=False)
class Scope:
    """A scope in which folds are planned and applied.

    Attributes:
        key, label: where it is in the document, for the writer and for people.
        opset: version of the ONNX operator set in force.
        proto: the scope in the document's skeleton.
        nodes: those of the file, put in `order`; see `decode` for operators of other domains.
        types: tensor -> (data type, shape); a dim is None where it is not known for certain.
        assumed: tensor -> shape with a number for every dim: for costs only, never for exactness.
        constants: what is known to be constant, by tensor name, outer scopes included.
        inputs, outputs: the scope's own; initializers are no inputs.
        captured: tensors that subgraphs of its nodes read.
        initializers: those of `constants` that are initializers of this scope.
        overridable: constants that may have another value when the model runs: they are graph inputs, too (IR >= 4),
            which a caller may override, or a scope around or inside has another tensor of that name.
        taken: all names in use in the model.
        anchor: id(node) -> position in the input; a new node has that of the node it replaces.
        original: id(node) -> node, of the nodes of the input.
        used_before: tensors that were read when the scope was loaded.
        created: constants that folds made.
        producer, consumers: tensor -> node(s); see `index`.
        order: puts nodes in the order they are planned in, see `planning_order`.
        dims, size_lists: what follows for sizes that are not known, once it was asked, see `graph.dims`.
        protected: id() of the nodes of patterns that runtimes fuse, once it was asked, see
            `planner.limits.protected_patterns`.
        infer: `types` and `assumed` of nodes without subgraphs, given to it, in place of those of the file.
    """

    key: ScopeKey
    label: str
    opset: int
    proto: onnx.GraphProto | onnx.FunctionProto
    nodes: list[gs.Node]
    types: dict[str, tuple[int, Shape | None]]
    assumed: dict[str, tuple[int, ...]]
    constants: dict[str, Const]
    inputs: set[str]
    outputs: set[str]
    captured: set[str]
    initializers: dict[str, Const] = field(default_factory=dict)
    overridable: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    anchor: dict[int, int] = field(default_factory=dict)
    original: dict[int, gs.Node] = field(default_factory=dict)
    used_before: set[str] = field(default_factory=set)
    created: dict[str, Const] = field(default_factory=dict)
    producer: dict[str, gs.Node] = field(default_factory=dict)
    consumers: dict[str, list[gs.Node]] = field(default_factory=dict)
    order: Callable[[list[gs.Node]], list[gs.Node]] = list
    infer: Infer | None = None
    dims: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    size_lists: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    protected: frozenset[int] | None = None

    @cached_property
    def file_nodes(self) -> dict[str, tuple[str, str]]:
        """Tensor -> (operator, name) of the node of the file that computes it."""
        return {
            output: (node.op_type, node.name or next(filter(None, node.output)))
            for node in self.proto.node
            for output in node.output
            if output
        }

    def __post_init__(self) -> None:
        self.original = {id(node): node for node in self.nodes}
        self.anchor = {id(node): i for i, node in enumerate(self.nodes)}
        self.nodes = self.order(self.nodes)
        self.index()
        self.used_before = set(self.consumers) | self.captured

    def index(self) -> None:
        """Rebuild producers and consumers after the nodes have changed."""
        self.producer, self.consumers = {}, {}
        self.dims, self.size_lists, self.protected = {}, {}, None
        for node in self.nodes:
            for tensor in node.outputs:
                self.producer[tensor.name] = node
            for tensor in node.inputs:
                if tensor.name:
                    self.consumers.setdefault(tensor.name, []).append(node)

    def is_private(self, name: str) -> bool:
        """Its fan-out is one node of this scope, and nobody outside sees it."""
        return not self.is_seen(name) and len(self.consumers.get(name, ())) == 1

    def only_consumer(self, name: str) -> gs.Node | None:
        """The node that alone reads a tensor; None if others do, or somebody outside."""
        return self.consumers[name][0] if self.is_private(name) else None

    def private_producer(self, name: str) -> gs.Node | None:
        """The node that computes a tensor, and no other, for one consumer alone; None if there is no such node."""
        node = self.producer.get(name) if self.is_private(name) else None
        return node if node is not None and len(node.outputs) == 1 else None

    def is_seen(self, name: str) -> bool:
        """A graph output, or read in a subgraph: the name must stay."""
        return name in self.outputs or name in self.captured

    def is_used(self, name: str) -> bool:
        """Somebody reads it."""
        return bool(self.consumers.get(name)) or self.is_seen(name)

    def const(self, name: str) -> Const | None:
        """The constant of that name, unless it may be another when the model runs."""
        return None if name in self.overridable else self.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element; None for other tensors, and for a value that cannot be computed."""
        const = self.const(name)
        if const is None or const.size != 1:
            return None
        value = const.computed()
        return None if value is None else float(np.asarray(value).astype(np.float64).ravel()[0])

    def shape(self, name: str) -> Shape | None:
        """The proved shape; None if not even the rank is known."""
        if name in self.constants and name not in self.overridable:
            return self.constants[name].shape
        known = self.types.get(name)  # not `shape_in`: asked of every tensor a hundred times
        return None if known is None else known[1]

    def data_type(self, name: str) -> int | None:
        """The ONNX data type, if known."""
        const = self.const(name)
        if const is not None:
            return const.data_type
        return self.types.get(name, (0, None))[0] or None

    def elements(self, name: str) -> int | None:
        """Assumed number of elements, for costs."""
        shape = self.assumed.get(name)
        return None if shape is None else prod(shape)

    def fresh(self, stem: str) -> str:
        """A tensor or node name not in use anywhere in the model."""
        name, number = stem, 0
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name

    def add_constants(self, constants: Mapping[str, Const]) -> None:
        """Note constants that folds made: the writer adds those that somebody reads."""
        self.constants.update(constants)
        self.created.update(constants)

    def new_constant(self, stem: str, const: Const) -> str:
        """Note a constant that a fold made; its name."""
        name = self.fresh(stem)
        self.add_constants({name: const})
        return name

    def declare_like(self, name: str, like: str) -> None:
        """Give a new tensor the type and shape of another one, as far as they are known."""
        if like in self.types:
            self.types[name] = self.types[like]
        if like in self.assumed:
            self.assumed[name] = self.assumed[like]


def static(shape: Shape | None) -> tuple[int, ...] | None:
    """A shape whose dims are all known, else None."""
    return None if shape is None or None in shape else cast("tuple[int, ...]", shape)


def all_known(values: Iterable[_Known | None]) -> list[_Known] | None:
    """The values; None if one of them is not known."""
    result: list[_Known] = []
    for value in values:
        if value is None:
            return None
        result.append(value)
    return result


def sizes_are_known(types: Mapping[str, tuple[int, Shape | None]]) -> bool:
    """Whether all sizes of all these tensors are known."""
    return all(static(shape) is not None for _, shape in types.values())


def shape_in(types: Mapping[str, tuple[int, Shape | None]], name: str) -> Shape | None:
    """The shape of a tensor, given what was inferred; None if not even the rank is known."""
    known = types.get(name)
    return None if known is None else known[1]


def input_names(node: gs.Node) -> list[str]:
    """The inputs that are not left out."""
    return [tensor.name for tensor in node.inputs if tensor.name]


def optional_input(node: gs.Node, place: int) -> str:
    """The name of a node's input number `place`, "" where it is left out."""
    return str(node.inputs[place].name) if len(node.inputs) > place else ""


def node_name(node: gs.Node) -> str:
    """The node's name, or its first output's when it has none."""
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))
