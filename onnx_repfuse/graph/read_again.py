"""A scope that was changed, read once more as if from the file that its nodes make."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.constant_folding import ConstantNodes
from onnx_repfuse.graph.decode import bare
from onnx_repfuse.graph.dims import note_sizes
from onnx_repfuse.graph.edit_points import is_as_in_file, present_proto
from onnx_repfuse.graph.scope import Infer, Scope, Sizes, Types, sizes_are_known
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["read_again"]


def read_again(scope: Scope) -> None:
    """Put the nodes in order and infer types and assumed sizes anew.

    What was inferred of the nodes that went, or was declared of new ones, may be more or less than that.
    """
    scope.nodes = scope.order(scope.nodes)
    scope.index()
    _infer(scope)
    _note_constants(scope)


def _infer(scope: Scope) -> None:
    if scope.infer is None:
        return
    types, assumed = _of_new_nodes(scope, scope.infer) or scope.infer(_protos(scope, scope.nodes))
    # What is known of tensors that no node computes any more is for the proofs of folds.
    gone = scope.types.keys() - scope.producer.keys() - types.keys()
    scope.types = {**{name: scope.types[name] for name in gone}, **types}
    scope.assumed = {**{name: scope.assumed[name] for name in gone & scope.assumed.keys()}, **assumed}
    scope.dims = {}
    note_sizes(scope)


def _note_constants(scope: Scope) -> None:
    """Note what nodes of the file compute that read constants now: those of a node which gave out what it read.

    Only these: what else reads constants alone was found, or left for a reason, when the scope was loaded.
    """
    fixed = scope.constants.keys() - scope.overridable
    computed, new = ConstantNodes(scope.opset, scope.constants), set[str]()
    for node in scope.nodes:
        names = [tensor.name for tensor in node.inputs if tensor.name]
        reads_others = not names or names[0] not in fixed or not fixed.issuperset(names)
        if reads_others or id(node) not in scope.original:
            continue
        if new.isdisjoint(names) and is_as_in_file(scope, node):
            continue
        if fixed.isdisjoint(tensor.name for tensor in node.outputs):
            found = computed.add(present_proto(scope, node), scope.types, waits=False)
            fixed.update(found)
            new.update(found)


def _protos(scope: Scope, nodes: Sequence[gs.Node]) -> list[onnx.NodeProto]:
    return bare(map(partial(present_proto, scope), nodes))


def _of_new_nodes(scope: Scope, infer: Infer) -> tuple[Types, Sizes] | None:
    """All types and sizes, where all are known and inference of the new nodes finds those that were there before.

    Then each of the other nodes reads what it read, and inference would find of it what it found.
    """
    types = scope.types
    if not sizes_are_known(types) or not types.keys() >= scope.producer.keys():
        return None
    new = [node for node in scope.nodes if not is_as_in_file(scope, node)]
    made = {tensor.name: types[tensor.name] for node in new for tensor in node.outputs}
    if not FLOAT_FORMATS.keys() >= {data_type for data_type, _ in made.values()}:
        return None  # a list of sizes: its values decide shapes further on
    read = {tensor.name for node in new for tensor in node.inputs} & scope.producer.keys()
    found, sizes = infer(_protos(scope, new), {name: types[name] for name in sorted(read - made.keys())})
    if {name: found.get(name) for name in made} != made:
        return None
    return {**types, **found}, {**scope.assumed, **sizes}
