"""An If replaced by one of its branches: the nodes of the branch stand in its place, in the graph around it.

Nothing here knows whether that is right; `graph.constant_ifs` proves which branch is taken.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx

from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import INPUTS_ARE_OPTIONAL, ScopeKey
from onnx_repfuse.modelfile.node_order import inner_graphs
from onnx_repfuse.modelfile.weightless import mark, mark_of

__all__ = ["NAMES", "IfKey", "Kept", "branch_of", "can_replace", "inline"]

NAMES = {True: "then_branch", False: "else_branch"}
IfKey = tuple[ScopeKey, int]  # the scope, and the position of the node in it
Kept = Callable[[onnx.NodeProto], bool]
_IDENTITY_OF_ALL_TYPES = 16  # the opset from which an Identity takes whatever a branch may return


def branch_of(node: onnx.NodeProto, taken: bool) -> onnx.GraphProto | None:
    """The branch that an If takes, or the other one; None if the file does not have it."""
    return dict(inner_graphs(node)).get((NAMES[taken],))


def can_replace(model: onnx.ModelProto, node: onnx.NodeProto, branch: onnx.GraphProto, opset: int) -> bool:
    """Whether the nodes of a branch can stand in the place of an If.

    Sparse initializers are left alone, and so are the names that training information speaks of. Before IR version 4,
    initializers are graph inputs.
    """
    if model.training_info or branch.sparse_initializer or branch.input:
        return False
    if branch.initializer and model.ir_version < INPUTS_ARE_OPTIONAL:
        return False
    if len(branch.output) < len(node.output):
        return False
    computed = {name for inner in branch.node for name in inner.output if name}
    is_plain = all(value.name in computed or value.type.HasField("tensor_type") for value in branch.output)
    return is_plain or opset >= _IDENTITY_OF_ALL_TYPES


def inline(
    document: Document, chosen: Mapping[IfKey, bool], is_kept: Kept = lambda node: False
) -> tuple[Document, dict[str, str]]:
    """A document in which Ifs are replaced by their branches, and the tensors that got other names: new -> old.

    The result reads the same files. A name of the branch that is also defined elsewhere in the model gets a number.
    What only the condition or the other branch read goes, too, but for nodes that are to be kept.

    Args:
        document: the model.
        chosen: If -> whether its then_branch is taken; of those that `can_replace` allows.
        is_kept: whether a node must stay.
    """
    result = copy.copy(document)
    result.model, result.payloads = onnx.ModelProto(), list(document.payloads)
    result.model.CopyFrom(document.model)
    result.converted = {}
    by_scope: dict[ScopeKey, dict[int, bool]] = {}
    for (scope, position), taken in chosen.items():
        by_scope.setdefault(scope, {})[position] = taken
    graph = result.model.graph
    before = Counter(_reads(graph))
    inliner = _Inliner(result)
    # What is inside first: then the positions that lead there are still right.
    for scope in sorted(by_scope, key=len, reverse=True):
        inliner.inline(_graph_of(result.model, scope), by_scope[scope])
    reads = Counter(_reads(graph))
    _drop_unread(graph, reads, {name for name in before if name and not reads[name]}, is_kept)
    return result, inliner.renamed


def _graph_of(model: onnx.ModelProto, scope: ScopeKey) -> onnx.GraphProto:
    """The graph of a scope that is in no function."""
    graph, rest = model.graph, list(scope)
    while rest:
        node = graph.node[int(rest.pop(0))]
        found = dict(inner_graphs(node))
        tail: tuple[str | int, ...] = ()
        while tail not in found:
            tail = (*tail, rest.pop(0))
        graph = found[tail]
    return graph


def _definitions(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a graph, or one inside it, defines; as often as it does."""
    yield from _own_definitions(graph)
    for node in graph.node:
        for _, inner in inner_graphs(node):
            yield from _definitions(inner)


def _own_definitions(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.initializer)}
    names.update(sparse.values.name for sparse in graph.sparse_initializer)
    names.update(name for node in graph.node for name in node.output if name)
    return names


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that is read in a graph or inside it, or is an output, as often as it is."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from _read_by(node)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for _, inner in inner_graphs(node):
        yield from _reads(inner)


def _drop_unread(graph: onnx.GraphProto, reads: Counter[str], freed: set[str], is_kept: Kept) -> None:
    """Remove nodes and initializers that nobody reads any more, from the last to the first.

    Args:
        graph: to be changed, and what is inside it.
        reads: how often each name is read; kept up to date.
        freed: the names that were read once and are not now; those that follow are added.
        is_kept: whether a node must stay.
    """
    kept = []
    for node in reversed(graph.node):
        is_unread = not freed.isdisjoint(node.output) and not any(reads[name] for name in node.output if name)
        if is_unread and not is_kept(node):
            read = Counter(_read_by(node))
            reads.subtract(read)
            freed.update(name for name in read if name and not reads[name])
            continue
        for _, inner in inner_graphs(node):
            _drop_unread(inner, reads, freed, is_kept)
        kept.append(node)
    if len(kept) < len(graph.node):
        left = onnx.GraphProto()
        left.node.extend(reversed(kept))
        del graph.node[:]
        graph.node.extend(left.node)
    freed = freed - {value.name for value in graph.input}
    unread = [place for place, tensor in enumerate(graph.initializer) if tensor.name in freed]
    for place in reversed(unread):
        del graph.initializer[place]


