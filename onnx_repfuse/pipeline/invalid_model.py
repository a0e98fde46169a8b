"""Whose fault an exception is: the model's, if it breaks ONNX's own rules, or ours.

Models are not checked beforehand: that costs time, and refuses files that run. But where a run stumbles, the file is
checked, with onnx's checker and shape inference, then with ONNX Runtime. If both accept it, the fault is ours, and the
exception goes on. So it does where the checker misses the types of outputs only, and ONNX Runtime runs the file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnx_repfuse.errors import Inexact, InputError, RepfuseError
from onnx_repfuse.graph.enforced import is_inferable
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.node_order import all_nodes
from onnx_repfuse.modelfile.save import save

__all__ = ["invalid_model_is_input_error"]

# A declaration that onnx demands, and runtimes infer: it is missing in files that run.
_NOT_DECLARED = re.compile("Field '(type|shape)' of '[a-z_]+' is required but missing")


@contextmanager
def invalid_model_is_input_error(document: Document) -> Iterator[None]:
    """Raise InputError for what an invalid model makes fail inside; anything else goes on as it is."""
    try:
        yield
    except (RepfuseError, Inexact, MemoryError, OSError):
        raise  # these say what is wrong, and it is not the model
    except Exception as error:
        complaint = _complaint(document)
        if not complaint:
            raise
        raise InputError(f"the model is not valid: {complaint}") from error


def _is_inferable(graph: onnx.GraphProto) -> bool:
    """Whether shape inference, which a full check runs, survives every node."""
    return all(map(is_inferable, all_nodes(graph.node)))


def _complaint(document: Document) -> str:
    """What onnx or ONNX Runtime has against the model, in a line; '' if nothing."""
    from onnx_repfuse.verifier.session import NoImplementation, one_line, open_session

    with tempfile.TemporaryDirectory() as folder:
        path = document.path
        if path is None:  # onnx's checker takes models beyond 2 GB as files only
            path = Path(folder) / "model.onnx"
            save(document, {}, path)
        complaint = ""
        try:
            onnx.checker.check_model(str(path), full_check=_is_inferable(document.model.graph))
        except Exception as error:  # it raises anything
            complaint = one_line(error)
            if not _NOT_DECLARED.search(complaint):
                return complaint
        try:
            session = open_session(path)
        except NoImplementation:  # it may be right: nobody here can say
            return complaint
        except Exception as error:  # as above
            return complaint or one_line(error)
        return "" if session.backend == "onnxruntime" else complaint
