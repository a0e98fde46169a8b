"""Consumers that ask for a tensor's shape only: they do not keep it from being absorbed.

    d = Mul(h, k);  s = Shape(d);  Reshape(d, ... s ...)        s may as well be the Shape of h

Such a consumer reads another tensor of the same shape when a fold absorbs the one it read: one that the fold reads, or
the one that it computes. Of the shape, only what is asked for must be the same; a number is written in its place:

    s = Shape(Conv(x));  Slice(s, 0, 2)        is (N, 256), with N the first size of x:  Shape(x) * (1, 0) + (0, 256)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import dims_of, known_dims
from onnx_repfuse.graph.extents import Dims
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Const, Scope, static
from onnx_repfuse.graph.size_lists import constant_list, moved_list
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.forms.view_sources import tensors_read
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection

__all__ = ["ShapeSource", "lost_shapes", "shape_sources", "with_numbers"]

# what sizes go through on their way to what reads them; anything else reads them
_COMPUTE_LISTS = frozenset(
    ("Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")
)
MAX_NODES_BEHIND = 256  # behind a Shape, looked through for the tensor that a fold computes


class ShapeSource(NamedTuple):
    """What a node that asks for a shape reads when that tensor is absorbed.

    Attributes:
        node: the one that asks for a shape.
        source: another tensor; None where none is known.
        numbers: the sizes that the other tensor does not have, by their place in what the node gives out.
        fold: the output of the fold that absorbs the tensor.
    """

    node: gs.Node
    source: str | None
    numbers: Mapping[int, int]
    fold: str


def lost_shapes(cover: Cover, selection: Selection) -> set[str]:
    """The tensors that a fold absorbs whose shape is needed, where no other tensor of that shape is known."""
    return {one.node.inputs[0].name for one in shape_sources(cover, selection) if one.source is None}


def shape_sources(cover: Cover, selection: Selection) -> Iterator[ShapeSource]:
    """The nodes that ask for the shape of what a fold absorbs, and what each may read instead."""
    scope = cover.context.scope
    absorbed = {id(node) for node in selection.nodes}
    for one in selection.operators:
        if one.output == selection.output:
            continue
        for shape_node in scope.consumers.get(one.output, ()):
            asks_for_shape = operator(shape_node).of_shape is not None
            if not asks_for_shape or not _is_needed(scope, shape_node, absorbed, selection):
                continue
            alike = _of_equal_shape(one.output, selection.operators)
            present = list(_present(scope, shape_node, selection))
            source, numbers = _first(scope, one.output, alike, present), dict[int, int]()
            if source is None:
                source, numbers = _of_equal_sizes(scope, shape_node, present)
            if numbers and sum(selection.macs.values()) <= selection.lowered.macs:
                source, numbers = None, {}  # it saves no more than the nodes that write the numbers
            yield ShapeSource(shape_node, source, numbers, selection.output)


def with_numbers(scope: Scope, one: ShapeSource) -> list[gs.Node]:
    """The nodes that give out what `one.node` does: the shape of `one.source`, with numbers in some places."""
    shape_node, numbers = one.node, one.numbers
    output, length = shape_node.outputs[0].name, max(numbers) + 1
    dims = dims_of(scope, str(one.source)) or ()
    length = max(length, len(dims[shape_node.attrs.get("start", 0) : shape_node.attrs.get("end")]))
    added = np.array([numbers.get(place, 0) for place in range(length)], np.int64)
    kept = np.array([place not in numbers for place in range(length)], np.int64)
    shape, others = scope.fresh(f"{output}_other"), scope.fresh(f"{output}_kept")
    for name in (shape, others):
        scope.types[name] = (onnx.TensorProto.INT64, (length,))
    scope.types[output] = (onnx.TensorProto.INT64, (length,))
    constants = [_list_of_sizes(scope, f"{output}.sizes", values) for values in (kept, added)]
    return [
        new_node("Shape", scope.fresh(f"{output}_shape"), dict(shape_node.attrs), [str(one.source)], [shape]),
        new_node("Mul", scope.fresh(f"{output}_mul"), {}, [shape, constants[0]], [others]),
        new_node("Add", scope.fresh(f"{output}_add"), {}, [others, constants[1]], [output]),
    ]


def _list_of_sizes(scope: Scope, stem: str, values: NDArray[np.int64]) -> str:
    return scope.new_constant(stem, Const(values.shape, onnx.TensorProto.INT64, lambda: values))


def _of_equal_sizes(
    scope: Scope, shape_node: gs.Node, present: Iterable[str]
) -> tuple[str | None, dict[int, int]]:
    """A tensor that has the sizes which are asked for, but for numbers: the one with the fewest such."""
    part = slice(shape_node.attrs.get("start", 0), shape_node.attrs.get("end"))
    dims = known_dims(scope)
    wanted = dims.get(shape_node.inputs[0].name, ())[part]
    places = _places_read(scope, shape_node, len(wanted))
    best: tuple[str | None, dict[int, int]] = None, {}
    for other in present if wanted else ():
        numbers = _numbers_beside(dims.get(other, ())[part], wanted, places)
        if numbers is None or (numbers and id(shape_node) not in scope.original):
            continue
        if best[0] is None or len(numbers) < len(best[1]):
            best = other, numbers
    return best


def _numbers_beside(found: Dims, wanted: Dims, places: Sequence[int]) -> dict[int, int] | None:
    """The numbers to be written in some of the places of sizes to get others; None where these are no numbers."""
    if len(found) != len(wanted) and max(places) >= len(found):
        return None
    differing = [place for place in places if found[place] != wanted[place]]
    numbers = {place: size for place in differing if isinstance(size := wanted[place], int)}
    return numbers if len(numbers) == len(differing) else None


def _places_read(scope: Scope, shape_node: gs.Node, count: int) -> list[int]:
    """Which of the sizes that a node gives out are read; all, where that is not certain."""
    name, everything = shape_node.outputs[0].name, list(range(count))
    read: set[int] = set()
    for consumer in scope.consumers.get(name, ()):
        lists = [constant_list(scope, tensor.name) for tensor in consumer.inputs[1:]]
        known = [one for one in lists if one is not None]
        is_choice = consumer.op in ("Gather", "Slice") and len(known) == len(lists) > 0
        if scope.is_seen(name) or not is_choice or min(map(min, known), default=-1) < 0:
            return everything
        chosen = moved_list(consumer, [everything, *known])
        if chosen is None:
            return everything
        read.update(chosen)
    return everything if scope.is_seen(name) else sorted(read)


def _is_needed(scope: Scope, shape_node: gs.Node, absorbed: set[int], selection: Selection) -> bool:
    """Whether somebody but the absorbed nodes reads what follows from a shape, or a view that the fold writes does."""
    written = _lists_written(selection)
    pending, seen = [shape_node.outputs[0].name], set[str]()
    while pending:
        name = pending.pop()
        consumers = [node for node in scope.consumers.get(name, ()) if id(node) not in absorbed]
        is_read = any(consumer.op not in _COMPUTE_LISTS for consumer in consumers)
        if is_read or scope.is_seen(name) or name in written or len(seen) > MAX_NODES_BEHIND:
            return True
        seen.add(name)
        behind = [tensor.name for consumer in consumers for tensor in consumer.outputs]
        pending += [tensor for tensor in behind if tensor not in seen]
    return False


def _lists_written(selection: Selection) -> set[str]:
    """The lists of sizes that the views of a fold read."""
    views = [step.view.node for step in selection.lowered.steps if step.view is not None]
    return {tensor.name for view in views for tensor in view.inputs[1:]}


def _present(scope: Scope, shape_node: gs.Node, selection: Selection) -> Iterator[str]:
    """The tensors of a fold that will be there: what it reads and, unless that depends on the shape, its output."""
    yield from tensors_read(selection.candidate.form)
    if not _leads_to(scope, shape_node, selection.output):
        yield selection.output


def _leads_to(scope: Scope, node: gs.Node, output: str) -> bool:
    """Whether a tensor may depend on what a node computes."""
    pending, seen = [tensor.name for tensor in node.outputs], set[str]()
    while pending:
        name = pending.pop()
        if name == output or name in scope.captured or len(seen) > MAX_NODES_BEHIND:
            return True
        if name not in seen:
            seen.add(name)
            pending += [
                tensor.name for consumer in scope.consumers.get(name, ()) for tensor in consumer.outputs
            ]
    return False


def _first(scope: Scope, name: str, alike: set[str], present: Iterable[str]) -> str | None:
    """The first tensor that is known to have the shape of another one."""
    shape = static(scope.shape(name))
    for other in present:
        if other in alike or (shape is not None and scope.shape(other) == shape):
            return other
    return None


def _of_equal_shape(name: str, operators: Iterable[LinearOp]) -> set[str]:
    """The tensors that have a tensor's shape at every size, as operators of one value per channel keep it."""
    alike, grew = {name}, True
    pairs = [(one.output, operand.name) for one in operators if _keeps_shape(one) for operand in one.operands]
    while grew:
        more = {tensor for pair in pairs if not alike.isdisjoint(pair) for tensor in pair}
        grew = not more <= alike
        alike |= more
    return alike


def _keeps_shape(lifted: LinearOp) -> bool:
    """Whether the operands of an operator have the shape of its output."""
    if lifted.view is not None or lifted.inner_nodes or lifted.needs_equal_shapes:
        return False
    if any(
        operand.channels != lifted.channels or operand.layout != lifted.layout for operand in lifted.operands
    ):
        return False
    return all(isinstance(term.kernel, Vector) and term.kernel.geometry.is_diagonal for term in lifted.terms)
