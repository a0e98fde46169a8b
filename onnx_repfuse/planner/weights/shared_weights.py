"""Weights that folds made, and that are equal, are written once.

One head that a network applies to several inputs has one weight in the file. Folded for each of them, it would be as
many.
"""

from __future__ import annotations

from collections.abc import Hashable

from onnx_repfuse.algebra.sameness import key_of_bias, key_of_kernel
from onnx_repfuse.graph.scope import Const, Scope

__all__ = ["share_equal_weights"]


def share_equal_weights(scope: Scope) -> None:
    """Let the nodes that folds made read the first of equal constants."""
    made = [node for node in scope.nodes if id(node) not in scope.original]
    first: dict[Hashable, str] = {}
    for node in made:
        for tensor in node.inputs:
            const = scope.created.get(tensor.name)
            key = None if const is None else _key(const)
            if key is not None:
                tensor.name = first.setdefault(key, tensor.name)
    scope.index()


def _key(const: Const) -> Hashable | None:
    key = None
    if const.kernel is not None:
        key = key_of_kernel(const.kernel)
    elif const.bias is not None:
        key = key_of_bias(const.bias)
    return None if key is None else (const.shape, const.data_type, key)
