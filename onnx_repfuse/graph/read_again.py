"""A scope that was changed, read once more as if from the file that its nodes make."""

from __future__ import annotations

from functools import partial

from onnx_repfuse.graph.decode import bare
from onnx_repfuse.graph.dims import note_sizes
from onnx_repfuse.graph.edit_points import present_proto
from onnx_repfuse.graph.scope import Scope

__all__ = ["read_again"]


def read_again(scope: Scope) -> None:
    """Put the nodes in order and infer types and assumed sizes anew.

    What was inferred of the nodes that went, or was declared of new ones, may be more or less than that.
    """
    scope.nodes = scope.order(scope.nodes)
    scope.index()
    if scope.infer is None:
        return
    types, assumed = scope.infer(bare(map(partial(present_proto, scope), scope.nodes)))
    # What is known of tensors that no node computes any more is for the proofs of folds.
    gone = scope.types.keys() - scope.producer.keys() - types.keys()
    scope.types = {**{name: scope.types[name] for name in gone}, **types}
    scope.assumed = {**{name: scope.assumed[name] for name in gone & scope.assumed.keys()}, **assumed}
    scope.dims = {}
    note_sizes(scope)
