"""The random numbers of a test do not depend on the tests, or modules, that ran before it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parts import random

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("again", [False, True])
def test_every_test_begins_the_streams_anew(again: bool) -> None:
    np.testing.assert_array_equal(random(3), np.random.default_rng(0).standard_normal(3).astype(np.float32))
    assert RNG.integers(1 << 40) == np.random.default_rng(4).integers(1 << 40)
