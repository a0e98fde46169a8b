"""Document: a model as its weightless skeleton, and its weights wherever they lie.

with Document.open("model.onnx") as document:
    for tensor in document.model.graph.initializer:
        weight = document.array(tensor)  # read now, from the file
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnx_repfuse.errors import InputError, UnsafePathError
from onnx_repfuse.modelfile import tensors
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.dtypes import numpy_dtype, stored_size, unpack
from onnx_repfuse.modelfile.external_data import ExternalFiles
from onnx_repfuse.modelfile.node_order import sort_nodes
from onnx_repfuse.modelfile.weightless import INLINE_BYTES, MARK, Payload, mark, mark_of, strip

__all__ = ["INLINE_BYTES", "Document"]

_T = TypeVar("_T")

# A varint in `int64_data` takes one byte where the element takes eight, and nothing grows more. A shape that claims far
# more than that is refused before anything is allocated.
MAX_TYPED_GROWTH = 64
REMEMBERED_BYTES = 64 << 20  # of elements that were read; at least of two tensors


class Document:
    """A model that was read, and is not changed any more.

    Attributes:
        model: the skeleton: everything but the elements of tensors of more than `INLINE_BYTES` bytes, and of external
            tensors, which are marked instead; nodes in topological order. Belongs to the document: read it only.
        payloads: where the elements of the marked tensors are.
        path: the model's file; None for a model from memory.
        nbytes: size of the file and of its external data.
        source: the bytes of the model.
        data_files: the files of external data.
        unconverted: itself; of one that `opset.at_opset` or `branches.inline` made, the document that the files hold.
        original: itself; of one that `opset.at_opset` or `peers.run_peer` made, the document it was made from, which
            the result is compared with.
        given: the document of the user's files: the original, unless its inputs were given other shapes than there.
        converted: opset -> what `at_opset` made.
    """

    def __init__(self, source: Source, path: Path | None) -> None:
        """Use `open` or `from_model`."""
        self.source = source
        self.path = path
        self.data_files = ExternalFiles(path)
        self.unconverted: Document = self
        self.original: Document = self
        self.given: Document = self
        self.converted: dict[int, Document] = {}
        self._remembered: dict[int, bytes | memoryview] = {}
        try:
            rope, self.payloads = strip(source)
            self.model = onnx.ModelProto.FromString(rope.to_bytes())
        except (DecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"the file is not an ONNX model, or it is damaged: {_one_line(error)}"
            ) from error
        if not self.model.HasField("graph"):
            raise InputError("the file is not an ONNX model: it has no graph")
        self._check_tensors()
        sort_nodes(self.model)
        self.nbytes = source.size + sum(file.size for file in self.data_files.by_location.values())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Document:
        """Read the skeleton of a file; the weights stay where they are.

        Raises:
            InputError: it is not a model, or a tensor in it claims what cannot be true.
            UnsafePathError: external data lies outside of the model's folder.
        """
        where = Path(path)
        source = Source("the model", path=where, in_memory=True)
        if source.size == 0:
            raise InputError(f"the model {str(where)!r} is empty")
        try:
            return cls(source, where)
        except BaseException:  # an interrupt, too, must not leave the file open
            source.close()
            raise

    @classmethod
    def from_model(cls, model: onnx.ModelProto) -> Document:
        """A document of a model in memory, as it is now: later changes of `model` do not reach it.

        Raises:
            InputError: it is not valid, too large for protobuf, or has external data, whose folder is not known.
        """
        try:
            # As a file would be: one way to read, and nobody can change the bytes.
            data = model.SerializeToString(deterministic=True)
        except (EncodeError, ValueError) as error:
            raise InputError(f"the model cannot be serialized (2 GB at most): {_one_line(error)}") from error
        return cls.from_bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Document:
        """A document of a serialized model without external data. Raises InputError."""
        return cls(Source("the model", data=data), None)

    def array(self, tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
        """The elements of a tensor of the skeleton, in its shape and the numpy dtype of its type.

        Where the stored bytes are what numpy has in memory, this is a read-only view of what was read.

        Raises:
            InputError: the tensor is of another model, or of a type that numpy does not have; its file cannot be read,
                or changed since it was opened.
        """
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return tensors.inline_array(tensor)
        index = mark_of(tensor)
        if index is None or index >= len(self.payloads):
            raise InputError(f"{tensors.label_of(tensor)} is not a tensor of this model")
        payload = self.payloads[index]
        octets = self._elements(index, payload)
        if not payload.is_raw:
            whole = onnx.TensorProto.FromString(bytes(octets))
            tensors.check_elements(tensors.label_of(tensor), whole)
            return tensors.inline_array(whole)
        numpy_dtype(tensor.data_type)  # raises for strings and unknown types
        return unpack(tensor.data_type, tuple(tensor.dims), np.frombuffer(octets, np.uint8))

    def _elements(self, index: int, payload: Payload) -> bytes | memoryview:
        """What is stored for the elements of a tensor; that of the last few tensors is remembered.

        Kernels are computed some rows at a time, from one or two weights.
        """
        if index in self._remembered:
            self._remembered[index] = self._remembered.pop(index)  # now the last
            return self._remembered[index]
        if payload.source is not self.source:
            self.data_files.touch(payload.source)
        octets = self._remembered[index] = payload.source.read(payload.begin, payload.end)
        held = sum(map(len, self._remembered.values()))
        while held > REMEMBERED_BYTES and len(self._remembered) > 2:
            held -= len(self._remembered.pop(next(iter(self._remembered))))
        return octets

    @property
    def is_converted(self) -> bool:
        """Whether this is not the model that the user gave, but what became of it before planning."""
        return self.given is not self

    @property
    def has_external_data(self) -> bool:
        """Whether any tensor of the input is stored in another file."""
        return bool(self.data_files.by_location)

    def release(self) -> None:
        """Forget the weights read so far; arrays stay valid."""
        self._remembered.clear()

    def check_unchanged(self) -> None:
        """Raise InputError if one of the files was written to, or replaced, since the document was opened."""
        for document in {id(made): made for made in (self, self.original, self.given)}.values():
            for source in (document.source, *document.data_files.by_location.values()):
                source.check_unchanged()

    def close(self) -> None:
        """Close the files; arrays stay valid."""
        self.release()
        self.source.close()
        self.data_files.close()

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_tensors(self) -> None:
        """Compare what every tensor claims with what is there, and mark those that are external in the input.

        An initializer that no node reads may hold what it likes: runtimes do not look at it.
        """
        seen: set[int] = set()
        stripped = len(self.payloads)
        for label, tensor in tensors.all_tensors(self.model):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                self._unless_unread(partial(tensors.check_elements, label, tensor), label, tensor)
                continue
            tensors.count_elements(label, tensor)
            size = stored_size(tensor.data_type, tensor.dims)
            entries = tensors.external_entries(tensor)
            if MARK in entries:
                # A file may bring a mark of its own, to be given the elements of another tensor.
                index = mark_of(tensor)
                if index is None or index in seen or index >= stripped:
                    raise InputError(f"{label}: its external data has the entry {MARK!r}")
                seen.add(index)
                payload = self.payloads[index]
            else:
                found = self._unless_unread(
                    partial(self.data_files.find, label, entries, size), label, tensor
                )
                if found is None:  # passed on as it is
                    continue
                payload = Payload(*found)
                mark(tensor, len(self.payloads))
                self.payloads.append(payload)
            # The number of typed elements is known only when they are decoded: `array` checks it.
            held = payload.end - payload.begin
            if payload.is_raw or (size is not None and size > MAX_TYPED_GROWTH * held):
                self._unless_unread(partial(tensors.check_size, label, tensor, held, size), label, tensor)

    def _unless_unread(self, check: Callable[[], _T], label: str, tensor: onnx.TensorProto) -> _T | None:
        """The result of a check; None if it fails for a tensor that nobody reads. Unsafe paths are always refused."""
        try:
            return check()
        except UnsafePathError:
            raise
        except InputError:
            is_initializer = label == tensors.label_of(tensor)
            if not is_initializer or tensor.name in self._read_names:
                raise
            return None

    @cached_property
    def _read_names(self) -> set[str]:
        return tensors.read_names(self.model)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
