"""Random graphs, folded and held against float64: see `tests/random_graphs.py`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from onnx_repfuse import Options
from tests import random_properties
from tests.build import Net
from tests.random_graphs import Recipe, examine, recipes
from tests.random_properties import UNCHECKED, compare
from tests.versions import since

QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


# To reduce a failure, which takes minutes, is for the script.
@settings(max_examples=100, suppress_health_check=QUIET, phases=[Phase.generate])
@given(recipes)
def folds_alone(recipe: Recipe) -> None:
    examine(recipe, UNCHECKED)


@settings(max_examples=30, suppress_health_check=QUIET, phases=[Phase.generate])
@given(recipes)
def folds_and_proof(recipe: Recipe) -> None:
    examine(recipe, Options())


@since("ONNX Runtime before 1.24 reads beyond the input in some Pads", onnxruntime="1.24")
def test_random_graphs_without_a_net() -> None:
    """Wrong folds would be seen here: the package's own proof is off."""
    tally = random_properties.TALLY
    tally.clear()
    folds_alone()
    assert tally["compared"] > 60, tally  # what is drawn does fold, and does run
    assert (
        sum(tally[f"fold: {kind}"] > 0 for kind in ("affine", "branches", "sequence", "pad", "matmul")) == 5
    )


def test_random_graphs_with_their_proof() -> None:
    folds_and_proof()


@pytest.mark.parametrize("fault", [1e-4, 1e-3, -2])
def test_the_comparison_can_fail(fault: float) -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    feeds = [{"x": np.random.default_rng(0).standard_normal((1, 4, 5, 6)).astype(np.float32)}]
    assert compare(model, model, feeds) == 1
    other = type(model).FromString(model.SerializeToString())
    weight = np.frombuffer(other.graph.initializer[0].raw_data, np.float32).copy()
    weight[2] *= 1 + fault  # of ordinary size: a fault of a weight near zero drowns in rounding
    other.graph.initializer[0].raw_data = weight.tobytes()
    with pytest.raises(AssertionError, match="deviations"):
        compare(model, other, feeds)
