"""The execution providers of the installed ONNX Runtime, by the names that people give them."""

from __future__ import annotations

import difflib

from onnx_repfuse.errors import UsageError
from onnx_repfuse.quiet_runtime import ort

__all__ = ["available", "provider_named"]

_SUFFIX = "executionprovider"


def available() -> list[str]:
    """Their names, the ones that ONNX Runtime prefers first."""
    names: list[str] = ort.get_available_providers()
    return names


def provider_named(word: str) -> str:
    """The provider's whole name: `openvino` is OpenVINOExecutionProvider.

    Raises:
        UsageError: the installed ONNX Runtime has none of this name; the message lists those that it has.
    """
    names = available()
    by_short = {name.lower().removesuffix(_SUFFIX): name for name in names}
    short = word.lower().removesuffix(_SUFFIX)
    if short in by_short:
        return by_short[short]
    near = difflib.get_close_matches(short, by_short, 1)
    hint = f"; did you mean {by_short[near[0]]}?" if near else ""
    raise UsageError(f"the installed ONNX Runtime has no provider '{word}'; it has {', '.join(names)}{hint}")
