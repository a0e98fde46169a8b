"""Saving: a document and its edits as a stream into new files.

    save(document, {(): Edit(removed_nodes={3}, rewired={4: {"bn_out": "conv_out"}})}, "model.fused.onnx")

Weights go inline, as long as the input had no external data and the result is not too large for one protobuf message;
otherwise to one file `<output name>.data`. Without edits the output is the input, byte for byte, and its external files
are copied along.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from onnx_repfuse.errors import OutputError, RepfuseError, quoted
from onnx_repfuse.modelfile.atomic_write import Staging
from onnx_repfuse.modelfile.byte_rope import Rope
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, ScopeKey
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.serialize import serialize

__all__ = ["publish", "save"]

PROTOBUF_LIMIT = (1 << 31) - 1  # bytes of one message
INLINE_LIMIT = 1_900_000_000  # bytes; runtimes add to the message that they read
Edits = Mapping[ScopeKey, Edit]


def save(
    document: Document, edits: Edits, path: str | os.PathLike[str], *, external: bool | None = None
) -> int:
    """Write the edited model.

    Args:
        document: the input.
        edits: scope -> what changes in it.
        path: the output; an existing model is replaced.
        external: True puts weights in a data file, False puts everything in the model, None does as the input.

    Returns:
        The number of bytes written, external data included.

    Raises:
        OutputError: it cannot be written; nothing was, and what stood there still does.
    """
    target, edits = Path(path), _without_empty(edits)
    _check_target(document, target)
    with Staging(target) as staging:
        if not edits and _has_asked_layout(document, external):
            size = _copy(document, target, staging)
            if size is not None:
                return size
        if external is False or not (external or document.has_external_data):
            rope = serialize(document, edits)
            if rope.size <= INLINE_LIMIT:
                return _save_inline(rope, target, staging, document)
            if external is False:
                raise OutputError(
                    f"cannot write {quoted(target)}: {rope.size} bytes are too many for one file"
                )
        return _save_external(document, edits, target, staging, spill=_spills(document, external))


def publish(
    document: Document,
    edits: Edits,
    staged: Path,
    path: str | os.PathLike[str],
    *,
    external: bool | None = None,
) -> int:
    """Give what `save` wrote elsewhere on the same file system, with these arguments, its place: as `save` does it.

    Weights are not computed again. Only a model whose data file gets another name is written anew.
    """
    target, edits = Path(path), _without_empty(edits)
    written_data = staged.with_name(f"{staged.name}.data")
    _check_target(document, target)
    with Staging(target) as staging:
        if written_data.exists():
            spill = _spills(document, external)
            return _save_external(document, edits, target, staging, spill=spill, written=written_data)
        size = staged.stat().st_size
        _publish_alone(staging.take_over(staged, target), target, staging, document)
        return size


def _without_empty(edits: Edits) -> Edits:
    return {scope: edit for scope, edit in edits.items() if edit}


def _check_target(document: Document, target: Path) -> None:
    """Raise OutputError where the output would overwrite weights that are still to be read."""
    for file in document.data_files.by_location.values():
        if _is_same_path(file.file_path, target):
            raise OutputError(f"cannot write {quoted(target)}: the input keeps its weights there")


def _has_asked_layout(document: Document, external: bool | None) -> bool:
    """Whether the input's weights are where the output's should be, so that it can be copied."""
    return external is None or (external is False and not document.has_external_data)


def _spills(document: Document, external: bool | None) -> bool:
    """Whether initializers that are inline in the input go to the data file, too.

    They do when the user asks for a data file, and when the result is too large for one message.
    """
    return external is True or not document.has_external_data


def _copy(document: Document, target: Path, staging: Staging) -> int | None:
    """Write the input as it is; None if its data files cannot be put beside it."""
    if document.path is not None and target.exists() and os.path.samefile(document.path, target):
        # The output is the input: there is nothing to write.
        return document.source.size
    copies = _data_files_to_copy(document, target.parent)
    if copies is None:
        return None
    for final in copies:
        staging.make_folder(final.parent)  # external data may lie in a folder of its own
    temporary = {final: staging.write(source.write, final) for final, source in copies.items()}
    model = staging.write(document.source.write, target)
    with staging.lock():
        for final, path in temporary.items():
            staging.publish(path, final)
        old = _own_data_files(target)
        staging.publish(model, target)
        _remove_stale(old - copies.keys(), target, document)
    return document.source.size + sum(source.size for source in copies.values())


def _data_files_to_copy(document: Document, folder: Path) -> dict[Path, Source] | None:
    """Path in the output's folder -> data file of the input; None if a file of the same name holds other bytes."""
    if document.path is None or _is_same_path(document.path.parent, folder):
        return {}
    copies = {}
    for location, source in sorted(document.data_files.by_location.items()):
        final = Path(os.path.normpath(folder / location))
        if not final.exists():
            copies[final] = source
        elif not _has_same_bytes(source.file_path, final):
            return None
    return copies


