"""The verdict on a result that nothing here can run: its folds were proved alone, and its names are checked."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import onnx

from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.records.verdict import Status, Verification

__all__ = ["missing_name", "unobserved"]


def unobserved(document: Document, result: Path, why: str) -> Verification:
    """No output was observed; FAILED if a node of the result reads what no node before it computes.

    Args:
        document: the original. If it breaks that rule itself, the result may.
        result: a file.
        why: it cannot be run, in a sentence.
    """
    from onnx_repfuse.verifier.outputs.judge import verdict_without_figures

    status, reason = Status.NOT_OBSERVED, f"nothing could be compared, each fold was proved alone: {why}"
    missing = missing_name(onnx.load(str(result), load_external_data=False).graph)
    if missing and not missing_name(document.model.graph):
        status, reason = Status.FAILED, f"the result reads '{missing}', which nothing before it computes"
    names = [value.name for value in document.model.graph.output]
    verdicts = tuple(verdict_without_figures(name, status, "", reason) for name in names)
    return Verification(verdicts, notes=(reason,))


def missing_name(graph: onnx.GraphProto, outer: Set[str] = frozenset()) -> str:
    """A tensor that a node or an output reads before it is there; '' if there is none.

    Args:
        graph: of any depth.
        outer: the tensors of the graphs around it that are there.
    """
    known = {*outer, ""}  # an empty name is an input left out
    known.update(value.name for value in graph.input)
    known.update(tensor.name for tensor in graph.initializer)
    known.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        unknown = [name for name in node.input if name not in known]
        if unknown:
            return str(unknown[0])
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                missing = missing_name(inner, known)
                if missing:
                    return missing
        known.update(node.output)
    ends = [value.name for value in graph.output if value.name not in known]
    return str(ends[0]) if ends else ""
