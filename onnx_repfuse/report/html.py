"""The report as one HTML page."""

from __future__ import annotations

from onnx_repfuse.report.outcome import Outcome

__all__ = ["render"]


def render(outcomes: list[Outcome], version: str) -> str:
    """The page."""
    raise NotImplementedError