def _save_inline(rope: Rope, target: Path, staging: Staging, document: Document) -> int:
    _publish_alone(staging.write(rope.write, target), target, staging, document)
    return rope.size


def _publish_alone(model: Path, target: Path, staging: Staging, document: Document) -> None:
    """Publish a model without a data file."""
    with staging.lock():
        old = _own_data_files(target)
        staging.publish(model, target)
        _remove_stale(old, target, document)


def _save_external(
    document: Document,
    edits: Edits,
    target: Path,
    staging: Staging,
    *,
    spill: bool,
    written: Path | None = None,
) -> int:
    """Write a model with a data file beside it; `written`: that file, if it was written before."""
    names = _data_names(target)
    data = DataFile(next(names))
    # This gives every tensor its place in `data`, and computes none.
    rope = serialize(document, edits, data, spill=spill)
    if (
        rope.size > PROTOBUF_LIMIT
    ):  # text, sparse tensors or constants of more than 2 GB: they cannot go outside
        raise OutputError(f"cannot write {quoted(target)}: {rope.size} bytes are too many for one model file")
    if data.size == 0:
        return _save_inline(rope, target, staging, document)
    final = target.parent / data.name
    temporary = staging.write(data.write, final) if written is None else staging.take_over(written, final)
    with staging.lock():
        while final.exists() and not _has_same_bytes(temporary, final):
            # The name is in use: the weights stay where they were written, the model must say another name.
            data = DataFile(next(names))
            rope = serialize(document, edits, data, spill=spill)
            final = target.parent / data.name
        model = staging.write(rope.write, target)
        old = _own_data_files(target)
        # The weights first: a model that is there finds them, whenever the run is killed.
        staging.publish(temporary, final)
        staging.publish(model, target)
        _remove_stale(old - {final}, target, document)
    return rope.size + data.size


def _is_same_path(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _has_same_bytes(one: Path, other: Path) -> bool:
    return os.path.samefile(one, other) or (other.is_file() and filecmp.cmp(one, other, shallow=False))


def _data_names(target: Path) -> Iterator[str]:
    """Names for the data file.

    One in use by the model that is replaced is passed over: between the two steps of publishing, that model must not
    find the new data under the old name.
    """
    yield f"{target.name}.data"
    for number in itertools.count(1):
        yield f"{target.name}.{number}.data"


def _own_data_files(target: Path) -> set[Path]:
    """The data files of the model that is about to be replaced, as far as `_data_names` may have named them."""
    ours = re.compile(re.escape(target.name) + r"(\.[0-9]+)?\.data")
    if not any(ours.fullmatch(name) for name in os.listdir(target.parent)):
        return set()
    with contextlib.suppress(RepfuseError), Document.open(target) as old:
        return {target.parent / name for name in old.data_files.by_location if ours.fullmatch(name)}
    return set()


def _remove_stale(old: set[Path], target: Path, document: Document) -> None:
    """Remove the data files that only the replaced model used."""
    is_input_replaced = document.path is not None and _is_same_path(document.path, target)
    in_use = {os.path.realpath(file.file_path) for file in document.data_files.by_location.values()}
    for path in old:
        is_free = is_input_replaced or os.path.realpath(path) not in in_use
        if is_free and not _is_used_by_another(path, target):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_used_by_another(data: Path, target: Path) -> bool:
    """Whether another model of the folder uses a data file; a copy of the old model, for one."""
    for other in data.parent.glob("*.onnx"):
        if other != target:
            # A file that is no model uses nothing.
            with contextlib.suppress(RepfuseError), Document.open(other) as document:
                if data.name in document.data_files.by_location:
                    return True
    return False
