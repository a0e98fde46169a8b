"""Saving: a document and its edits as a stream into new files.

    save(document, {(): Edit(removed_nodes={3}, rewired={4: {"bn_out": "conv_out"}})}, "model.fused.onnx")

Weights go inline, as long as the input had no external data and the result is not too large for one
protobuf message; otherwise to one file `<output name>.data`. Without edits the output is the input, byte
for byte, and its external files are copied along.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from onnx_repfuse.errors import OutputError, RepfuseError
from onnx_repfuse.modelfile.atomic_write import Staging
from onnx_repfuse.modelfile.byte_rope import Rope
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document, ScopeKey
from onnx_repfuse.modelfile.edit import Edit, NewTensor
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.protobuf_wire import shown
from onnx_repfuse.modelfile.serialize import serialize

__all__ = ["Edit", "NewTensor", "ScopeKey", "publish", "save"]

PROTOBUF_LIMIT = (1 << 31) - 1
INLINE_LIMIT = 1_900_000_000  # protobuf ends at 2**31 - 1; runtimes add to what they read
Edits = Mapping[ScopeKey, Edit]


def save(
    document: Document, edits: Edits, path: str | os.PathLike[str], *, external: bool | None = None
) -> int:
    """Write the edited model; the number of bytes written, external data included.

    `external`: True puts weights in a data file, False puts everything in the model, None does as the input.
    """
    target = Path(path)
    edits = {scope: edit for scope, edit in edits.items() if edit}
    _guard(document, target)
    with Staging(target) as staging:
        is_as_asked = external is None or (external is False and not document.external)
        if not edits and is_as_asked:
            size = _copy(document, target, staging)
            if size is not None:
                return size
        if external is not True and not (external is None and document.external):
            rope = serialize(document, edits)
            if rope.size <= INLINE_LIMIT:
                return _save_inline(rope, target, staging, document)
            if external is False:
                raise OutputError(
                    f"cannot write {shown(target)}: {rope.size} bytes are too many for one file"
                )
        return _save_external(
            document, edits, target, staging, spill=external is True or not document.external
        )


def publish(
    document: Document,
    edits: Edits,
    staged: Path,
    path: str | os.PathLike[str],
    *,
    external: bool | None = None,
) -> int:
    """Give what `save` wrote elsewhere on the file system, with these arguments, its place: as `save` does it.

    Weights are not computed again. Only a model whose data file gets another name is written anew.
    """
    target, edits = Path(path), {scope: edit for scope, edit in edits.items() if edit}
    payload = staged.with_name(f"{staged.name}.data")
    _guard(document, target)
    with Staging(target) as staging:
        if payload.exists():
            spill = external is True or not document.external
            return _save_external(document, edits, target, staging, spill=spill, payload=payload)
        size = staged.stat().st_size
        _publish_alone(staging.adopt(staged, target), target, staging, document)
        return size


def _guard(document: Document, target: Path) -> None:
    for file in document.files.files.values():
        if file.path is not None and os.path.realpath(file.path) == os.path.realpath(target):
            raise OutputError(f"cannot write {shown(target)}: the input keeps its weights there")


def _copy(document: Document, target: Path, staging: Staging) -> int | None:
    """The input as it is; None if its data files cannot be copied without harm to others of the same name."""
    written = document.source.size
    if document.path is not None and target.exists() and os.path.samefile(document.path, target):
        return written
    planned: list[tuple[Path, Path]] = []
    if document.external and not _same_folder(document.base_dir, target.parent):
        for location, file in sorted(document.files.files.items()):
            final = Path(os.path.normpath(target.parent / location))
            if file.path is None or any(final == other for _, other in planned):
                continue
            if final.exists() and not os.path.samefile(file.path, final):
                if not final.is_file() or not filecmp.cmp(file.path, final, shallow=False):
                    return None
            elif not final.exists():
                planned.append((file.path, final))
                written += file.size
    sources = {file.path: file for file in document.files.files.values()}
    finals = []
    for origin, final in planned:
        staging.folder(final.parent)
        source = sources[origin]
        finals.append((staging.write(_whole(source), final), final))
    model = staging.write(_whole(document.source), target)
    with staging.alone():
        for temporary, final in finals:
            staging.publish(temporary, final)
        old = _data_files(target)
        staging.publish(model, target)
        _remove_stale(old - {final for _, final in finals}, target, document)
    return written


def _whole(source: Source) -> Callable[[BinaryIO], None]:
    return lambda out: source.copy_to(out, 0, source.size)


def _save_inline(rope: Rope, target: Path, staging: Staging, document: Document) -> int:
    _publish_alone(staging.write(rope.write, target), target, staging, document)
    return rope.size


def _publish_alone(model: Path, target: Path, staging: Staging, document: Document) -> None:
    with staging.alone():
        old = _data_files(target)
        staging.publish(model, target)
        _remove_stale(old, target, document)


def _save_external(
    document: Document,
    edits: Edits,
    target: Path,
    staging: Staging,
    *,
    spill: bool,
    payload: Path | None = None,
) -> int:
    names = _data_names(target)
    data = DataFile(next(names))
    rope = serialize(document, edits, data, spill=spill)
    if rope.size > PROTOBUF_LIMIT:
        raise OutputError(f"cannot write {shown(target)}: {rope.size} bytes are too many for one model file")
    if data.size == 0:
        return _save_inline(rope, target, staging, document)
    beside = target.parent / data.name
    payload = staging.write(data.write, beside) if payload is None else staging.adopt(payload, beside)
    with staging.alone():
        while (target.parent / data.name).exists():
            if filecmp.cmp(payload, target.parent / data.name, shallow=False):
                break  # the same bytes, from an earlier run
            data = DataFile(next(names))
            rope = serialize(document, edits, data, spill=spill)
        model = staging.write(rope.write, target)
        old = _data_files(target)
        staging.publish(payload, target.parent / data.name)
        staging.publish(model, target)
        _remove_stale(old - {target.parent / data.name}, target, document)
    return rope.size + data.size


def _same_folder(one: Path | None, other: Path) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def _data_names(target: Path) -> Iterator[str]:
    """Names for the data file.

    One in use by the model that is replaced is passed over: between the two steps of publishing, that model
    must not find the new data under the old name.
    """
    yield f"{target.name}.data"
    for number in itertools.count(1):
        yield f"{target.name}.{number}.data"


def _data_files(target: Path) -> set[Path]:
    """The data files of the model that is about to be replaced, as far as their names are of our making."""
    ours = re.compile(re.escape(target.name) + r"(\.[0-9]+)?\.data")
    if not any(ours.fullmatch(name) for name in os.listdir(target.parent)):
        return set()
    with contextlib.suppress(RepfuseError), Document.open(target) as old:
        return {target.parent / name for name in old.files.files if ours.fullmatch(name)}
    return set()


def _remove_stale(old: set[Path], target: Path, document: Document) -> None:
    """Remove the data files that the replaced model had to itself."""
    replaced = document.path is not None and _same_folder(document.path, target)
    in_use = {os.path.realpath(file.path) for file in document.files.files.values() if file.path is not None}
    for path in old:
        if (replaced or os.path.realpath(path) not in in_use) and not _mentioned(path, target):
            with contextlib.suppress(OSError):
                path.unlink()


def _mentioned(data: Path, target: Path) -> bool:
    """Whether another model of the folder may use a data file; a copy of the old model, for one."""
    for other in data.parent.glob("*.onnx"):
        if other != target:
            with contextlib.suppress(RepfuseError):
                document = Document.open(other)
                document.close()
                if data.name in document.files.files:
                    return True
    return False
