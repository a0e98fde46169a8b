"""Ifs whose condition is a constant: one branch is always taken, and stands in their place before anything is planned.

The condition is proved as any other constant. What is inlined may prove more: a rank that was not known behind the If
is known then. So the model is read again until no such If is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import ONNX_DOMAINS, Scope, node_name
from onnx_repfuse.modelfile.branches import NAMES, IfKey, Kept, branch_of, can_replace, inline
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import ScopeKey
from onnx_repfuse.modelfile.node_order import all_nodes

__all__ = ["ConstantIf", "Inlined", "always_taken", "has_if", "without_constant_ifs"]

MAX_ROUNDS = 32  # each replaces Ifs; behind those that are left, shapes stay unknown


@dataclass(frozen=True)
class ConstantIf:
    """An If that was replaced.

    Attributes:
        name: its name, or its first output's when it has none.
        output: its first output, in the file's own name.
        taken: the value of its condition.
        scope: label of the scope it was in.
    """

    name: str
    output: str
    taken: bool
    scope: str


@dataclass(frozen=True)
class Inlined:
    """A document without the Ifs that always take one branch.

    Attributes:
        document: the given one if there are none.
        scopes: its scopes.
        replaced: the Ifs.
        names: the tensors of branches that have another name now: new -> old.
    """

    document: Document
    scopes: list[Scope]
    replaced: list[ConstantIf] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def without_constant_ifs(
    document: Document, *, freeze_initializers: bool = False, is_kept: Kept = lambda node: False
) -> Inlined:
    """The document with its branches in the place of Ifs whose condition is constant, and its scopes.

    An If in a function stays, and one that is kept, or that holds a kept node in the branch that is never taken.
    """
    read = partial(read_scopes, freeze_initializers=freeze_initializers)
    result = Inlined(document, read(document))
    for _ in range(MAX_ROUNDS):
        found = _reached(_constant_ifs(result, is_kept))
        if not found:
            break
        inlined, names = inline(result.document, {key: one.taken for key, one in found.items()}, is_kept)
        known = {new: result.names.get(old, old) for new, old in names.items()}
        replaced = [*result.replaced, *found.values()]
        result = Inlined(inlined, read(inlined), replaced, {**result.names, **known})
    return result


def always_taken(document: Document) -> set[str]:
    """The first outputs of the Ifs whose condition is constant."""
    if not has_if(document.model.graph):
        return set()
    return {one.output for one in without_constant_ifs(document).replaced}


def has_if(graph: onnx.GraphProto) -> bool:
    """Whether a graph, or one inside it, has an If."""
    return any(node.op_type == "If" for node in all_nodes(graph.node))


def _constant_ifs(inlined: Inlined, is_kept: Kept) -> dict[IfKey, ConstantIf]:
    found = {}
    for scope in inlined.scopes:
        if scope.key[:1] == ("function",):
            continue
        for node in scope.nodes:
            taken = _condition(scope, node)
            if taken is None:
                continue
            position = scope.anchor[id(node)]
            proto = scope.proto.node[position]
            branch, other = branch_of(proto, taken), branch_of(proto, not taken)
            if branch is None or other is None:
                continue
            if is_kept(proto) or _holds(other, is_kept):
                continue
            if can_replace(inlined.document.model, proto, branch, scope.opset):
                output = next(filter(None, proto.output), "")
                output = inlined.names.get(output, output)
                found[scope.key, position] = ConstantIf(node_name(node), output, taken, scope.label)
    return found


def _reached(found: dict[IfKey, ConstantIf]) -> dict[IfKey, ConstantIf]:
    """Without the Ifs in branches that are never taken."""
    never = {(*scope, position, NAMES[not one.taken]) for (scope, position), one in found.items()}

    def is_reached(scope: ScopeKey) -> bool:
        return never.isdisjoint(scope[:length] for length in range(len(scope) + 1))

    return {key: one for key, one in found.items() if is_reached(key[0])}


def _condition(scope: Scope, node: gs.Node) -> bool | None:
    """The value that the condition of an If always has; None if it is not known, or if this is no If."""
    if node.op != "If" or node.domain not in ONNX_DOMAINS or len(node.inputs) != 1:
        return None
    const = scope.const(node.inputs[0].name)
    if const is None or const.data_type != onnx.TensorProto.BOOL or const.size != 1:
        return None
    value = const.computed()
    return None if value is None else bool(value.item())


def _holds(graph: onnx.GraphProto, is_kept: Kept) -> bool:
    """Whether a graph, or one inside it, has a node that is kept."""
    return any(map(is_kept, all_nodes(graph.node)))
