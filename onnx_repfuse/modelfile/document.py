"""Document: a model as its weightless skeleton, and its weights wherever they lie.

with Document.open("model.onnx") as document: for tensor in document.model.graph.initializer: weight =
document.array(tensor) # read now, from the mapped file
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile import tensors
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.dtypes import numpy_dtype, stored_size, unpack
from onnx_repfuse.modelfile.external_data import ExternalFiles
from onnx_repfuse.modelfile.weightless import INLINE_BYTES, MARK, Payload, mark, mark_of, strip

__all__ = ["INLINE_BYTES", "Document", "ScopeKey"]

ScopeKey = tuple[str | int, ...]


class Document:
    """A model that was read, and is not changed any more.

    Attributes:
        model: everything but the payloads of more than `INLINE_BYTES` bytes. Belongs to the document: read it only.
        path: the model's file; None for a model from memory.
        nbytes: size of the file and of its external data.
        base_dir: the folder in which external data is looked up.
        source: the bytes of the model.
        payloads: where the elements are that a tensor of `model` is marked with the index of.
        files: the files of external data.
    """

    def __init__(self, source: Source, path: Path | None, base_dir: Path | None) -> None:
        """Use `open` or `from_model`."""
        self.source = source
        self.path = path
        self.base_dir = base_dir
        self.files = ExternalFiles(base_dir, path)
        rope, self.payloads = strip(source)
        try:
            self.model = onnx.ModelProto.FromString(rope.to_bytes())
        except (DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"the file is not an ONNX model, or it is damaged: {_line(error)}") from error
        if not self.model.HasField("graph"):
            raise InputError("the file is not an ONNX model: it has no graph")
        self._settle()
        self.nbytes = source.size + sum({id(file): file.size for file in self.files.files.values()}.values())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Document:
        """Read the skeleton of a file; the weights stay where they are."""
        where = Path(path)
        source = Source("the model", path=where)
        if source.size == 0:
            raise InputError(f"the model {str(where)!r} is empty")
        try:
            return cls(source, where, where.parent)
        except BaseException:
            source.close()
            raise

    @classmethod
    def from_model(cls, model: onnx.ModelProto, base_dir: str | os.PathLike[str] | None = None) -> Document:
        """A document of a model in memory, as it is now: later changes of `model` do not reach it."""
        try:
            data = model.SerializeToString(deterministic=True)
        except (EncodeError, ValueError) as error:
            raise InputError(f"the model cannot be serialized (2 GB at most): {_line(error)}") from error
        return cls(Source("the model", data=data), None, None if base_dir is None else Path(base_dir))

    def array(self, tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
        """The elements of a tensor of the skeleton; a read-only view of the file where its dtype allows."""
        payload = self.payload(tensor)
        if payload is None:
            return tensors.inline_array(tensor)
        if payload.source is not self.source:
            self.files.touch(payload.source)
        if not payload.is_raw:
            whole = onnx.TensorProto.FromString(payload.source.buffer[payload.begin : payload.end])
            tensors.check(tensors.label_of(tensor), whole)
            return tensors.inline_array(whole)
        numpy_dtype(tensor.data_type)  # strings and unknown types end here
        octets = np.frombuffer(payload.source.buffer, np.uint8, payload.end - payload.begin, payload.begin)
        return unpack(tensor.data_type, tuple(tensor.dims), octets)

    def payload(self, tensor: onnx.TensorProto) -> Payload | None:
        """Where the elements of a tensor of the skeleton are; None: in the tensor itself."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        index = mark_of(tensor)
        if index is None or index >= len(self.payloads):
            raise InputError(f"{tensors.label_of(tensor)} is not a tensor of this model")
        return self.payloads[index]

    def stored(self, tensor: onnx.TensorProto) -> bool:
        """Whether the elements are outside of the skeleton."""
        return self.payload(tensor) is not None

    @property
    def external(self) -> bool:
        """Whether any tensor of the input is stored in another file."""
        return bool(self.files.files)

    def release(self) -> None:
        """Give the memory of the parts read so far back; arrays stay valid and are read again when used."""
        self.source.release()
        for file in self.files.files.values():
            file.release()

    def close(self) -> None:
        """Close the files; arrays that look into them stay valid."""
        self.source.close()
        self.files.close()

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _settle(self) -> None:
        """Check the claim of every tensor, and enter the external ones of the input in the table."""
        met: set[int] = set()
        stripped = len(self.payloads)
        for label, tensor in tensors.all_tensors(self.model):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                tensors.check(label, tensor)
                continue
            tensors.elements(label, tensor)
            size = stored_size(tensor.data_type, tensor.dims)
            entries = tensors.entries(tensor)
            if MARK in entries:
                index = mark_of(tensor)
                if index is None or index in met or index >= stripped:
                    raise InputError(f"{label}: its external data has the entry {MARK!r}")
                met.add(index)
                payload = self.payloads[index]
            else:
                payload = Payload(*self.files.find(label, entries, size))
                mark(tensor, len(self.payloads))
                self.payloads.append(payload)
            held = payload.end - payload.begin
            if payload.is_raw or (size is not None and size > 64 * held):
                tensors.expect(label, tensor, held, size)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
