"""Consumers that ask for a tensor's shape only: they do not keep it from being absorbed.

    d = Mul(h, k);  s = Shape(d);  Reshape(d, ... s ...)        s may as well be the Shape of h

Such a consumer reads another tensor of the same shape when a fold absorbs the one it read: one that the fold reads, or
the one that it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, static
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection

__all__ = ["reads_lost_shape", "shape_sources"]

MAX_NODES_BEHIND = 256  # behind a Shape, looked through for the tensor that a fold computes


def reads_lost_shape(cover: Cover, selection: Selection) -> bool:
    """Whether a fold absorbs a tensor whose shape is needed, and no tensor of that shape is known."""
    return any(source is None for _, source in shape_sources(cover, selection))


def shape_sources(cover: Cover, selection: Selection) -> Iterator[tuple[gs.Node, str | None]]:
    """The nodes that ask for the shape of what a fold absorbs, and what each may read instead; None for nothing."""
    scope = cover.context.scope
    absorbed = {id(node) for node in selection.nodes}
    for one in selection.operators:
        if one.output == selection.output:
            continue
        for reader in scope.consumers.get(one.output, ()):
            if operator(reader).of_shape is None or not _is_needed(scope, reader, absorbed, selection):
                continue
            alike = _of_equal_shape(one.output, selection.operators)
            yield reader, _first(scope, one.output, alike, _present(scope, reader, selection))


def _is_needed(scope: Scope, reader: gs.Node, absorbed: set[int], selection: Selection) -> bool:
    """Whether somebody but the absorbed nodes reads a shape: a node that stays, or a view that the fold writes."""
    name = reader.outputs[0].name
    if scope.is_seen(name) or any(id(consumer) not in absorbed for consumer in scope.consumers.get(name, ())):
        return True
    views = [step.view.node for step in selection.lowered.steps if step.view is not None]
    return any(tensor.name == name for view in views for tensor in view.inputs)


def _present(scope: Scope, reader: gs.Node, selection: Selection) -> Iterator[str]:
    """The tensors of a fold that will be there: what it reads and, unless that depends on the shape, its output."""
    yield from map(str, selection.candidate.form.sources)
    if not _leads_to(scope, reader, selection.output):
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
