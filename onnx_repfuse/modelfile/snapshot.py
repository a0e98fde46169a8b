"""A copy of the input that nobody else changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnx_repfuse.errors import OutputError, RepfuseError, quoted
from onnx_repfuse.modelfile.document import Document

__all__ = ["safe_to_run", "snapshot"]


@contextmanager
def safe_to_run(*models: Path) -> Iterator[list[Path]]:
    """The files, or temporary copies of those that ONNX Runtime would map: if one got shorter, the process would end.

    It maps external data; the model itself it reads.

    Raises:
        InputError: one cannot be read, or changed before the context ended.
        OutputError: there is no room for a copy.
    """
    copies: dict[Path, Path] = {}
    with ExitStack() as stack:
        documents = [stack.enter_context(Document.open(model)) for model in models]
        for model, document in zip(models, documents, strict=True):
            if document.has_external_data and model not in copies:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="repfuse-"))
                copies[model] = snapshot(document, Path(folder) / "original")
            document.release()  # ONNX Runtime needs the memory now
        try:
            yield [copies.get(model, model) for model in models]
        except RepfuseError as error:
            text = str(error)
            for model, copy in copies.items():
                text = text.replace(str(copy), str(model))
            if text == str(error):
                raise
            raise type(error)(text) from error
        for document in documents:
            document.check_unchanged()


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
        for (
            location
        ) in document.data_files.as_written:  # the system looks for every folder in `sub/../weights.bin`
            (folder / location).parent.mkdir(parents=True, exist_ok=True)
        for path, source in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb", buffering=0) as file:
                if source is document.source:
                    source.write(file)
                    continue
                file.truncate(source.size)  # what no tensor means is left empty: it may be gigabytes
                for begin, end in document.data_files.ranges_of(source):
                    file.seek(begin)
                    source.copy_to(file, begin, end)
    except OSError as error:
        raise OutputError(
            f"cannot copy the model to {quoted(folder.parent.parent)}, to run it: {error.strerror or error}"
        ) from error
    return model
