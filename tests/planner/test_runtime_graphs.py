"""A few graphs of operators that only ONNX Runtime knows: see `tests/runtime_graphs.py`, which makes more of them."""

from __future__ import annotations

from tests.runtime_graphs import finds
from tests.versions import since


@since("ONNX Runtime before 1.24 reads beyond the input in some Pads", onnxruntime="1.24")
def test_results_compute_the_same_at_small_sizes_unchecked() -> None:
    assert not list(finds(25, seed=3))
