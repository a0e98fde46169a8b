"""What a caller may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.report import Kind

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Choices of one run; the defaults are the safe ones.

    Attributes:
        cost: what "cheaper" means; multiply-adds never rise under either.
        skip, only: kinds of folds to leave out, or to do alone.
        keep: globs on node names; matching nodes stay as they are.
        freeze_initializers: treat initializers that are also graph inputs as constants (IR >= 4).
        check: prove the result with ONNX Runtime before it is written.
        rtol, atol: replace the calibrated tolerance of the outputs.
        input_shapes: input name -> shape to verify with.
        input_data: (input name or None, file) to verify with: .npy of an input, .npz, a test_data_set folder.
        external: True writes weights as external data; None does so where the input did or the size demands it.
        precision_study: (command line) compare both models with a float64 evaluation as well.

    Raises:
        UsageError: one of them cannot be meant.

    >>> Options(skip=frozenset({Kind.POOL})).allows(Kind.POOL)
    False
    """

    cost: Literal["ort-cpu", "macs"] = "ort-cpu"
    skip: frozenset[Kind] = frozenset()
    only: frozenset[Kind] | None = None
    keep: tuple[str, ...] = ()
    freeze_initializers: bool = False
    check: bool = True
    rtol: float | None = None
    atol: float | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_data: tuple[tuple[str | None, Path], ...] = ()
    external: bool | None = None
    precision_study: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for what could only be a slip: a text is a sequence of letters, and * is one."""
        for name in ("skip", "only", "keep"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"Options.{name} takes a collection, not the text '{getattr(self, name)}'")
        if self.cost not in ("ort-cpu", "macs"):
            raise UsageError(f"Options.cost is 'ort-cpu' or 'macs', not '{self.cost}'")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number >= 0, not {value}")

    def allows(self, kind: Kind) -> bool:
        """Whether folds of this kind are wanted."""
        return kind not in self.skip and (self.only is None or kind in self.only)
