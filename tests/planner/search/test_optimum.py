"""A short form of `python -m tests.optimum`: small regions, of which the planner's result is the cheapest."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest

from onnx_repfuse.planner.search import cover
from tests.build import Net
from tests.optimum import random_regions, regions_of_files
from tests.optimum_search import Tally, examine

MODELS = Path(__file__).parents[3] / "models"


def layer_scale() -> onnx.ModelProto:
    """A factor behind a Linear's Transpose and Reshape."""
    net = Net(shape=(2, 6, 4))
    y = net.op("Transpose", net.op("MatMul", "x", net.random(4, 4)), perm=[0, 2, 1])
    y = net.op("Reshape", y, net.const(np.array([2, 4, 3, 2])))
    return net.model(net.op("Mul", y, net.channel(4)))


def block() -> onnx.ModelProto:
    """Two branches and a BatchNormalization."""
    net = Net(4)
    return net.model(net.bn(net.add(net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1)), 4))


@pytest.mark.parametrize("model", [layer_scale, block])
def test_the_planner_finds_the_cheapest(model) -> None:  # type: ignore[no-untyped-def]
    tally = Tally()
    assert examine(model(), tally, "") is None
    assert tally.states > 3


def test_a_planner_that_misses_a_fold_is_told_of() -> None:
    with patch.object(cover, "combinations", lambda options: [tuple(choice[0] for choice in options)]):
        gap = examine(block(), Tally(), "")
    assert gap is not None
    assert gap.best.cost < gap.planned.cost
    assert gap.best.macs < gap.planned.macs
    assert gap.steps
    assert gap.result == "Add BatchNormalization Conv*2 => Conv"


def test_regions_of_files_and_of_random_graphs(tmp_path: Path) -> None:
    (tmp_path / "repvgg.onnx").symlink_to(MODELS / "repvgg.deploy.onnx")
    tally = Tally()
    found = [*regions_of_files([tmp_path]), *islice(random_regions(12, 3), 40)]
    for label, region in found:
        assert examine(region, tally, label) is None, label
    assert 5 < tally.regions <= len(found)
