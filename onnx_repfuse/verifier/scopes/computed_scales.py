"""Scales of a Resize or Upsample as computed values, where a model runs on inputs that its own may never be like.

ONNX Runtime (seen of 1.32) ends the process where data has more axes than there are constant scales. Of scales that a
node computes it says what is wrong.
"""

from __future__ import annotations

import onnx

from onnx_repfuse.verifier.session import subgraphs

__all__ = ["compute_scales"]


def compute_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which is changed: an Identity in front of all scales, in its functions and subgraphs, too.

    Without graph optimizations, runtimes do not evaluate it beforehand.
    """
    for owner in (model.graph, *model.functions):
        _compute_scales(owner)
    return model


def _compute_scales(owner: onnx.GraphProto | onnx.FunctionProto) -> None:
    nodes = []
    for node in owner.node:
        for graph in subgraphs(node):
            _compute_scales(graph)
        place = _place_of_scales(node)
        if place is not None:
            name = f"computed scales of {node.output[0]}"
            nodes.append(onnx.helper.make_node("Identity", [node.input[place]], [name]))
            node.input[place] = name
        nodes.append(node)
    if len(nodes) == len(owner.node):
        return
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del owner.node[:]
    owner.node.extend(kept)


def _place_of_scales(node: onnx.NodeProto) -> int | None:
    """Which input of a node is scales; None for other nodes, and where an attribute or sizes are in their place."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Resize", "Upsample"):
        return None
    place = 1 if node.op_type == "Upsample" or len(node.input) == 2 else 2  # opset 10 has no `roi`
    return place if len(node.input) > place and node.input[place] else None
