"""A few graphs of operators that only ONNX Runtime knows: see `tests/runtime_graphs.py`, which makes more of them."""

from __future__ import annotations

from tests.runtime_graphs import finds


def test_results_compute_the_same_at_small_sizes_unchecked() -> None:
    assert not list(finds(25, seed=3))
