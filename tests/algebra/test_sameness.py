"""Equal keys mean equal numbers; what is computed otherwise, or from other numbers, has another key or none."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Block, Stacked
from onnx_repfuse.algebra.kernels import Composed, Kernel, Scaled, Stored, Total, Vector
from onnx_repfuse.algebra.sameness import key_of_bias, key_of_kernel

WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 1, 1))
G = Geometry.conv(4, 4, (1, 1))


def _stored(origin: object = "w") -> Stored:
    return Stored(G, lambda: WEIGHT, origin)


def _made(value: float = 2.0, origin: object = "w") -> list[Kernel]:
    factors = np.array([1, value, 3, 4])
    scaled = Scaled(G, _stored(origin), factors)
    return [
        _stored(origin),
        scaled,
        Scaled(G, _stored(origin), None, factors),
        Composed(G, scaled, _stored(origin)),
        Total(G, (scaled, _stored(origin))),
        Block(Geometry.conv(4, 2, (1, 1)), scaled, 0, 0),
        Block(Geometry.conv(4, 2, (1, 1)), scaled, 2, 0),
        Block(Geometry.conv(2, 4, (1, 1)), scaled, 0, 0),
        Stacked(Geometry.conv(4, 8, (1, 1)), (scaled, _stored(origin))),
        Stacked(Geometry.conv(4, 8, (1, 1)), (_stored(origin), scaled)),
        Vector(Geometry.diagonal(4, 2, 1), factors),
    ]


def test_equal_derivations_have_equal_keys_and_no_others_do() -> None:
    first, again = _made(), _made()
    keys = [key_of_kernel(kernel) for kernel in first]
    assert None not in keys
    assert keys == [key_of_kernel(kernel) for kernel in again]
    others = [*map(key_of_kernel, _made(2.5)), *map(key_of_kernel, _made(origin="v"))]
    # one stored weight, and one vector, do not depend on both
    assert len({*keys, *others}) == 3 * len(keys) - 2


def test_what_is_asked_of_a_kernel_does_not_change_its_key() -> None:
    for kernel, other in zip(_made(), _made(), strict=True):
        assert kernel.depth >= 0
        assert key_of_kernel(kernel) == key_of_kernel(other)


def test_without_an_origin_there_is_no_key() -> None:
    assert key_of_kernel(_stored(None)) is None
    assert key_of_kernel(Scaled(G, _stored(None), np.ones(4))) is None


@pytest.mark.parametrize("count", [3, 300])
def test_long_derivations_have_none(count: int) -> None:
    kernel: Kernel = _stored()
    for _ in range(count):
        kernel = Scaled(G, kernel, np.ones(4))
    assert (key_of_kernel(kernel) is None) == (count > 200)


def test_biases() -> None:
    assert key_of_bias(Bias(np.ones(4))) == key_of_bias(Bias(np.ones(4), (), 1e-7, True))
    assert key_of_bias(Bias(np.ones(4))) != key_of_bias(Bias(np.arange(4.0)))
    assert key_of_bias(Bias(np.ones(4), (lambda: np.ones(4),))) is None
