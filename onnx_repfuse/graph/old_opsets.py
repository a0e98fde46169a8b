"""Nodes of opsets below 7, which no runtime has kernels for, as nodes of opset 7.

Until then, `broadcast=1, axis=k` aligned the second operand of a sum or product with the axes of the first from `k` on.
https://onnx.ai/onnx/operators/onnx__Mul.html, version 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

__all__ = ["OLDEST", "in_oldest"]

OLDEST = 7  # the oldest opset that runtimes have
_ALIGNED = {"Add", "Div", "Mul", "Pow", "Sub"}
_CHANGED = {  # other operators of which opset 7 has another version
    "And", "AveragePool", "BatchNormalization", "Dropout", "Equal", "Gemm", "Greater", "Less", "Or", "PRelu",
    "Upsample", "Xor",
}  # fmt: skip
_ALIGNMENT = ("axis", "broadcast", "consumed_inputs")


def in_oldest(node: onnx.NodeProto, ranks: Sequence[int]) -> list[onnx.NodeProto]:
    """A node of an opset below 7 in those of opset 7; none where that is not the same.

    Args:
        node: of ONNX's own domain.
        ranks: of its inputs.
    """
    if node.op_type in _CHANGED:
        return []
    if node.op_type not in _ALIGNED:
        return [node]
    given = {attribute.name: attribute.i for attribute in node.attribute}
    first, second = ranks
    behind = (
        first - given.get("axis", first - second) % max(first, 1) - second if given.get("broadcast") else 0
    )
    if behind < 0:
        return []
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name not in _ALIGNMENT]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    if not behind:
        return [copy]
    copy.input[1] = f"{node.input[1]}, aligned for {node.output[0]}"
    axes = list(range(second, second + behind))
    return [onnx.helper.make_node("Unsqueeze", [node.input[1]], [copy.input[1]], axes=axes), copy]
