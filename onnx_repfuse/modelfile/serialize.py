"""From a document and its edits to a rope: the edited skeleton, with every weight put in where it belongs.

The skeleton is edited and serialized by protobuf. In its bytes each marked tensor is then replaced: by the TensorProto
of the input as it is, by a range of a file of external data, or by elements that are computed when they are written.
No weight is loaded for that, and one new weight at a time is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from google.protobuf.message import EncodeError

from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile.byte_rope import Deferred, Piece, Range, Rope, size_of
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.dtypes import pack, stored_size
from onnx_repfuse.modelfile.edit import Edit, NewTensor, ScopeKey, apply_edits
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.protobuf_wire import NUMBER, prefix
from onnx_repfuse.modelfile.weightless import INLINE_BYTES, MARK, mark, mark_of, replace_tensors

__all__ = ["serialize"]

RELEASE_BYTES = 32 << 20  # of new weights, after which those they were computed from are forgotten
_RAW = NUMBER["TensorProto.raw_data"]


def serialize(
    document: Document,
    edits: Mapping[ScopeKey, Edit],
    data: DataFile | None = None,
    *,
    spill: bool = False,
) -> Rope:
    """The edited model.

    Args:
        document: the input.
        edits: scope -> what changes in it.
        data: takes the weights that are external in the input, and the new initializers, if they are larger than
            `INLINE_BYTES`; None: every weight goes into the model.
        spill: whether `data` takes the main graph's other initializers, too.

    Raises:
        OutputError: an edit names what is not there, or the result is nested too deeply.
    """
    weights = _Weights(document, data)
    model = onnx.ModelProto()
    model.CopyFrom(document.model)  # fields that this ONNX does not know included
    apply_edits(model, edits, weights.placeholder)
    if spill:
        weights.spill(model.graph.initializer)
    try:
        skeleton: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise OutputError(f"the edited model cannot be serialized: {error}") from error

    def may_be_marked(message: str, begin: int, end: int) -> bool:
        # Other texts may contain the word, too; `fill` then finds no mark.
        return skeleton.find(MARK.encode(), begin, end) >= 0

    def filled(begin: int, end: int) -> Rope | None:
        return weights.fill(onnx.TensorProto.FromString(skeleton[begin:end]))

    return replace_tensors(Source("the edited model", data=skeleton), may_be_marked, filled)


class _Weights:
    """The elements of the marked tensors: those of the document, and new ones."""

    def __init__(self, document: Document, data: DataFile | None) -> None:
        self._document = document
        self._data = data
        self._new: list[Deferred] = []
        # Indices of tensors that go to the data file if they are large; at first, those that are external now.
        self._movable = {index for index, known in enumerate(document.payloads) if known.message is None}
        self._unreleased = 0

    def placeholder(self, new: NewTensor, is_initializer: bool) -> onnx.TensorProto:
        """A marked TensorProto for a new tensor. Runtimes look for external data in initializers only."""
        index = len(self._document.payloads) + len(self._new)
        self._new.append(Deferred(new.nbytes, lambda: self._compute(new)))
        if is_initializer:
            self._movable.add(index)
        tensor = onnx.TensorProto(dims=new.shape, data_type=new.data_type, name=new.name)
        mark(tensor, index)
        return tensor

    def spill(self, initializers: Iterable[onnx.TensorProto]) -> None:
        """Let these go to the data file, too."""
        self._movable.update(index for tensor in initializers if (index := mark_of(tensor)) is not None)

    def fill(self, tensor: onnx.TensorProto) -> Rope | None:
        """The body of a tensor of the skeleton with its elements, or with the place of them; None if it has no mark."""
        index = mark_of(tensor)
        if index is None:
            return None
        piece, original = self._elements(tensor, index), self._original(index)
        body = Rope()
        if self._data is not None and index in self._movable and size_of(piece) > INLINE_BYTES:
            body.add(self._data.place(piece, tensor).SerializeToString(deterministic=True))
        elif original is not None:
            body.add(original)  # byte for byte, the order of its fields included
        else:
            # New, or external in the input: the elements become `raw_data`.
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            body.add(tensor.SerializeToString(deterministic=True))
            body.add(prefix(_RAW, size_of(piece)))
            body.add(piece)
        return body

    def _elements(self, tensor: onnx.TensorProto, index: int) -> Piece:
        """The elements as `raw_data` has them."""
        payloads = self._document.payloads
        if index >= len(payloads):
            return self._new[index - len(payloads)]
        payload = payloads[index]
        if payload.is_raw:
            return Range(payload.source, payload.begin, payload.end)
        size = stored_size(tensor.data_type, tensor.dims) or 0  # 0: of a type with no size, never moved
        marked = onnx.TensorProto()
        marked.CopyFrom(tensor)
        return Deferred(size, lambda: pack(tensor.data_type, self._document.array(marked)))

    def _original(self, index: int) -> Range | None:
        """The whole TensorProto in the bytes of the input."""
        payloads = self._document.payloads
        payload = payloads[index] if index < len(payloads) else None
        message = None if payload is None or payload.is_renamed else payload.message
        return None if message is None else Range(self._document.source, *message)

    def _compute(self, new: NewTensor) -> memoryview:
        """The bytes of a new tensor; what was read of the input to compute it is forgotten now and then."""
        self._unreleased += new.nbytes
        if self._unreleased > RELEASE_BYTES:
            self._unreleased = 0
            self._document.release()
        return new.data()
