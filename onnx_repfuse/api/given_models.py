"""What a model may be: a file, or one of the forms in which Python programs hold it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.errors import InputError, RepfuseError, quoted
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.snapshot import safe_to_run

__all__ = ["Model", "document_of", "name_of", "runnable"]


# To type checkers, models of libraries that need not be installed are what they have.
class _Graph(Protocol):
    """An `onnx_graphsurgeon.Graph`."""

    def tensors(self, *args: Any, **kwargs: Any) -> Any: ...


class _IrModel(Protocol):
    """An `onnx_ir.Model`."""

    @property
    def graph(self) -> Any: ...
    @property
    def opset_imports(self) -> Any: ...


class _Program(Protocol):
    """A `torch.onnx.ONNXProgram`."""

    @property
    def model_proto(self) -> onnx.ModelProto: ...


Model: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | _Graph | _IrModel | _Program"


def name_of(model: Model) -> str:
    """The file's name as it was given; "" of a model in memory."""
    return str(model) if isinstance(model, str | os.PathLike) else ""


@contextmanager
def document_of(model: Model) -> Iterator[Document]:
    """The model opened for planning. Raises InputError."""
    with _plain(model) as plain:
        opened = Document.open(plain) if isinstance(plain, Path) else Document.from_model(plain)
        with opened as document:
            yield document


@contextmanager
def runnable(*models: Model) -> Iterator[tuple[onnx.ModelProto | Path, ...]]:
    """Models as sessions take them: those with external data as copies that no other program can shorten.

    Raises InputError for a file that cannot be read: it is not a different model.
    """
    with ExitStack() as stack:
        plain = [stack.enter_context(_plain(model)) for model in models]
        copies = stack.enter_context(safe_to_run(*(model for model in plain if isinstance(model, Path))))
        paths = iter(copies)
        yield tuple(next(paths) if isinstance(model, Path) else model for model in plain)


@contextmanager
def _plain(model: Model) -> Iterator[onnx.ModelProto | Path]:
    """The model as a file or a ModelProto. Raises InputError for what is no model."""
    if isinstance(model, str | os.PathLike):
        yield Path(model)
    elif isinstance(model, onnx.ModelProto):
        yield model
    elif isinstance(model, gs.Graph):
        yield gs.export_onnx(model.copy())
    elif (ir_model := _ir_model(model)) is not None:
        with _saved(ir_model) as place:
            yield place
    elif isinstance(proto := getattr(model, "model_proto", None), onnx.ModelProto):
        yield proto
    else:
        raise InputError(
            "a model is a path, an onnx.ModelProto, a graphsurgeon Graph, an onnx_ir.Model or a "
            f"torch.onnx.ONNXProgram, not {type(model).__name__}"
        )


def _ir_model(model: object) -> Any:
    """The model as an `onnx_ir.Model`: itself, or what an exporter's program holds; None if it is neither.

    Nobody can have one who has not imported onnx_ir, so it is not imported here.
    """
    onnx_ir: Any = sys.modules.get("onnx_ir")
    forms: Sequence[object] = (model, getattr(model, "model", None))
    return next((form for form in forms if onnx_ir is not None and isinstance(form, onnx_ir.Model)), None)


@contextmanager
def _saved(model: Any) -> Iterator[Path]:
    """An `onnx_ir.Model` in a temporary file, with its weights as external data: protobuf ends at 2 GB."""
    onnx_ir: Any = sys.modules["onnx_ir"]
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        place = Path(folder) / "model.onnx"
        onnx_ir.save(model, place, external_data="model.onnx.data")
        try:
            yield place
        except RepfuseError as error:
            text = str(error).replace(quoted(place), "the model").replace(str(place), "the model")
            error.args = (text.replace(f"{folder}{os.sep}", ""),)
            raise
