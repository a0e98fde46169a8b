"""What may change in a model, said by position and name; and how the skeleton is changed that way.

    edit = Edit(removed_nodes={3}, rewired={4: {"bn_out": "conv_out"}})
    apply_edits(skeleton, {(): edit}, placeholder)

Everything an edit does not name stays as it is, as protobuf messages compare, fields that this ONNX does not know
included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import OutputError, quoted
from onnx_repfuse.modelfile.dtypes import numpy_dtype, pack, stored_size, type_name
from onnx_repfuse.modelfile.node_order import sort_nodes

__all__ = ["INPUTS_ARE_OPTIONAL", "Edit", "NewTensor", "ScopeKey", "apply_edits"]

ScopeKey = tuple[str | int, ...]
INPUTS_ARE_OPTIONAL = 4  # the IR version from which an initializer need not be a graph input, too


@dataclass(frozen=True)
class NewTensor:
    """A tensor whose elements are computed when they are written, and forgotten after.

    Attributes:
        name: its name in the graph.
        data_type: its `onnx.TensorProto.DataType`.
        shape: its shape.
        value: called once; must return exactly that shape and dtype.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray[Any, Any]]

    @property
    def nbytes(self) -> int:
        """The stored size, known before the value."""
        size = stored_size(self.data_type, self.shape)
        if size is None:
            raise OutputError(
                f"new tensor {quoted(self.name)}: {type_name(self.data_type)} has no fixed size"
            )
        return size

    def data(self) -> memoryview:
        """Compute the value; its bytes as `raw_data` stores them."""
        array = self.value()
        dtype = numpy_dtype(self.data_type)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != tuple(self.shape):
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise OutputError(
                f"new tensor {quoted(self.name)} should be {dtype} {self.shape}, but its value is {got}"
            )
        return pack(self.data_type, array)


@dataclass
class Edit:
    """The changes of one scope. Positions are those of the input.

    Attributes:
        removed_nodes: positions of nodes to leave out.
        inserted: position -> nodes to write before the node that stood there; `len(nodes)` means at the end.
        rewired: position -> {old input name: new input name}; consumers in the node's subgraphs follow.
        removed_initializers: names; the graph inputs of these names go, too.
        new_tensors: initializers; in a function, which has none, Constant nodes at its front.
        rewritten: initializers, and outputs of Constant nodes, whose elements change and nothing else of them.
        removed_inputs: names of inputs of the main graph that go though their initializers stay. This takes IR version
            4, which a model of an older one gets.
        removed_values: names that no longer exist: their value_info and quantization_annotation go.
    """

    removed_nodes: set[int] = field(default_factory=set)
    inserted: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    rewired: dict[int, dict[str, str]] = field(default_factory=dict)
    removed_initializers: set[str] = field(default_factory=set)
    new_tensors: list[NewTensor] = field(default_factory=list)
    rewritten: dict[str, NewTensor] = field(default_factory=dict)
    removed_inputs: set[str] = field(default_factory=set)
    removed_values: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return any(
            (
                self.removed_nodes,
                any(self.inserted.values()),
                any(self.rewired.values()),
                self.removed_initializers,
                self.new_tensors,
                self.rewritten,
                self.removed_inputs,
                self.removed_values,
            )
        )


_NO_EDIT = Edit()
GraphOrFunction = onnx.GraphProto | onnx.FunctionProto
Names = Mapping[str, str]  # old name -> new name
Placeholder = Callable[[NewTensor, bool], onnx.TensorProto]


def apply_edits(model: onnx.ModelProto, edits: Mapping[ScopeKey, Edit], placeholder: Placeholder) -> None:
    """Change a model in place.

    Args:
        model: the model; a skeleton will do.
        edits: scope -> its edit. The main graph is `()`, a function `("function", index)`, the graph in an attribute
            `(*scope, position of the node, attribute name)`, one of several there `(..., index)`.
        placeholder: (new tensor, whether it becomes an initializer) -> a TensorProto for it.

    Raises:
        OutputError: an edit names a graph or a node that is not there.
    """
    if any(edit.removed_inputs for edit in edits.values()):
        model.ir_version = max(model.ir_version, INPUTS_ARE_OPTIONAL)
    editor = _Editor(edits, model.ir_version, placeholder)
    editor.edit_scope(model.graph, (), {})
    for index, function in enumerate(model.functions):
        editor.edit_scope(function, ("function", index), {})
    if any(edit.rewired or edit.inserted for edit in edits.values()):
        sort_nodes(model)  # what a node reads now may be computed behind it
    missed = editor.edits.keys() - editor.visited
    if missed:
        raise OutputError(f"there is no graph {min(missed, key=repr)!r} to edit")


