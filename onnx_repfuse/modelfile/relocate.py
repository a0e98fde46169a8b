"""Payloads on the move: external data kept where it is, taken in, or put into the new data file."""

from __future__ import annotations

from enum import Enum

import onnx

from onnx_repfuse.modelfile import tensors
from onnx_repfuse.modelfile.byte_rope import Deferred, Range, Rope
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.dtypes import pack, stored_size
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.protobuf_wire import (
    LENGTH,
    NUMBER,
    PAYLOADS,
    ROUTES,
    Field,
    Route,
    fields,
    prefix,
)
from onnx_repfuse.modelfile.weightless import INLINE, MARK

__all__ = ["External", "Relocation"]

_RAW = NUMBER["TensorProto.raw_data"]
_GONE = {*PAYLOADS, NUMBER["TensorProto.external_data"], NUMBER["TensorProto.data_location"]}
_SPARSE = {NUMBER[f"SparseTensorProto.{name}"]: Route("TensorProto", False) for name in ("values", "indices")}
_INTO_SPARSE = {
    "GraphProto": {NUMBER["GraphProto.sparse_initializer"]: Route("SparseTensorProto", True)},
    "AttributeProto": {
        NUMBER["AttributeProto.sparse_tensor"]: Route("SparseTensorProto", False),
        NUMBER["AttributeProto.sparse_tensors"]: Route("SparseTensorProto", True),
    },
}
_ROUTES = {kind: {**routes, **_INTO_SPARSE.get(kind, {})} for kind, routes in ROUTES.items()}
_ROUTES["SparseTensorProto"] = _SPARSE


class External(Enum):
    """What happens to tensors that are external in the input."""

    KEEP = "their references stay"
    INLINE = "their data goes into the model"
    MOVE = "their data goes to the new data file"


class Relocation:
    """Copies messages, and moves the payloads in them where the policy says so."""

    def __init__(self, document: Document, policy: External, data: DataFile | None, spill: bool) -> None:
        self._document = document
        self._source = document.source
        self._moving = policy is not External.KEEP and document.external
        self._data = data if policy is External.MOVE else None
        self.spill = spill and data is not None

    def concerns(self, begin: int, end: int) -> bool:
        """Whether a tensor in this range of the model may have to move."""
        return self._moving and self._source.buffer.find(b"location", begin, end) >= 0

    def copy(self, kind: str, field: Field, rope: Rope, *, spill: bool = False) -> None:
        """Append one field of a message of type `kind`."""
        number, wire, tag, at, stop = field
        route = _ROUTES.get(kind, {}).get(number) if wire == LENGTH else None
        spill = spill and self.spill and stop - at > INLINE
        if route is None or not (spill or self.concerns(at, stop)):
            rope.copy(self._source, tag, stop)
        elif route.message == "TensorProto":
            self._tensor(field, rope, spill)
        else:
            body = Rope()
            for part in fields(self._source.buffer, at, stop):
                self.copy(route.message, part, body)
            rope.message(number, body)

    def payload(self, piece: Range | Deferred, data: DataFile | None, rope: Rope) -> None:
        """Append the fields of a TensorProto that hold or name its elements."""
        size = piece.end - piece.begin if isinstance(piece, Range) else piece.size
        if data is not None and size > INLINE:
            rope.add(data.place(piece))
            return
        rope.add(prefix(_RAW, size))
        if isinstance(piece, Range):
            rope.copy(piece.source, piece.begin, piece.end)
        else:
            rope.add(piece)

    def restored(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node that may be a copy from the skeleton, with the payloads that its tensors had there."""
        if MARK.encode() not in node.SerializeToString():
            return node
        whole = onnx.NodeProto()
        whole.CopyFrom(node)
        for _, tensor in tensors.tensors_of(whole):
            if self._document.stored(tensor):
                array = self._document.array(tensor)
                del tensor.external_data[:]
                tensor.ClearField("data_location")
                tensor.raw_data = bytes(pack(tensor.data_type, array))
        return whole

    def _tensor(self, field: Field, rope: Rope, spill: bool) -> None:
        number, _, tag, at, stop = field
        buffer = self._source.buffer
        kept = Rope()
        raw = None
        entries = Rope()
        for part in fields(buffer, at, stop):
            if part[0] == _RAW and part[1] == LENGTH:
                raw = Range(self._source, part[3], part[4])
            if part[0] not in _GONE:
                kept.copy(self._source, part[2], part[4])
            elif part[0] not in PAYLOADS:
                entries.copy(self._source, part[2], part[4])
        tensor = onnx.TensorProto.FromString(kept.to_bytes() + entries.to_bytes())
        piece: Range | Deferred
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            size = stored_size(tensor.data_type, tensor.dims)
            label = tensors.label_of(tensor)
            piece = Range(*self._document.files.find(label, tensors.entries(tensor), size))
        elif not spill or tensor.data_type == onnx.TensorProto.STRING:
            rope.copy(self._source, tag, stop)
            return
        elif raw is not None:
            piece = raw
        else:
            size = stored_size(tensor.data_type, tensor.dims)
            if size is None or size <= INLINE:
                rope.copy(self._source, tag, stop)
                return
            piece = Deferred(size, lambda: self._typed(at, stop))
        self.payload(piece, self._data, kept)
        rope.message(number, kept)

    def _typed(self, begin: int, end: int) -> memoryview:
        """The elements in `float_data` and its like, as `raw_data` would hold them."""
        tensor = onnx.TensorProto.FromString(self._source.buffer[begin:end])
        tensors.check(tensors.label_of(tensor), tensor)
        return pack(tensor.data_type, tensors.inline_array(tensor))
