"""A copy of the input that nobody else changes."""

from __future__ import annotations

from pathlib import Path

from onnx_repfuse.errors import OutputError, quoted
from onnx_repfuse.modelfile.document import Document

__all__ = ["snapshot"]


def snapshot(document: Document, folder: Path) -> Path:
    """Copy a model and its external data into a folder of our own.

    Args:
        document: the model.
        folder: does not exist yet.

    Returns:
        The copy of the model.

    Raises:
        InputError: the input cannot be read, or changed since it was opened.
        OutputError: there is no room for the copy.
    """
    model = folder / ("model.onnx" if document.path is None else document.path.name)
    files = {folder / location: source for location, source in document.data_files.by_location.items()}
    files[model] = document.source  # which may be one of them: a model that holds its own external data
    try:
        for path, source in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb", buffering=0) as file:
                source.write(file)
    except OSError as error:
        raise OutputError(
            f"cannot copy the model to {quoted(folder.parent.parent)}, to run it: {error.strerror or error}"
        ) from error
    return model