class _Editor:
    """One pass over the graphs that are edited, or that capture a tensor whose name changes."""

    def __init__(self, edits: Mapping[ScopeKey, Edit], ir_version: int, placeholder: Placeholder) -> None:
        self.edits = {scope: edit for scope, edit in edits.items() if edit}
        self.visited: set[ScopeKey] = set()
        # All prefixes of the edited scopes, so that graphs and nodes that lead to none are passed over.
        self._on_the_way = {scope[:length] for scope in self.edits for length in range(len(scope) + 1)}
        self._ir_version = ir_version
        self._placeholder = placeholder

    def edit_scope(self, graph: GraphOrFunction, scope: ScopeKey, names: Names) -> None:
        """Edit a graph or a function; `names` are the new names of tensors outside."""
        if scope not in self._on_the_way and not names:
            return
        self.visited.add(scope)
        edit = self.edits.get(scope, _NO_EDIT)
        _check_positions(edit, len(graph.node), scope)
        if isinstance(graph, onnx.GraphProto) and names:
            names = _visible(names, graph)
            _rename_outputs(graph, names)
        # First what is inside of the nodes, as long as each has its position of the input.
        for position, node in enumerate(graph.node):
            if position not in edit.removed_nodes:
                self._node(node, (*scope, position), {**names, **edit.rewired.get(position, {})})
        self._rewrite(graph, edit.rewritten)
        _edit_nodes(graph, edit, self._constants(graph, scope, edit))
        if isinstance(graph, onnx.GraphProto):  # a function has neither initializers nor annotations
            self._edit_graph(graph, scope, edit)
        elif "value_info" in graph.DESCRIPTOR.fields_by_name:  # since IR version 10
            _drop(graph.value_info, edit.removed_values)

    def _node(self, node: onnx.NodeProto, key: ScopeKey, names: Names) -> None:
        if not names and key not in self._on_the_way:
            return
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                self.edit_scope(attribute.g, (*key, attribute.name), names)
            for index, graph in enumerate(attribute.graphs):
                self.edit_scope(graph, (*key, attribute.name, index), names)

    def _rewrite(self, graph: GraphOrFunction, rewritten: Mapping[str, NewTensor]) -> None:
        """Give initializers and Constant nodes other elements; their places, names and texts stay."""
        if not rewritten:
            return
        for tensor in graph.initializer if isinstance(graph, onnx.GraphProto) else ():
            if tensor.name in rewritten:
                self._refill(tensor, rewritten[tensor.name], is_initializer=True)
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in rewritten:
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self._refill(attribute.t, rewritten[node.output[0]], is_initializer=False)

    def _refill(self, tensor: onnx.TensorProto, new: NewTensor, *, is_initializer: bool) -> None:
        name, text = tensor.name, tensor.doc_string
        tensor.CopyFrom(self._placeholder(new, is_initializer))
        tensor.name = name
        if text:
            tensor.doc_string = text

    def _constants(self, graph: GraphOrFunction, scope: ScopeKey, edit: Edit) -> list[onnx.NodeProto]:
        """The new tensors as Constant nodes, where they cannot be initializers."""
        if self._has_initializers(graph, scope):
            return []
        nodes = []
        for new in edit.new_tensors:
            node = onnx.NodeProto(output=[new.name], op_type="Constant")
            node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=self._placeholder(new, False))
            nodes.append(node)
        return nodes

    def _edit_graph(self, graph: onnx.GraphProto, scope: ScopeKey, edit: Edit) -> None:
        """All of a graph but its nodes."""
        _drop(graph.initializer, edit.removed_initializers)
        _drop(graph.sparse_initializer, edit.removed_initializers, lambda sparse: sparse.values.name)
        _drop(graph.value_info, edit.removed_values)
        _drop(graph.quantization_annotation, edit.removed_values, lambda note: note.tensor_name)
        if scope == ():
            # An initializer may be listed as an input, whose default value it is then (before IR 4, it must be).
            _drop(graph.input, edit.removed_initializers | edit.removed_inputs)
        if not self._has_initializers(graph, scope):
            return
        for new in edit.new_tensors:
            graph.initializer.append(self._placeholder(new, True))
            if self._ir_version < INPUTS_ARE_OPTIONAL:
                graph.input.append(onnx.helper.make_tensor_value_info(new.name, new.data_type, new.shape))

    def _has_initializers(self, graph: GraphOrFunction, scope: ScopeKey) -> bool:
        """Whether new tensors can be initializers.

        A function has none. Before IR version 4 every initializer is a graph input, too, which the graphs of an If
        cannot have.
        """
        return isinstance(graph, onnx.GraphProto) and (scope == () or self._ir_version >= INPUTS_ARE_OPTIONAL)


def _check_positions(edit: Edit, count: int, scope: ScopeKey) -> None:
    """Raise OutputError if an edit is of a node beyond the `count` nodes of its scope."""
    after = {position - 1 for position in edit.inserted if position != 0}
    if any(not 0 <= position < count for position in {*edit.removed_nodes, *edit.rewired, *after}):
        raise OutputError(f"an edit of graph {scope!r} names a node that is not there")


def _visible(names: Names, graph: onnx.GraphProto) -> Names:
    """Without the names that a subgraph defines itself, which hide those outside."""
    hidden = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        hidden.update(node.output)
    return {old: new for old, new in names.items() if old not in hidden}


def _rename_outputs(graph: onnx.GraphProto, names: Names) -> None:
    """A subgraph may return a tensor from outside as it is."""
    for output in graph.output:
        if output.name in names:
            output.name = names[output.name]


def _edit_nodes(graph: GraphOrFunction, edit: Edit, constants: list[onnx.NodeProto]) -> None:
    if not constants and not edit.removed_nodes and not edit.inserted:
        return
    nodes = constants  # first, as everything may read them
    for position, node in enumerate(graph.node):
        nodes += edit.inserted.get(position, ())
        if position not in edit.removed_nodes:
            nodes.append(node)
    nodes += edit.inserted.get(len(graph.node), ())
    del graph.node[:]
    graph.node.extend(nodes)


def _drop(
    messages: Any, names: set[str], name_of: Callable[[Any], str] = lambda message: message.name
) -> None:
    """Remove the messages of these names from a repeated field."""
    kept = [message for message in messages if name_of(message) not in names]
    if len(kept) < len(messages):
        del messages[:]
        messages.extend(kept)
