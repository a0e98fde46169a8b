"""Sizes that are multiples of a number wherever the graph runs: YOLO's Focus needs even ones.

    Concat(x[::2], x[1::2]) before a Conv        runs if ceil(n/2) = floor(n/2), so n is even

Of one position, x[1::2] is empty, and ONNX Runtime leaves an empty operand out of a Concat. Then the Conv has too few
channels and does not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dim, behind
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.graph.size_lists import constant_list

__all__ = ["multiples"]


def multiples(scope: Scope) -> dict[Dim, int]:
    """Size -> what it is a multiple of, where that is more than 1."""
    sampled = {one: (whole, step) for node in scope.nodes for whole, one, step in _sampled(scope, node)}
    result: dict[Dim, int] = {}
    for sizes in _sizes_side_by_side(scope) if sampled else ():
        for size in sizes & sampled.keys():
            whole, step = sampled[size]
            if behind(whole, step, -step) in sizes:  # the last of a block, so that no block is cut
                result[whole] = lcm(step, result.get(whole, 1))
    return result


def _sizes_side_by_side(scope: Scope) -> Iterator[set[Dim]]:
    """Along each axis, the sizes of tensors that a Concat puts side by side, if a Conv demands that all are there."""
    for node in scope.nodes:
        if node.op == "Concat" and _is_convolved(scope, node):
            dims = [dims_of(scope, tensor.name) or () for tensor in node.inputs]
            yield from map(set, zip(*dims, strict=False))


def _sampled(scope: Scope, node: gs.Node) -> Iterator[tuple[Dim, Dim, int]]:
    """Of a Slice with steps from the first position on: the size of an axis, what is left of it, and the step."""
    steps = constant_list(scope, optional_input(node, 4)) if node.op == "Slice" else None
    if not steps:
        return
    before, behind_it = dims_of(scope, node.inputs[0].name) or (), dims_of(scope, node.outputs[0].name) or ()
    for whole, left in zip(before, behind_it, strict=False):
        if isinstance(whole, int):
            continue
        for step in set(steps):
            if step > 1 and left == behind(whole, step, -1):
                yield whole, left, step


def _is_convolved(scope: Scope, node: gs.Node) -> bool:
    """Whether a Conv reads a Concat of channels and needs all of them."""
    name = node.outputs[0].name
    shape = scope.shape(name) or ()
    if node.attrs.get("axis") != 1 or len(shape) < 3:
        return False
    for consumer in scope.consumers.get(name, ()):
        weight = static(scope.shape(optional_input(consumer, 1))) if consumer.op == "Conv" else None
        if weight and consumer.inputs[0].name == name:
            return weight[1] * int(consumer.attrs.get("group", 1)) == shape[1]
    return False
