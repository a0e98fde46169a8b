"""Saving: a document and its edits as a stream into new files.

    save(document, {(): Edit(removed_nodes={3}, rewired={4: {"bn_out": "conv_out"}})}, "model.fused.onnx")

Weights go inline, as long as the input had no external data and the result is not too large for one protobuf message;
otherwise to one file `<output name>.data`. Without edits the output is the input, byte for byte, and its external files
are copied along, unless a name that they need is taken.

Other runs may write to the same folder at the same time, or even the same output. Each publishes its data and its model
under the folder's lock, looks for free names only there, and replaces no data file, so that every model that was
reported as written has its own weights. Of one output, the last run to finish wins, whole.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnx_repfuse.errors import OutputError, RepfuseError, quoted
from onnx_repfuse.modelfile.atomic_write import Staging, Written
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import Edit, ScopeKey
from onnx_repfuse.modelfile.external_writer import DataFile
from onnx_repfuse.modelfile.serialize import serialize

__all__ = ["Saved", "is_data_name", "publish", "save"]

PROTOBUF_LIMIT = (1 << 31) - 1  # bytes of one message
INLINE_LIMIT = 1_900_000_000  # bytes; runtimes add to the message that they read
Edits = Mapping[ScopeKey, Edit]


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        nbytes: its size, external data included.
        is_copy: whether it is the input, byte for byte.
        model, data: the model and the data file that was written for it; `publish` can give them another place.
    """

    nbytes: int
    is_copy: bool = False
    model: Written | None = None
    data: Written | None = None


def save(
    document: Document, edits: Edits, path: str | os.PathLike[str], *, external: bool | None = None
) -> Saved:
    """Write the edited model.

    Args:
        document: the input.
        edits: scope -> what changes in it.
        path: the output; an existing model is replaced.
        external: True puts weights in a data file, False puts everything in the model, None does as the input.

    Raises:
        InputError: the input changed in the meantime; nothing was written.
        OutputError: it cannot be written; nothing was, and what stood there still does.
    """
    target, edits = Path(path), _without_empty(edits)
    _check_target(document, target)
    with Staging(target) as staging:
        if not edits and not document.is_converted and _has_asked_layout(document, external):
            saved = _copy(document, target, staging)
            if saved is not None:
                return saved
        if external is False or not (external or document.original.has_external_data):
            rope = serialize(document, edits)
            if rope.size <= INLINE_LIMIT:
                return _publish_alone(staging.write(rope.write, target), target, staging, document)
            if external is False:
                raise OutputError(
                    f"cannot write {quoted(target)}: {rope.size} bytes are too many for one file"
                )
        return _save_external(document, edits, target, staging, spill=_spills(document, external))


def publish(
    document: Document,
    edits: Edits,
    staged: Saved,
    path: str | os.PathLike[str],
    *,
    external: bool | None = None,
) -> Saved:
    """Give what `save` wrote elsewhere on the same file system, with these arguments, its place: as `save` does it.

    Weights are not computed again. Only a model whose data file gets another name is written anew.
    """
    target, edits = Path(path), _without_empty(edits)
    _check_target(document, target)
    with Staging(target) as staging:
        if staged.data is not None:
            spill = _spills(document, external)
            return _save_external(document, edits, target, staging, spill=spill, staged=staged)
        assert staged.model is not None
        return _publish_alone(staging.take_over(staged.model, target), target, staging, document)


def _without_empty(edits: Edits) -> Edits:
    return {scope: edit for scope, edit in edits.items() if edit}


def _check_target(document: Document, target: Path) -> None:
    """Raise OutputError where the output would overwrite the weights of the input, or of another model."""
    for file in document.given.data_files.by_location.values():
        if _is_same_path(file.file_path, target):
            raise OutputError(f"cannot write {quoted(target)}: the input keeps its weights there")
    if not target.is_file() or _data_locations(target) is not None:
        return  # a new file, or one model in the place of another
    user = _user_of(target, target)
    if user is not None:
        raise OutputError(f"cannot write {quoted(target)}: {quoted(user.name)} keeps its weights there")


