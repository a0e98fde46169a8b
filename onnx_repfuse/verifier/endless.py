"""Models that must not be opened, as the runtime would never be done with them."""

from __future__ import annotations

import re

import onnx

from onnx_repfuse.verifier.session import NoImplementation, all_nodes

__all__ = ["refuse_endless"]

# A term of an Einsum: letters, and one ellipsis at most. Shape inference never ends on two in a row.
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def refuse_endless(model: onnx.ModelProto) -> None:
    """Raise NoImplementation for a model that ONNX Runtime never ends to open. Weights are not read."""
    for node in all_nodes(model):
        if node.op_type == "Einsum" and not _has_sound_equation(node):
            raise NoImplementation(
                f"ONNX Runtime never ends on the equation of the Einsum '{node.output[0]}'"
            )


def _has_sound_equation(node: onnx.NodeProto) -> bool:
    equation = next((a.s for a in node.attribute if a.name == "equation"), b"").decode("utf-8", "replace")
    left, _, right = equation.replace(" ", "").partition("->")
    return all(_TERM.fullmatch(term) for term in (*left.split(","), right))
