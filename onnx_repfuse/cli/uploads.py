"""Where the data files of an uploaded model belong: browsers tell the names of files, and not their folders."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from onnx_repfuse.errors import RepfuseError
from onnx_repfuse.modelfile.tensors import all_tensors, external_entries

__all__ = ["missing_data_files", "move_data_files"]


def move_data_files(model: Path) -> None:
    """Move data files that lie beside the model into the folders that it names.

    A location `weights/a.bin` means the uploaded `a.bin`, if there is one and no other location ends with that name.
    A file that is no model, or that names places outside of its folder, is left to whoever reads it: the error is told
    there.
    """
    for name, locations in _locations(model).items():
        if len(locations) == 1:
            (location,) = locations
            _move(model, model.parent / name, location)


def missing_data_files(model: Path) -> list[str]:
    """Files that the model names inside its folder and that are not there, in order of their names."""
    places = {place for several in _locations(model).values() for place in several}
    return sorted(str(place) for place in places if _is_inside(place) and not (model.parent / place).exists())


def _is_inside(location: PurePosixPath) -> bool:
    return bool(location.name) and not location.is_absolute() and ".." not in location.parts


def _locations(model: Path) -> dict[str, set[PurePosixPath]]:
    """The locations of external data by the last part of their names."""
    found: dict[str, set[PurePosixPath]] = defaultdict(set)
    try:
        read = onnx.load_model(model, load_external_data=False)
        for _, tensor in all_tensors(read):
            location = PurePosixPath(external_entries(tensor).get("location", ""))
            found[location.name].add(location)
    except (DecodeError, RepfuseError, ValueError):
        return {}
    return found


def _move(model: Path, upload: Path, location: PurePosixPath) -> None:
    is_beside = len(location.parts) < 2
    if not _is_inside(location) or is_beside or upload == model or not upload.is_file():
        return
    place = model.parent / location
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        upload.rename(place)
