"""ONNX Runtime, imported and told to keep its log lines to itself.

A session's own severity does not reach what its kernels log while they are made (RoiAlign warns there), nor what the
runtime logs about the machine when it is loaded. Reasons reach the user as exceptions.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SILENT", "ort"]

SILENT = 4  # ONNX Runtime's log severity "fatal"
_STDERR = 2


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    """Hold back what native code writes to standard error; it is shown if the block raises."""
    try:
        saved = os.dup(_STDERR)
    except OSError:  # there is no standard error, as under pythonw
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)


if "onnxruntime" in sys.modules:
    import onnxruntime as ort
else:
    with _native_stderr_held_back():
        import onnxruntime as ort

ort.set_default_logger_severity(SILENT)
