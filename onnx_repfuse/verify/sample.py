"""What is judged."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_repfuse.verify.measure import Array

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """One output on one feed.

    Attributes:
        scene: which shape; noise and variation are only compared within it.
        original, fused: the two values, None where an optional is absent.
        by_inputs, by_weights: the original's values with inputs, or weights, moved by one ulp;
            None where not measured.
        optimized: the original's values under ORT_ENABLE_ALL, or None.
    """

    scene: int
    original: Array | None
    fused: Array | None
    by_inputs: Array | None = None
    by_weights: Array | None = None
    optimized: Array | None = None
