"""How far the channels of a Conv's weight differ in range: what a quantizer loses with one scale for all of them.

With one scale per tensor, the widest channel sets the step: a channel whose range is 1/16 of that has 4 bits fewer.
Re-parameterized blocks are known for it (github.com/DingXiaoH/RepVGG, issue 59), as BatchNormalization gives each
channel a factor of its own. With one scale per channel nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.edit import Edit, NewTensor, ScopeKey
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.distance import median

__all__ = ["RangeRatios", "range_ratio"]


class _Original(NamedTuple):
    """A node of the original: its id(), its scope, and the name of its weight."""

    node: int
    scope: Scope
    weight: str


def range_ratio(weight: NDArray[Any]) -> float | None:
    """The range of the widest output channel of a Conv's weight, divided by the median channel's.

    A channel's range is its largest magnitude. Channels of zeros do not count: they need no scale.

    Args:
        weight: (channels out, channels in / groups, *kernel).

    Returns:
        At least 1; None if all channels are zero, or the weight is not finite.

    >>> range_ratio(np.array([[[1.0]], [[-8.0]], [[2.0]], [[0.0]]]))
    4.0
    """
    axes = tuple(range(1, weight.ndim))
    # Without a copy of absolute values, which is as large as the weight.
    ranges = np.maximum(weight.max(axes, initial=0), -weight.min(axes, initial=0)).astype(np.float64)
    if not np.isfinite(ranges).all() or not ranges.any():
        return None
    return float(ranges.max() / median(ranges[ranges > 0]))


class RangeRatios:
    """The ratios of the Convs that folds absorbed and created, taken while `noting` lets the new weights be written.

    Then no new weight is computed twice, and no old one read twice: a fold's own weights have just been read for the
    new one. All are read before the output may replace the input.
    """

    def __init__(self, plan: ModelPlan) -> None:
        self._folds = plan.folds
        self._of_node: dict[int, float | None] = {}  # by id() of original nodes
        self._written: dict[str, float | None] = {}  # by name of new weights
        self._new: set[str] = set()
        self._beside: dict[str, list[_Original]] = {}  # new weight -> what is read for it

    def noting(self, edits: Mapping[ScopeKey, Edit]) -> dict[ScopeKey, Edit]:
        """The same edits, whose weights are looked at while they are written."""
        written = {tensor.name for edit in edits.values() for tensor in edit.new_tensors}
        for planned, fold in self._folds:
            scope = planned.scope
            originals = [
                _Original(
                    id(node), scope, _weight_of(node.op, scope.proto.node[scope.anchor[id(node)]].input)
                )
                for node in fold.absorbed
            ]
            new = set[str]()
            for node in fold.created:
                name = _weight_of(node.op, [tensor.name for tensor in node.inputs])
                if name in scope.created:
                    new.add(name)
                else:
                    originals.append(_Original(id(node), scope, name))
            self._new |= new
            # A weight that a later fold absorbed is not written.
            place = min(new & written, default="")
            self._beside.setdefault(place, []).extend(originals)
        self._look_at_originals("")
        return {
            key: replace(edit, new_tensors=[self._noted(tensor) for tensor in edit.new_tensors])
            for key, edit in edits.items()
        }

    def of(self, node: gs.Node) -> float | None:
        """The ratio of a node that a fold absorbed or created; None if it is no Conv or its weight was not written."""
        if id(node) in self._of_node:
            return self._of_node[id(node)]
        return self._written.get(_weight_of(node.op, [tensor.name for tensor in node.inputs]))

    def _noted(self, tensor: NewTensor) -> NewTensor:
        if tensor.name not in self._new or tensor.data_type not in FLOAT_FORMATS:
            return tensor

        def value() -> NDArray[Any]:
            weight = tensor.value()
            self._written[tensor.name] = range_ratio(weight)
            self._look_at_originals(tensor.name)
            return weight

        return replace(tensor, value=value)

    def _look_at_originals(self, place: str) -> None:
        for node, scope, name in self._beside.pop(place, ()):
            self._of_node[node] = _ratio_of(scope, name)


def _weight_of(op: str, inputs: Any) -> str:
    """The name of a Conv's weight; "" of other nodes."""
    return str(inputs[1]) if op == "Conv" and len(inputs) > 1 else ""


def _ratio_of(scope: Scope, name: str) -> float | None:
    """The ratio of a weight of the original; None if it is no constant."""
    const = scope.constants.get(name)
    if const is None or const.data_type not in FLOAT_FORMATS or len(const.shape) < 2:
        return None
    try:
        return range_ratio(const.read())
    except Inexact:  # what computes it cannot be run
        return None