def _has_asked_layout(document: Document, external: bool | None) -> bool:
    """Whether the input's weights are where the output's should be, so that it can be copied."""
    return external is None or (external is False and not document.has_external_data)


def _spills(document: Document, external: bool | None) -> bool:
    """Whether initializers that are inline in the input go to the data file, too.

    They do when the user asks for a data file, and when the result is too large for one message.
    """
    return external is True or not document.unconverted.has_external_data


def _copy(document: Document, target: Path, staging: Staging) -> Saved | None:
    """Write the input as it is; None if its data files cannot have their names beside it."""
    nbytes = document.nbytes
    if document.path is not None and _is_same_entry(document.path, target):
        document.check_unchanged()
        return Saved(nbytes, is_copy=True)  # the output is the input: there is nothing to write
    copies = _data_files_to_copy(document, target)
    if copies is None:
        return None
    data = {final: staging.write(source.write, final) for final, source in copies.items()}
    model = staging.write(document.source.write, target)
    with staging.lock():
        document.check_unchanged()
        # Only now: another run may have written a file of this name a moment ago.
        if any(os.path.lexists(final) and not file.is_at(final) for final, file in data.items()):
            return None
        for final, file in data.items():
            staging.make_folder(final.parent)  # external data may lie in a folder of its own
            if not staging.publish_data(file, final):
                raise OutputError(f"cannot write {quoted(target)}: another run writes {quoted(final)}")
        _replace_model(model, target, staging, document, set(data))
    return Saved(nbytes, is_copy=True, model=replace(model, path=target))


def _data_files_to_copy(document: Document, target: Path) -> dict[Path, Source] | None:
    """Path in the output's folder -> data file of the input; None if one cannot be there under its name."""
    if document.path is None or _is_same_path(document.path.parent, target.parent):
        return {}
    copies = {}
    for location, source in sorted(document.data_files.by_location.items()):
        final = Path(os.path.normpath(target.parent / location))
        if not _may_hold_data(final, target) or _has_other_size(final, source.size):
            return None
        copies[final] = source
    return copies


def _may_hold_data(final: Path, target: Path) -> bool:
    """Whether a data file may have that path: not one that a model needs, nor one that leads out of the folder.

    A name `*.onnx` may be the output of another run, which would replace it. Runtimes refuse data that is reached
    through a link out of the model's folder.
    """
    inside = final.relative_to(target.parent)
    # Some file systems do not tell upper from lower case.
    if final.suffix.lower() == ".onnx" or inside.parts[0].lower() == target.name.lower():
        return False
    folder = os.path.join(os.path.realpath(target.parent), inside.parent)
    if os.path.realpath(folder) != os.path.normpath(folder):
        return False
    return all(part.is_dir() for part in final.parents if os.path.lexists(part))


def _has_other_size(final: Path, size: int) -> bool:
    """Whether something else is certainly there; looked up before anything is copied."""
    return os.path.lexists(final) and os.lstat(final).st_size != size


def _publish_alone(model: Written, target: Path, staging: Staging, document: Document) -> Saved:
    """Publish a model without a data file."""
    with staging.lock():
        document.check_unchanged()
        _replace_model(model, target, staging, document, set())
    return Saved(model.size, model=replace(model, path=target))


def _save_external(
    document: Document,
    edits: Edits,
    target: Path,
    staging: Staging,
    *,
    spill: bool,
    staged: Saved | None = None,
) -> Saved:
    """Write a model with a data file beside it; `staged`: both, if they were written before."""
    names = _data_names(target)
    data = DataFile(next(names))
    # This gives every tensor its place in `data`, and computes none.
    rope = serialize(document, edits, data, spill=spill)
    # text, sparse tensors or constants of more than 2 GB cannot go outside
    if rope.size > PROTOBUF_LIMIT:
        raise OutputError(f"cannot write {quoted(target)}: {rope.size} bytes are too many for one model file")
    if data.size == 0:
        return _publish_alone(staging.write(rope.write, target), target, staging, document)
    final = target.parent / data.name
    if staged is None or staged.data is None:
        weights = staging.write(data.write, final)
    else:
        weights = staging.take_over(staged.data, final)
    with staging.lock():
        document.check_unchanged()
        while True:
            if not os.path.lexists(final) or weights.is_at(final):
                model = staging.write(rope.write, target)
                # The weights first: a model that is there finds them, whenever the run is killed.
                if staging.publish_data(weights, final):
                    break
            # The name is in use: the weights stay where they were written, the model must say another name.
            data = DataFile(next(names))
            rope = serialize(document, edits, data, spill=spill)
            final = target.parent / data.name
        _replace_model(model, target, staging, document, {final})
    nbytes = model.size + weights.size
    return Saved(nbytes, model=replace(model, path=target), data=replace(weights, path=final))


