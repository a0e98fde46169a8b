"""Every branch of a model is entered: the conditions of all its Ifs are set to one value, in both models.

But for those that always take one branch: the other one is no part of what the model computes, and may be gone.

A tensor that comes from a branch may have another rank there. What the main graph does with it shows only where the
branch is entered.
"""

from __future__ import annotations

import itertools
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.noise import WEIGHTS_LIMIT, file_bytes
from onnx_repfuse.verifier.outputs.baseline import Baseline, measure_original
from onnx_repfuse.verifier.outputs.compare import compare_with_baseline
from onnx_repfuse.verifier.scopes.computed_scales import compute_scales
from onnx_repfuse.verifier.scopes.instances import first_output
from onnx_repfuse.verifier.session import all_nodes, load, subgraphs

__all__ = ["ForcedBranches"]


class ForcedBranches:
    """The original with its conditions forced, measured once per value and size."""

    def __init__(
        self, baseline: Baseline, skeleton: onnx.ModelProto, constant: Set[str] = frozenset()
    ) -> None:
        """`skeleton` is the original; its weights need not be loaded.

        Args:
            baseline: the original, measured.
            skeleton: the same.
            constant: first outputs of the Ifs that always take one branch.
        """
        self._baselines: list[tuple[bool, Baseline]] = []
        self._constant = constant
        self.is_complete = True  # whether every branch was entered at every size; also if there is none
        original = Path(baseline.original)  # type: ignore[arg-type]
        if not _can_be_forced(skeleton, constant) or file_bytes(original) > WEIGHTS_LIMIT:
            self.is_complete = not _has_branches(skeleton, constant)
            return
        for value, group in itertools.product((True, False), baseline.groups):
            try:
                forced = measure_original(
                    _forced(load(original), value, constant),
                    spec=FeedSpec(data=group.feeds),
                    runtime=baseline.runtime,
                    optimized=False,
                )
            except InputError:  # the other branch is for other inputs
                self.is_complete = False
                continue
            self._baselines.append((value, forced))

    def difference(self, result: Path) -> str:
        """How a result differs from the original in some branch; "" if it does not."""
        for value, baseline in self._baselines:
            verification = compare_with_baseline(baseline, _forced(load(result), value, self._constant))
            for verdict in verification.outputs:
                if verdict.status is Status.FAILED:
                    return f"with every If set to {str(value).lower()}, {verdict.message}"
        return ""


def _has_branches(model: onnx.ModelProto, constant: Set[str]) -> bool:
    return any(node.op_type == "If" and first_output(node) not in constant for node in all_nodes(model))


def _can_be_forced(model: onnx.ModelProto, constant: Set[str]) -> bool:
    """Whether it has branches, and no Loop: an If that computes the condition of a Loop would never let it end."""
    return _has_branches(model, constant) and all(node.op_type != "Loop" for node in all_nodes(model))


def _forced(model: onnx.ModelProto, value: bool, constant: Set[str]) -> onnx.ModelProto:
    """The model with every condition replaced but these; it is changed."""
    condition = onnx.numpy_helper.from_array(np.array(value))
    for owner in (model.graph, *model.functions):
        _force(owner, condition, constant)
    return compute_scales(model)  # a tensor may have another rank there


def _force(
    owner: onnx.GraphProto | onnx.FunctionProto, condition: onnx.TensorProto, constant: Set[str]
) -> None:
    nodes = []
    for node in owner.node:
        for graph in subgraphs(node):
            _force(graph, condition, constant)
        if node.op_type == "If" and first_output(node) not in constant:
            name = f"forced condition of {first_output(node)}"
            nodes.append(onnx.helper.make_node("Constant", [], [name], value=condition))
            node.input[0] = name
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del owner.node[:]
    owner.node.extend(kept)
