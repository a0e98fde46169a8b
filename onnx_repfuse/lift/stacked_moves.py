"""A Concat of parts that Reshape, Split, Gather and their like take of one tensor, by way of tensors with more axes.

    (n, C, h, w) -> (n, C, h/2, 2, w) -> Split -> Squeeze, Squeeze -> Concat: (n, 2*C, h/2, w)        a Focus of rows

No convolution has those axes. Each operand is a choice of channels at one position of each block (`shuffles`), and
becomes channels of its own in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Kernel
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dims
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.lift.rearranged import Rearranged, rearranged
from onnx_repfuse.lift.shuffles import MAX_STEPS_BACK, moved
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["lift_stacked_moves"]

MAX_OPERANDS = 64
_MOVES = frozenset(("Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"))
_PICK = frozenset(("Gather", "Slice", "Split"))


class _Step(NamedTuple):
    """A node that moves elements, the tensor that it reads, and which of its outputs is read on."""

    node: gs.Node
    source: str
    output: int


_Path = list[_Step]  # from the first node on


def lift_stacked_moves(context: Context, node: gs.Node) -> LinearOp | None:
    """Such a Concat of channels; None where its operands can be read one by one."""
    if node.op != "Concat" or not 2 <= len(node.inputs) <= MAX_OPERANDS:
        return None
    paths = [_path_to(context, tensor.name) for tensor in node.inputs]
    if not all(paths):
        return None
    for source in [step.source for step in reversed(paths[0])]:
        parts = [_from(path, source) for path in paths]
        if not all(parts) or not _picks_of_more_axes(context.scope, source, parts):
            continue
        inner = list({id(step.node): step.node for path in parts for step in path}.values())
        if _are_read_here_alone(context.scope, inner, node):
            lifted = _lifted(context, node, source, parts, inner)
            if lifted is not None:
                return lifted
    return None


def _path_to(context: Context, name: str) -> _Path:
    """The moves in a row before a tensor."""
    path: _Path = []
    while len(path) < MAX_STEPS_BACK:
        node = context.scope.producer.get(name)
        if node is None or node.op not in _MOVES or id(node) in context.protected:
            break
        path.insert(0, _Step(node, node.inputs[0].name, [t.name for t in node.outputs].index(name)))
        name = node.inputs[0].name
    return path


def _from(path: _Path, source: str) -> _Path:
    """The part of a path behind a tensor; empty if it does not lead through it."""
    names = [step.source for step in path]
    return path[names.index(source) :] if source in names else []


def _picks_of_more_axes(scope: Scope, source: str, paths: Sequence[_Path]) -> bool:
    """Whether a node picks from a tensor that has another number of axes: else covering reads each node by itself."""
    axes = len(scope.shape(source) or ())
    read = [step.source for path in paths for step in path if step.node.op in _PICK]
    return any(len(scope.shape(name) or ()) != axes for name in read)


def _are_read_here_alone(scope: Scope, inner: Sequence[gs.Node], last: gs.Node) -> bool:
    own = {id(last), *map(id, inner)}
    for tensor in [tensor for node in inner for tensor in node.outputs]:
        consumers = scope.consumers.get(tensor.name, ())
        if scope.is_seen(tensor.name) or any(id(consumer) not in own for consumer in consumers):
            return False
    return True


def _lifted(
    context: Context, node: gs.Node, source: str, paths: Sequence[_Path], inner: list[gs.Node]
) -> LinearOp | None:
    """The operands side by side; None where one of them is no choice of channels and of positions in blocks."""
    scope, dims = context.scope, dims_of(context.scope, source) or ()
    if len(dims) < 3 or not isinstance(dims[1], int) or 0 in dims:
        return None
    if scope.data_type(source) not in FLOAT_FORMATS or node.attrs.get("axis", 0) % len(dims) != 1:
        return None
    terms: list[Term] = []
    channels = 0
    for path in paths:
        kernel = _kernel(scope, dims, path)
        if kernel is None or (terms and kernel.geometry.strides != terms[0].kernel.geometry.strides):
            return None
        terms.append(Term(0, kernel, 0, channels))
        channels += kernel.geometry.c_out
    layout = terms[0].kernel.geometry.layout
    return LinearOp(
        node,
        node.outputs[0].name,
        Kind.INDEX,
        channels,
        layout,
        (Operand(source, dims[1], layout),),
        tuple(terms),
        Bias.zeros(channels),
        inner_nodes=tuple(inner),
    )


def _kernel(scope: Scope, dims: Dims, path: _Path) -> Kernel | None:
    """What a path takes of a tensor of these dims."""
    tensor: Rearranged | None = Rearranged.of(dims)
    for step in path:
        tensor = None if tensor is None else rearranged(scope, tensor, step.node, step.output)
    assert isinstance(dims[1], int)
    return None if tensor is None else moved(tensor, dims[1], len(dims), is_whole=False)
