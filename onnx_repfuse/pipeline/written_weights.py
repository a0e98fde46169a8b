"""The weights that were written, for the proof of the folds that computed them.

None is computed twice then, and what is proved is what stands in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.modelfile.edit import Edit, NewTensor, ScopeKey
from onnx_repfuse.planner.folds.fold_models import Weights
from onnx_repfuse.planner.folds.planned import PlannedFold
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["WrittenWeights"]

LEAST_ELEMENTS = 1 << 10  # smaller ones are soon computed again


class WrittenWeights:
    """What folds wrote."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` of them are held until the folds are proved; what does not fit is computed again."""
        self._left = most_bytes
        self._values: dict[tuple[ScopeKey, str], NDArray[Any]] = {}

    def noting(self, edits: Mapping[ScopeKey, Edit]) -> dict[ScopeKey, Edit]:
        """The same edits, whose weights are kept when they are written."""
        return {
            key: replace(edit, new_tensors=[self._noted(key, tensor) for tensor in edit.new_tensors])
            for key, edit in edits.items()
        }

    def of(self, key: ScopeKey, fold: PlannedFold) -> Weights:
        """Those that the nodes of a fold read, by name."""
        names = (tensor.name for node in fold.created for tensor in node.inputs)
        return {name: self._values[key, name] for name in names if (key, name) in self._values}

    def _noted(self, key: ScopeKey, tensor: NewTensor) -> NewTensor:
        def value() -> NDArray[Any]:
            weight = tensor.value()
            is_worth_it = weight.size > LEAST_ELEMENTS and tensor.data_type in FLOAT_FORMATS
            if is_worth_it and weight.nbytes <= self._left:
                self._left -= weight.nbytes
                self._values[key, tensor.name] = np.ascontiguousarray(weight)
            return weight

        return replace(tensor, value=value)
