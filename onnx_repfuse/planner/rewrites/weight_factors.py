"""Factors beside a product go into its weight where no channels say how: batches of matrices, rows, any Einsum.

    (x @ W) * s = x @ (W * s)        (x * s) @ W = x @ (s' * W)        W of (heads, k, n): a matrix for each head
    (x @ W + c) * s = x @ (W * s) + c * s

The algebra knows products along one axis by one matrix. What remains is a weight W of three or more axes, a weight
that stands first, a Gemm that reads its first input by columns (transA), and an Einsum. A constant factor may differ
along all axes that W has, as from head to head: W has elements for each of these. Behind a Gemm a factor and a shift
per column go into its bias, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.einsum import Equation, Labels, equation_of
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, Shape, optional_input
from onnx_repfuse.lift import Context, LinearOp, lift
from onnx_repfuse.lift.batchnorm_arithmetic import most_that_cancels
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.weights.rounding import check_underflow, rounded
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["fold_into_weights"]

ROLES = frozenset((Kind.AFFINE, Kind.MATMUL))
Array = NDArray[np.float64]
_PRODUCTS = ("Einsum", "Gemm", "MatMul")
_TURNS = ("transA", "transB")  # of a Gemm, for its first two inputs


class _Product(NamedTuple):
    """A product with a constant matrix, a batch of them, or a constant of any axes.

    Attributes:
        node: MatMul, Gemm or Einsum.
        place: of the weight among its inputs.
        weight: the constant.
        equation: which axes of both and of the product are the same.
    """

    node: gs.Node
    place: int
    weight: Const
    equation: Equation

    @property
    def data(self) -> str:
        """The other factor."""
        return str(self.node.inputs[1 - self.place].name)

    @property
    def axes(self) -> Labels:
        """Those of the weight."""
        return self.equation.terms[self.place]

    @property
    def summed(self) -> list[int]:
        """The axes of the weight that are summed over."""
        return [axis for axis, label in enumerate(self.axes) if label not in self.equation.result]


class _Beside(NamedTuple):
    """What stands before or behind a product: the new weight's factor, and for a Gemm a shift.

    Attributes:
        added: an Add or Sub of a constant between the product and a factor, and what is to be added behind the factor.
    """

    node: gs.Node
    factor: Array
    shift: Array | None
    added: tuple[gs.Node, Array] | None = None


def fold_into_weights(plan: ScopePlan, context: Context, is_free: Callable[[gs.Node], bool]) -> bool:
    """Fold constant factors beside products into the products' weights; whether there were any.

    Args:
        plan: of the scope, which is changed.
        context: the scope and its layouts.
        is_free: whether a node may be replaced.
    """
    scope, replacements = context.scope, Replacements(plan)
    taken: set[int] = set()
    for product in _products(context, is_free):
        beside = _behind(context, product, is_free) or _before(scope, product, is_free)
        if beside is None or not taken.isdisjoint((id(product.node), id(beside.node))):
            continue
        first, last = _in_order(product.node, beside)
        output = last.outputs[0].name
        absorbed = [first, last] if beside.added is None else [first, beside.added[0], last]
        taken.update(map(id, absorbed))
        replacements.fold(output, ROLES, absorbed, _written(scope, product, beside, output))
        replacements.nodes.update((id(node), []) for node in absorbed[:-1])
    return replacements.write()


def _products(context: Context, is_free: Callable[[gs.Node], bool]) -> Iterator[_Product]:
    """The products by constants that the algebra does not read as maps of channels."""
    scope = context.scope
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return  # an attribute says how Mul and Add broadcast
    for node in scope.nodes:
        if node.op not in _PRODUCTS or not is_free(node) or id(node) in context.protected:
            continue
        if isinstance(lift(context, node), LinearOp):
            continue  # the search does more with it
        product = _product(scope, node)
        if product is not None:
            yield product


def _product(scope: Scope, node: gs.Node) -> _Product | None:
    """A product of a tensor and a constant, both of rows and columns; None if it is another one."""
    names = [tensor.name for tensor in node.inputs[:2]]
    constants = [scope.const(name) for name in names]
    if sum(const is not None for const in constants) != 1 or (node.op == "Einsum" and len(node.inputs) != 2):
        return None
    place = 0 if constants[0] is not None else 1
    weight, data = constants[place], scope.shape(names[1 - place])
    if weight is None or data is None or len(data) < 2 or not weight.shape:
        return None
    if 0 in weight.shape or weight.data_type not in FLOAT_FORMATS:
        return None
    ranks = [len(data), len(data)]
    ranks[place] = len(weight.shape)
    equation = equation_of(node.attrs, ranks) if node.op == "Einsum" else _equation(node, ranks)
    return None if equation is None else _Product(node, place, weight, equation)


def _equation(node: gs.Node, ranks: list[int]) -> Equation:
    """What a MatMul or Gemm is as an Einsum: ...mk,...kn->...mn; a vector has no rows, or no columns."""
    axes = [["m", "k"][-ranks[0] :], ["k", "n"][: ranks[1]]]
    if node.op == "Gemm":
        axes = [
            pair[:: -1 if node.attrs.get(name, 0) else 1] for pair, name in zip(axes, _TURNS, strict=True)
        ]
    batches = [[f".{number}" for number in range(rank - 2, 0, -1)] for rank in ranks]
    first, second = ((*batch, *pair) for batch, pair in zip(batches, axes, strict=True))
    result = [label for label in ("m", "n") if label in (*first, *second)]
    return Equation((first, second), (*max(batches, key=len), *result))


def _behind(context: Context, product: _Product, is_free: Callable[[gs.Node], bool]) -> _Beside | None:
    """What alone reads a product, and scales what its weight has."""
    scope, name = context.scope, product.node.outputs[0].name
    node = scope.only_consumer(name)
    if node is None or not is_free(node):
        return None
    if product.node.op == "Gemm" and product.place == 1:
        found = _per_column(context, node, name)
        if found is None or not _bias_is_per_column(scope, product):
            return None
        factor, shift = found
        turned = _turned(factor, product, product.equation.result)
        return None if turned is None else _Beside(node, turned, shift)
    if product.node.op == "Gemm":
        return None
    values = _scales(scope, node, name)
    if values is None:
        return _behind_a_constant(scope, product, node, is_free)
    turned = _turned(values, product, product.equation.result)
    return None if turned is None else _Beside(node, turned, None)


def _behind_a_constant(
    scope: Scope, product: _Product, add: gs.Node, is_free: Callable[[gs.Node], bool]
) -> _Beside | None:
    """A factor behind a product and a constant that is added: `(x @ W + c) * s` is `x @ (W * s) + c * s`.

    Keras' attention has one behind the Einsum and the bias of its queries.
    """
    shift = _added(scope, add, product.node.outputs[0].name)
    name = add.outputs[0].name
    node = scope.only_consumer(name)
    if shift is None or node is None or not is_free(node):
        return None
    values = _scales(scope, node, name)
    if values is None or _may_overflow(product, values):
        return None
    factor, constant = (_turned(one, product, product.equation.result) for one in (values, shift))
    if factor is None or constant is None:  # a constant along other axes may widen the product
        return None
    added = shift * values
    if np.abs(added).max(initial=0.0) > FLOAT_FORMATS[product.weight.data_type].largest:
        return None
    return _Beside(node, factor, None, (add, added))


def _constant_beside(scope: Scope, node: gs.Node, source: str, ops: tuple[str, str]) -> Const | None:
    """The float constant beside a tensor in one of two operators; of the second the tensor is the first operand."""
    if node.op not in ops or (node.op == ops[1] and node.inputs[0].name != source):
        return None
    others = [tensor.name for tensor in node.inputs if tensor.name != source]
    const = scope.const(others[0]) if len(others) == 1 else None
    fits = const is not None and const.size <= MAX_FOLDED_ELEMENTS and const.data_type in FLOAT_FORMATS
    return const if fits else None


def _added(scope: Scope, node: gs.Node, source: str) -> Array | None:
    """The constant that is added to a tensor; None if a node does anything else."""
    const = _constant_beside(scope, node, source, ("Add", "Sub"))
    if const is None:
        return None
    values = -_values(const) if node.op == "Sub" else _values(const)
    # a larger one may be there to round: `(y + 2**23) * s`
    most = most_that_cancels(FLOAT_FORMATS[const.data_type].epsilon)
    return values if bool((np.abs(values) <= most).all()) else None


def _may_overflow(product: _Product, factor: Array) -> bool:
    """Whether a product may leave the numbers of half precision that stays within them beside a constant."""
    return FLOAT_FORMATS[product.weight.data_type].is_half and bool((np.abs(factor) > 1).any())


def _before(scope: Scope, product: _Product, is_free: Callable[[gs.Node], bool]) -> _Beside | None:
    """What computes the other factor for the product alone, and scales what is summed over."""
    node = scope.private_producer(product.data)
    if node is None or not is_free(node):
        return None
    data = [tensor.name for tensor in node.inputs if scope.const(tensor.name) is None]
    values = _scales(scope, node, data[0]) if len(data) == 1 else None
    shape = scope.shape(data[0]) if values is not None else None
    if values is None or shape is None or len(shape) < 2:
        return None
    own = product.equation.terms[1 - product.place]
    turned = None if len(shape) != len(own) else _turned(values, product, own)
    if turned is None or not _keeps_sums(values, shape, own, product):
        return None
    return _Beside(node, turned, None)


def _keeps_sums(values: Array, shape: Shape, axes: Labels, product: _Product) -> bool:
    """Whether no position that is summed over becomes several, which the product alone would not sum."""
    summed = {product.axes[axis] for axis in product.summed}
    sizes = zip(axes[::-1], shape[::-1], values.shape[::-1], strict=False)
    return all(label not in summed or factors in (1, size) for label, size, factors in sizes)


def _scales(scope: Scope, node: gs.Node, source: str) -> Array | None:
    """The constant that a Mul multiplies a tensor by, or a Div divides it by; None for any other node."""
    const = _constant_beside(scope, node, source, ("Mul", "Div"))
    if const is None:
        return None
    values = _values(const)
    with np.errstate(all="ignore"):
        values = 1.0 / values if node.op == "Div" else values
    return values if np.isfinite(values).all() else None


def _turned(values: Array, product: _Product, axes: Labels) -> Array | None:
    """Factors of a tensor of these axes as factors of the weight; None if they vary along an axis that it has not."""
    if values.ndim > len(axes):
        return None
    sizes = dict(zip(axes[::-1], values.shape[::-1], strict=False))
    weight = dict(zip(product.axes, product.weight.shape, strict=True))
    if any(size not in (1, weight.get(label, 1)) for label, size in sizes.items()):
        return None
    own = [label for label in axes[len(axes) - values.ndim :] if label in weight]
    shared = values.reshape([sizes[label] for label in own])
    ordered = np.transpose(shared, [own.index(label) for label in product.axes if label in own])
    return ordered.reshape([sizes.get(label, 1) for label in product.axes])


def _per_column(context: Context, node: gs.Node, source: str) -> tuple[Array, Array] | None:
    """Factor and shift of a per-channel operator over the columns of a matrix."""
    lifted = lift(context, node)
    if not isinstance(lifted, LinearOp) or lifted.view is not None or lifted.inner_nodes:
        return None
    if len(lifted.operands) != 1 or lifted.operands[0].name != source or lifted.layout != (-1, 0):
        return None
    kernel = lifted.terms[0].kernel
    is_plain = isinstance(kernel, Vector) and len(lifted.terms) == 1 and not lifted.bias.deferred
    return (kernel.scale, lifted.bias.known) if is_plain and isinstance(kernel, Vector) else None


def _bias_is_per_column(scope: Scope, product: _Product) -> bool:
    """Whether a Gemm adds nothing, or a constant for each column."""
    name = optional_input(product.node, 2)
    const = scope.const(name)
    if not name:
        return True
    aligned = () if const is None else (1,) * (2 - len(const.shape)) + const.shape
    return aligned in ((1, 1), (1, _columns(product)))


def _columns(product: _Product) -> int:
    """The columns of a product whose weight stands second."""
    return product.weight.shape[product.axes.index("n")]


def _in_order(product: gs.Node, beside: _Beside) -> tuple[gs.Node, gs.Node]:
    read = {tensor.name for tensor in beside.node.inputs}
    is_behind = beside.added is not None or product.outputs[0].name in read
    return (product, beside.node) if is_behind else (beside.node, product)


def _written(scope: Scope, product: _Product, beside: _Beside, output: str) -> list[gs.Node]:
    """The product with what stood beside it in its weight and its bias, and what is added to it."""
    if beside.added is None:
        return [_scaled_product(scope, product, beside, output)]
    name, values = scope.fresh(f"{output}_product"), beside.added[1]
    scope.declare_like(name, product.node.outputs[0].name)
    constant = _constant(scope, f"{output}_added", values.shape, product.weight.data_type, lambda: values)
    scaled = _scaled_product(scope, product, beside, name)
    return [scaled, new_node("Add", scope.fresh(output), {}, [name, constant], [output])]


def _scaled_product(scope: Scope, product: _Product, beside: _Beside, output: str) -> gs.Node:
    """The product with the factor in its weight, and a shift in its bias."""
    node, inputs = product.node, [tensor.name for tensor in product.node.inputs]
    source = product.data
    if beside.node.outputs[0].name == source:
        source = next(tensor.name for tensor in beside.node.inputs if scope.const(tensor.name) is None)
    inputs[1 - product.place] = source
    weight, factor, attrs = product.weight, beside.factor, dict(node.attrs)
    shape = np.broadcast_shapes(weight.shape, factor.shape)
    scaled = partial(_scaled, product, factor)
    inputs[product.place] = _constant(scope, f"{output}_weight", shape, weight.data_type, scaled)
    if beside.shift is not None and (optional_input(node, 2) or beside.shift.any()):
        columns, shift = _columns(product), beside.shift
        bias = partial(_bias, scope.const(optional_input(node, 2)), float(attrs.pop("beta", 1.0)), columns)
        scale = factor.ravel()
        inputs[2:] = [
            _constant(scope, f"{output}_bias", (columns,), weight.data_type, lambda: bias() * scale + shift)
        ]
    return new_node(node.op, scope.fresh(output), attrs, inputs, [output])


def _scaled(product: _Product, factor: Array) -> Array:
    """The weight times the factor. Raises Inexact where half precision would lose what a channel is made of."""
    weight = _values(product.weight) * factor
    summed = product.summed
    last = np.moveaxis(weight, summed, range(-len(summed), 0))
    check_underflow(last.reshape(-1, prod(last.shape[last.ndim - len(summed) :])), product.weight.data_type)
    return weight


def _values(const: Const) -> Array:
    return np.asarray(const.read()).astype(np.float64)


def _bias(const: Const | None, beta: float, columns: int) -> Array:
    values = np.zeros(1) if const is None else beta * _values(const).ravel()
    return np.broadcast_to(values, (columns,))


def _constant(
    scope: Scope, stem: str, shape: tuple[int, ...], data_type: int, compute: Callable[[], Array]
) -> str:
    name = scope.fresh(stem)

    def read() -> NDArray[Any]:
        return rounded(np.array(np.broadcast_to(compute(), shape), order="C"), data_type)

    scope.constants[name] = scope.created[name] = Const(shape, data_type, read)
    return name
