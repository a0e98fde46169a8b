"""ONNX Runtime, imported and told to keep its log lines, and what it knows of our models, to itself.

A session's own severity does not reach what its kernels log while they are made (RoiAlign warns there), nor what the
runtime logs about the machine when it is loaded. Reasons reach the user as exceptions.

From 1.29 on, ONNX Runtime on Linux and macOS sends events about sessions and models to its makers. Threads of its own
do that, from its import until the process ends, and on a busy machine they have ended it ("terminate called without
an active exception"). ONNX Runtime asks the environment once, when it is loaded, whether it may.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_repfuse.errors import RepfuseError

__all__ = ["RUNTIME_VERSION", "SILENT", "ort"]

SILENT = 4  # ONNX Runtime's log severity "fatal"
_STDERR = 2
_TELEMETRY = "ORT_DISABLE_TELEMETRY"


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    """Hold back what is written to standard error; it is shown if the block raises anything but ImportError."""
    try:
        saved = os.dup(_STDERR)
    except OSError:  # there is no standard error, as under pythonw
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        except ImportError:
            raise  # `_why` says it in one line; numpy writes two tracebacks
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let what is imported in the block send no events, unless the user has said what it may do."""
    if _TELEMETRY in os.environ:
        yield
        return
    os.environ[_TELEMETRY] = "1"
    try:
        yield
    finally:
        del os.environ[_TELEMETRY]


def _why(error: ImportError) -> str:
    """Why ONNX Runtime is not there, and what to do, in a line."""
    import numpy

    # releases before 1.19, which were built for numpy 1, raise without a word
    if not str(error) and not numpy.__version__.startswith("1."):
        return (
            f"the installed ONNX Runtime does not load with numpy {numpy.__version__}, as before 1.19: "
            "install onnxruntime>=1.19, or numpy<2"
        )
    return f"ONNX Runtime cannot be loaded: {error}"


if "onnxruntime" in sys.modules:  # by the program that uses us, which decides itself what is sent
    import onnxruntime as ort
else:
    try:
        with _native_stderr_held_back(), _without_telemetry():
            import onnxruntime as ort
    except ImportError as missing:
        raise RepfuseError(_why(missing)) from missing

RUNTIME_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])

ort.set_default_logger_severity(SILENT)