class _Inliner:
    """Replaces Ifs one by one, and knows which names are in use."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.renamed: dict[str, str] = {}
        self.defined = Counter(_definitions(document.model.graph))
        self.taken = {*self.defined, *(value.name for value in document.model.graph.output)}

    def inline(self, graph: onnx.GraphProto, chosen: Mapping[int, bool]) -> None:
        """Replace the Ifs at these positions of `graph`, which belongs to the document, by a branch."""
        changed = onnx.GraphProto()
        for position, node in enumerate(graph.node):
            if position in chosen:
                changed.node.extend(self._nodes_of(node, chosen[position], graph))
            else:
                changed.node.append(node)
        del graph.node[:]
        graph.node.extend(changed.node)

    def _nodes_of(
        self, node: onnx.NodeProto, taken: bool, graph: onnx.GraphProto
    ) -> Iterator[onnx.NodeProto]:
        """The nodes in the place of an If; all else that its branch holds goes into the graph around it."""
        branch = branch_of(node, taken)
        assert branch is not None
        for _, inner in inner_graphs(node):
            self.defined.subtract(_definitions(inner))
        names = self._names(node, branch)
        self.defined.update(_definitions(branch))
        self.defined.subtract(list(names))
        self.defined.update(new for new in names.values() if new not in node.output)
        graph.initializer.extend(self._tensor(tensor, names) for tensor in branch.initializer)
        _take_over_notes(graph, branch, names)
        for inner_node in branch.node:
            yield _renamed(inner_node, names)
        yield from _identities(node, branch, names)

    def _names(self, node: onnx.NodeProto, branch: onnx.GraphProto) -> dict[str, str]:
        """New names for what the branch defines: those of the If's outputs, or others where a name is in use."""
        inside = Counter(_definitions(branch))
        computed = {name for inner in branch.node for name in inner.output if name}
        names: dict[str, str] = {}
        for output, value in zip(node.output, branch.output, strict=False):
            # another tensor of that name in the branch, or in a graph inside it, would hide it
            is_hidden = output != value.name and inside[output] > 0
            if output and value.name in computed and value.name not in names and not is_hidden:
                names[value.name] = output
        for name in sorted(_own_definitions(branch) - names.keys()):
            if self.defined[name]:  # the outputs of the If count, what its branches define does not any more
                names[name] = self._fresh(name)
        return names

    def _fresh(self, name: str) -> str:
        number = 1
        while f"{name}_{number}" in self.taken:
            number += 1
        fresh = f"{name}_{number}"
        self.taken.add(fresh)
        self.renamed[fresh] = self.renamed.get(name, name)
        return fresh

    def _tensor(self, tensor: onnx.TensorProto, names: Mapping[str, str]) -> onnx.TensorProto:
        """An initializer of the branch under its new name."""
        result = onnx.TensorProto()
        result.CopyFrom(tensor)
        index = mark_of(tensor)
        if tensor.name in names:
            result.name = names[tensor.name]
            if index is not None:
                # Its bytes in the file say the old name.
                mark(result, len(self.document.payloads))
                self.document.payloads.append(replace(self.document.payloads[index], is_renamed=True))
        return result


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node under other names."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    _rename_reads(result, names)
    result.output[:] = [names.get(name, name) for name in result.output]
    return result


def _identities(
    node: onnx.NodeProto, branch: onnx.GraphProto, names: Mapping[str, str]
) -> Iterator[onnx.NodeProto]:
    """For the outputs of an If that its branch does not compute itself, or returns twice."""
    for output, value in zip(node.output, branch.output, strict=False):
        source = names.get(value.name, value.name)
        if output and output != source:
            yield onnx.NodeProto(op_type="Identity", input=[source], output=[output])


def _rename_reads(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Other names for what a node, and the graphs inside it, read from outside."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for _, graph in inner_graphs(node):
        hidden = _own_definitions(graph)
        visible = {old: new for old, new in names.items() if old not in hidden}
        if not visible:
            continue
        for value in graph.output:
            value.name = visible.get(value.name, value.name)
        for inner in graph.node:
            _rename_reads(inner, visible)


def _take_over_notes(graph: onnx.GraphProto, branch: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """What the branch says of shapes and quantization, under the new names."""
    known = {value.name for value in (*graph.value_info, *graph.output, *graph.input)}
    for value in branch.value_info:
        note = onnx.ValueInfoProto()
        note.CopyFrom(value)
        note.name = names.get(value.name, value.name)
        if note.name not in known:
            graph.value_info.append(note)
    annotations: Sequence[onnx.TensorAnnotation] = branch.quantization_annotation
    for annotation in annotations:
        told = graph.quantization_annotation.add()
        told.CopyFrom(annotation)
        told.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
        for entry in told.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
