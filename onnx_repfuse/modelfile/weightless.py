"""The weightless skeleton: a ModelProto without the elements of its large tensors, and how it is made and filled.

In the skeleton, a tensor whose elements were left out carries a mark,

    data_location: EXTERNAL    external_data { key: "repfuse" value: "<index>" }

and entry `<index>` of a table says where its elements are. `strip` makes the skeleton of a file. `replace_tensors` goes
the other way, too: it puts elements into the marked tensors of a skeleton that was edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile.byte_rope import Rope
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.protobuf_wire import (
    ELEMENTS,
    LENGTH,
    MAX_DEPTH,
    NUMBER,
    SUBMESSAGES,
    fields,
)

__all__ = ["INLINE_BYTES", "MARK", "Payload", "mark", "mark_of", "replace_tensors", "strip"]

INLINE_BYTES = 1024  # elements of at most so many bytes stay in the skeleton
MARK = "repfuse"

_RAW = NUMBER["TensorProto.raw_data"]


@dataclass(frozen=True)
class Payload:
    """Where the elements of a marked tensor are.

    Attributes:
        source, begin, end: the bytes of its `raw_data`, or the range in a file of external data. If the elements are
            in a typed field as `float_data`, the whole TensorProto.
        message: begin and end of the whole TensorProto in the model's bytes; None for external data.
        is_renamed: whether the model's bytes say another name than the skeleton.
    """

    source: Source
    begin: int
    end: int
    message: tuple[int, int] | None = None
    is_renamed: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether the range holds the bare elements, not a TensorProto."""
        return self.message != (self.begin, self.end)


def mark(tensor: onnx.TensorProto, index: int) -> None:
    """Let a tensor say that its elements are where entry `index` of the table says."""
    del tensor.external_data[:]
    tensor.external_data.add(key=MARK, value=str(index))
    tensor.data_location = onnx.TensorProto.EXTERNAL


def mark_of(tensor: onnx.TensorProto) -> int | None:
    """The index that a tensor of a skeleton is marked with; None: it has its elements itself."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    for entry in tensor.external_data:
        if entry.key == MARK and entry.value.isdecimal():
            return int(entry.value)
    return None


def strip(source: Source) -> tuple[Rope, list[Payload]]:
    """The skeleton of the ModelProto in `source`, and where the elements are that were left out.

    Raises:
        InputError, DecodeError: the file is damaged.
    """
    payloads: list[Payload] = []

    def may_be_large(message: str, begin: int, end: int) -> bool:
        # Shape inference reads the indices of sparse tensors, and they are small by nature: they stay.
        return end - begin > INLINE_BYTES and message != "SparseTensorProto"

    def stripped(begin: int, end: int) -> Rope | None:
        payload, tensor = _without_elements(source, begin, end)
        if payload is None:
            return None
        mark(tensor, len(payloads))
        payloads.append(payload)
        body = Rope()
        body.add(tensor.SerializeToString(deterministic=True))
        return body

    return replace_tensors(source, may_be_large, stripped), payloads


def replace_tensors(
    source: Source,
    look_into: Callable[[str, int, int], bool],
    replace: Callable[[int, int], Rope | None],
) -> Rope:
    """The ModelProto in `source` with other bodies for some of its tensors, wherever in it they are.

    Args:
        source: the bytes of the model.
        look_into: (message type, begin, end) -> whether a submessage may hold a tensor to replace.
        replace: (begin, end) of a TensorProto -> its new body, None if it stays.

    Raises:
        InputError: the bytes are damaged, or nested too deeply.
    """
    rope = Rope()
    rope.copy(source, 0, source.size)
    return _replace(source, "ModelProto", (0, source.size), look_into, replace, 0) or rope


def _replace(
    source: Source,
    message: str,
    place: tuple[int, int],
    look_into: Callable[[str, int, int], bool],
    replace: Callable[[int, int], Rope | None],
    depth: int,
) -> Rope | None:
    """The new body of the message at `place`; None if nothing in it changes."""
    if depth > MAX_DEPTH:
        raise InputError(f"the model's messages are nested deeper than {MAX_DEPTH}")
    submessages = SUBMESSAGES[message]
    seen = set()
    rope = Rope()
    copied, end = place  # everything before `copied` is in the rope
    for number, wire, tag, at, stop in fields(source.buffer, *place):
        inner = submessages.get(number) if wire == LENGTH else None
        if inner is None:
            continue
        if not inner.repeated:
            if number in seen:  # protobuf would merge the two; no exporter writes this
                raise InputError(f"the model is damaged: a {inner.message} is stored in two pieces")
            seen.add(number)
        if not look_into(inner.message, at, stop):
            continue  # stays in the range that is copied next
        if inner.message == "TensorProto":
            body = replace(at, stop)
        else:
            body = _replace(source, inner.message, (at, stop), look_into, replace, depth + 1)
        if body is not None:
            rope.copy(source, copied, tag)
            rope.message(number, body)
            copied = stop
    if copied == place[0]:
        return None
    rope.copy(source, copied, end)
    return rope


def _without_elements(source: Source, begin: int, end: int) -> tuple[Payload | None, onnx.TensorProto]:
    """Where the elements of the TensorProto at `begin:end` are, and the tensor without them; None if they are few."""
    size = 0
    elements = (begin, end)
    rest = Rope()
    for number, wire, tag, at, stop in fields(source.buffer, begin, end):
        if number not in ELEMENTS:
            rest.copy(source, tag, stop)
            continue
        size += stop - at
        if number == _RAW and wire == LENGTH:
            elements = at, stop  # of several, protobuf takes the last
    if size <= INLINE_BYTES:
        return None, onnx.TensorProto()
    tensor = onnx.TensorProto.FromString(rest.to_bytes())
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError("the model is damaged: a tensor holds its data both in the file and outside")
    return Payload(source, *elements, message=(begin, end)), tensor
