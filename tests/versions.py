"""Marks for tests of what older versions of onnx and ONNX Runtime lack, or do wrong.

Such a test runs wherever the installed version is new enough, as the newest always is.
"""

from __future__ import annotations

import onnx as installed_onnx
import pytest

from onnx_repfuse.quiet_runtime import ort

__all__ = ["since", "since_bfloat16", "since_parser"]


def since(reason: str, *, onnx: str = "0.0", onnxruntime: str = "0.0") -> pytest.MarkDecorator:
    """A mark for what needs these versions, since older ones do what `reason` says."""
    is_older = _numbers(installed_onnx.__version__) < _numbers(onnx)
    is_older = is_older or _numbers(ort.__version__) < _numbers(onnxruntime)
    return pytest.mark.skipif(is_older, reason=reason)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


since_bfloat16 = since("onnx before 1.19 computes no bfloat16", onnx="1.19")
since_parser = since("onnx before 1.18 does not parse such a text", onnx="1.18")