def _replace_model(
    model: Written, target: Path, staging: Staging, document: Document, data: set[Path]
) -> None:
    """Publish a model whose data files are there; those that only the replaced model used go. Under the lock."""
    _check_target(document, target)  # again: another run may just have written its weights there
    if sys.platform == "win32":
        document.given.close()  # an open file cannot be replaced there
    old = _own_data_files(target)
    staging.publish_model(model, data)
    _remove_stale(old - data, target, document)


def _is_same_path(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_same_entry(one: Path, other: Path) -> bool:
    """Whether two paths name one entry of one folder; a link to a file is another entry."""
    return one.name == other.name and _is_same_path(one.parent, other.parent) and other.exists()


def is_data_name(name: str, target: Path) -> bool:
    """Whether the data file of an output may get this name in its folder.

    >>> is_data_name("net.onnx.1.data", Path("net.onnx")), is_data_name("net.data", Path("net.onnx"))
    (True, False)
    """
    return re.fullmatch(re.escape(target.name) + r"(\.[0-9]+)?\.data", name) is not None


def _data_names(target: Path) -> Iterator[str]:
    """Names for the data file, as `is_data_name` knows them.

    One in use by the model that is replaced is passed over: between the two steps of publishing, that model must not
    find the new data under the old name.
    """
    yield f"{target.name}.data"
    for number in itertools.count(1):
        yield f"{target.name}.{number}.data"


def _data_locations(model: Path) -> set[str] | None:
    """Where a model keeps its weights, relative to its folder; None if the file is no model."""
    with contextlib.suppress(RepfuseError), Document.open(model) as document:
        return set(document.data_files.by_location)
    return None


def _own_data_files(target: Path) -> set[Path]:
    """The data files of the model that is about to be replaced, as far as `_data_names` may have named them."""
    if not any(is_data_name(name, target) for name in os.listdir(target.parent)):
        return set()
    return {target.parent / name for name in _data_locations(target) or () if is_data_name(name, target)}


def _remove_stale(old: set[Path], target: Path, document: Document) -> None:
    """Remove the data files that only the replaced model used."""
    document = document.given
    is_input_replaced = document.path is not None and _is_same_path(document.path, target)
    in_use = {os.path.realpath(file.file_path) for file in document.data_files.by_location.values()}
    for path in old:
        is_free = is_input_replaced or os.path.realpath(path) not in in_use
        if is_free and not _may_be_used(path, target):
            with contextlib.suppress(OSError):
                path.unlink()


def _may_be_used(data: Path, target: Path) -> bool:
    """Whether a file of the folder mentions a data file by name, be it a model that we cannot read or name otherwise.

    Every model says the location of its external data in plain text, whatever its suffix or format is.
    """
    name = data.name.encode()
    others = (path for path in data.parent.iterdir() if path not in (data, target))
    return any(_mentions(path, name) for path in others)


def _mentions(path: Path, name: bytes) -> bool:
    """Whether a file may hold these bytes; one that cannot be read may. Larger ones are weights, not models."""
    try:
        if not path.is_file() or path.stat().st_size > PROTOBUF_LIMIT:
            return False
        with path.open("rb") as file:
            before = b""
            while block := file.read(1 << 20):
                if name in before + block:
                    return True
                before = block[-len(name) :]
    except OSError:
        return True
    return False


def _user_of(data: Path, target: Path) -> Path | None:
    """Another model of the folder that uses a data file; a copy of the old model (`*.onnx.bak`), for one."""
    for other in sorted(data.parent.glob("*.onnx*")):
        if other not in (data, target) and data.name in (_data_locations(other) or ()):
            return other
    return None
