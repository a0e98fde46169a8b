"""From edits to a rope: the model's own bytes in their order, without what was removed, with what is new.

Only the messages on the way to a change are opened: the model, the graph, a node that is rewired, the
attribute whose subgraph is edited. Everything else is copied as the range of bytes it is, fields that this
ONNX does not know included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnx_repfuse.errors import InputError, OutputError
from onnx_repfuse.modelfile.byte_rope import Deferred, Rope
from onnx_repfuse.modelfile.document import Document, ScopeKey
from onnx_repfuse.modelfile.edit import Edit, NewTensor
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.names import TENSOR_NAME, VALUE_NAME, Names, defined, renamed, text_of
from onnx_repfuse.modelfile.protobuf_wire import LENGTH, MAX_DEPTH, NUMBER, Field, fields, prefix
from onnx_repfuse.modelfile.relocate import External, Relocation

__all__ = ["Splice"]

_MODEL_GRAPH, _MODEL_FUNCTIONS = NUMBER["ModelProto.graph"], NUMBER["ModelProto.functions"]
_NODES = {"GraphProto": NUMBER["GraphProto.node"], "FunctionProto": NUMBER["FunctionProto.node"]}
_INITIALIZER, _SPARSE = NUMBER["GraphProto.initializer"], NUMBER["GraphProto.sparse_initializer"]
_INPUT, _OUTPUT = NUMBER["GraphProto.input"], NUMBER["GraphProto.output"]
_ANNOTATION = NUMBER["GraphProto.quantization_annotation"]
_VALUE_INFO = {
    "GraphProto": NUMBER["GraphProto.value_info"],
    "FunctionProto": NUMBER.get("FunctionProto.value_info", -1),
}
_NODE_INPUT = NUMBER["NodeProto.input"]
_ATTRIBUTE = NUMBER["NodeProto.attribute"]
_ATTRIBUTE_NAME, _G, _GRAPHS = (NUMBER[f"AttributeProto.{name}"] for name in ("name", "g", "graphs"))
_ANNOTATED = NUMBER["TensorAnnotation.tensor_name"]
_SPARSE_VALUES = NUMBER["SparseTensorProto.values"]

_NOTHING = Edit()
_RELEASE = 32 << 20


class Splice:
    """One pass over a document under some edits; new tensors above `INLINE` go to `data`, if there is one."""

    def __init__(
        self,
        document: Document,
        edits: Mapping[ScopeKey, Edit],
        policy: External = External.KEEP,
        data: DataFile | None = None,
        spill: bool = False,
    ) -> None:
        self._document = document
        self._source = document.source
        self._edits = {scope: edit for scope, edit in edits.items() if edit}
        self._on_the_way = {scope[:length] for scope in self._edits for length in range(len(scope) + 1)}
        self._relocation = Relocation(document, policy, data, spill)
        self._data = data
        self._done: set[ScopeKey] = set()
        self._since = 0

    def model(self) -> Rope:
        """The whole ModelProto."""
        rope = Rope()
        functions = 0
        for field in self._fields(0, self._source.size):
            number, wire = field[:2]
            if wire == LENGTH and number == _MODEL_GRAPH:
                self._scope("GraphProto", field, (), {}, rope)
            elif wire == LENGTH and number == _MODEL_FUNCTIONS:
                scope: ScopeKey = ("function", functions)
                functions += 1
                self._scope("FunctionProto", field, scope, {}, rope)
            else:
                self._relocation.copy("ModelProto", field, rope)
        missed = set(self._edits) - self._done
        if missed:
            raise OutputError(f"there is no graph {min(missed, key=repr)!r} to edit")
        return rope

    def _fields(self, begin: int, end: int) -> Iterable[Field]:
        return fields(self._source.buffer, begin, end)

    def _scope(self, kind: str, field: Field, scope: ScopeKey, names: Names, rope: Rope) -> None:
        """A graph or a function body, opened only if something in it may change."""
        number, _, tag, at, stop = field
        spilt = scope == () and self._relocation.spill
        if scope in self._on_the_way or names or spilt or self._relocation.concerns(at, stop):
            if len(scope) > 2 * MAX_DEPTH:
                raise InputError("the model's graphs are nested too deeply")
            rope.message(number, self._body(kind, at, stop, scope, names))
        else:
            rope.copy(self._source, tag, stop)

    def _body(self, kind: str, begin: int, end: int, scope: ScopeKey, names: Names) -> Rope:
        edit = self._edits.get(scope, _NOTHING)
        self._done.add(scope)
        parts = list(self._fields(begin, end))
        if names:
            hidden = defined(self._source, parts)
            names = {old: new for old, new in names.items() if old not in hidden}
        last = {number: index for index, (number, wire, *_) in enumerate(parts) if wire == LENGTH}
        nodes = sum(number == _NODES[kind] and wire == LENGTH for number, wire, *_ in parts)
        self._in_range(edit, nodes, scope)
        late = self._late(kind, edit, nodes, scope)
        rope = Rope()
        position = 0
        for index, field in enumerate(parts):
            number, wire, tag, _, stop = field
            if wire != LENGTH:
                rope.copy(self._source, tag, stop)
            elif number == _NODES[kind]:
                if position == 0 and self._inline(kind, scope):
                    self._constants(kind, edit, rope)
                self._insert(number, edit.inserted.get(position, ()), rope)
                if position not in edit.removed_nodes:
                    changed = {o.encode(): n.encode() for o, n in edit.rewired.get(position, {}).items()}
                    self._node(field, (*scope, position), {**names, **changed}, rope)
                position += 1
            elif kind == "GraphProto" and number == _INITIALIZER:
                if not self._listed(field, TENSOR_NAME, edit.removed_initializers):
                    self._relocation.copy(kind, field, rope, spill=scope == ())
            elif not self._dropped(kind, field, edit, scope):
                if kind == "GraphProto" and number == _OUTPUT and names:
                    renamed(self._source, field, VALUE_NAME, names, rope)
                else:
                    self._relocation.copy(kind, field, rope)
            if last.get(number) == index and number in late:
                rope.extend(late.pop(number))
        for rest in late.values():
            rope.extend(rest)
        return rope

    def _in_range(self, edit: Edit, nodes: int, scope: ScopeKey) -> None:
        positions = {*edit.removed_nodes, *edit.rewired, *(at - 1 for at in edit.inserted if at != 0)}
        if any(not 0 <= position < nodes for position in positions):
            raise OutputError(f"an edit of graph {scope!r} names a node that is not there")

    def _late(self, kind: str, edit: Edit, nodes: int, scope: ScopeKey) -> dict[int, Rope]:
        """What follows the last field of a number: nodes at the end, new initializers, inputs in old IR."""
        ropes = {_NODES[kind]: Rope()}
        if self._inline(kind, scope):
            if nodes == 0:
                self._constants(kind, edit, ropes[_NODES[kind]])
        elif edit.new_tensors:
            ropes[_INITIALIZER] = Rope()
            for new in edit.new_tensors:
                ropes[_INITIALIZER].message(_INITIALIZER, self._tensor(new, self._data))
            if scope == () and self._document.model.ir_version < 4:
                ropes[_INPUT] = Rope()
                for new in edit.new_tensors:
                    value = onnx.helper.make_tensor_value_info(new.name, new.data_type, new.shape)
                    body = value.SerializeToString(deterministic=True)
                    ropes[_INPUT].add(prefix(_INPUT, len(body)) + body)
        self._insert(_NODES[kind], edit.inserted.get(nodes, ()), ropes[_NODES[kind]])
        return ropes

    def _insert(self, number: int, nodes: Iterable[onnx.NodeProto], rope: Rope) -> None:
        for node in nodes:
            body = self._relocation.restored(node).SerializeToString(deterministic=True)
            rope.add(prefix(number, len(body)) + body)

    def _inline(self, kind: str, scope: ScopeKey) -> bool:
        """Whether new tensors are Constant nodes: a function has no initializers, and before IR version 4 every
        initializer is an input, too, which the graphs of an If cannot have."""
        return kind == "FunctionProto" or (scope != () and self._document.model.ir_version < 4)

    def _constants(self, kind: str, edit: Edit, rope: Rope) -> None:
        """New tensors as nodes: inline, as runtimes do not look for external data there."""
        for new in edit.new_tensors:
            attribute = Rope()
            attribute.add(onnx.AttributeProto(name="value").SerializeToString(deterministic=True))
            attribute.message(NUMBER["AttributeProto.t"], self._tensor(new, None))
            typed = onnx.AttributeProto(type=onnx.AttributeProto.TENSOR)
            attribute.add(typed.SerializeToString(deterministic=True))
            node = Rope()
            head = onnx.NodeProto(output=[new.name], op_type="Constant")
            node.add(head.SerializeToString(deterministic=True))
            node.message(_ATTRIBUTE, attribute)
            rope.message(_NODES[kind], node)

    def _tensor(self, new: NewTensor, data: DataFile | None) -> Rope:
        rope = Rope()
        head = onnx.TensorProto(dims=new.shape, data_type=new.data_type, name=new.name)
        rope.add(head.SerializeToString(deterministic=True))
        self._relocation.payload(Deferred(new.nbytes, lambda: self._computed(new)), data, rope)
        return rope

    def _computed(self, new: NewTensor) -> memoryview:
        """The bytes of a new tensor; what was read of the input to compute it is given back now and then."""
        self._since += new.nbytes
        if self._since > _RELEASE:
            self._since = 0
            self._document.release()
        return new.data()

    def _node(self, field: Field, here: ScopeKey, names: Names, rope: Rope) -> None:
        number, _, tag, at, stop = field
        if not names and here not in self._on_the_way and not self._relocation.concerns(at, stop):
            rope.copy(self._source, tag, stop)
            return
        body = Rope()
        for part in self._fields(at, stop):
            inner, wire, begin, text, end = part
            if wire == LENGTH and inner == _NODE_INPUT:
                old = self._source.buffer[text:end]
                new = names.get(old, old)
                if new is old:
                    body.copy(self._source, begin, end)
                else:
                    body.add(prefix(inner, len(new)) + new)
            elif wire == LENGTH and inner == _ATTRIBUTE:
                self._attribute(part, here, names, body)
            else:
                body.copy(self._source, begin, end)
        rope.message(number, body)

    def _attribute(self, field: Field, here: ScopeKey, names: Names, rope: Rope) -> None:
        number, _, _, at, stop = field
        parts = list(self._fields(at, stop))
        if not any(wire == LENGTH and inner in (_G, _GRAPHS) for inner, wire, *_ in parts):
            self._relocation.copy("NodeProto", field, rope)
            return
        name = text_of(self._source, parts, _ATTRIBUTE_NAME).decode(errors="replace")
        body = Rope()
        count = 0
        for part in parts:
            if part[1] == LENGTH and part[0] == _G:
                self._scope("GraphProto", part, (*here, name), names, body)
            elif part[1] == LENGTH and part[0] == _GRAPHS:
                self._scope("GraphProto", part, (*here, name, "graphs", count), names, body)
                count += 1
            else:
                self._relocation.copy("AttributeProto", part, body)
        rope.message(number, body)

    def _dropped(self, kind: str, field: Field, edit: Edit, scope: ScopeKey) -> bool:
        number = field[0]
        if number == _VALUE_INFO[kind]:
            return self._listed(field, VALUE_NAME, edit.removed_values)
        if kind != "GraphProto":
            return False
        if number == _ANNOTATION:
            return self._listed(field, _ANNOTATED, edit.removed_values)
        if number == _INPUT and scope == ():
            return self._listed(field, VALUE_NAME, edit.removed_initializers)
        if number == _SPARSE and edit.removed_initializers:
            for inner, wire, _, at, stop in self._fields(field[3], field[4]):
                if inner == _SPARSE_VALUES and wire == LENGTH:
                    name = text_of(self._source, self._fields(at, stop), TENSOR_NAME)
                    return name.decode(errors="replace") in edit.removed_initializers
        return False

    def _listed(self, field: Field, number: int, names: set[str]) -> bool:
        """Whether the name of a message is among `names`."""
        if not names:
            return False
        return (
            text_of(self._source, self._fields(field[3], field[4]), number).decode(errors="replace") in names
        )
