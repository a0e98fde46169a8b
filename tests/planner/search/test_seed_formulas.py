"""The conversions that authors of re-parameterizable networks write by hand fall out of `@` and `+`.

The left sides below are those formulas, in plain numpy; nothing of onnx_repfuse takes part in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from onnx_repfuse.algebra.affine_conv import AffineConv
from onnx_repfuse.algebra.geometry import Geometry

Pair = tuple[np.ndarray, np.ndarray]  # kernel, bias


@dataclass
class BatchNorm:
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float = 1e-5

    @classmethod
    def random(cls, channels: int, rng: np.random.Generator) -> BatchNorm:
        return cls(
            rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels),
            rng.normal(size=channels),
            rng.normal(size=channels),
            rng.uniform(0.2, 2, channels),
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        def per_channel(v: np.ndarray) -> np.ndarray:
            return v.reshape(1, -1, *(1,) * (x.ndim - 2))

        normal = (x - per_channel(self.mean)) / np.sqrt(per_channel(self.var) + self.eps)
        return normal * per_channel(self.gamma) + per_channel(self.beta)

    def affine(self) -> AffineConv:
        """The same as a value of the algebra: one weight and one bias per channel."""
        t = self.gamma / np.sqrt(self.var + self.eps)
        return AffineConv(Geometry.diagonal(len(t), 2), t.reshape(-1, 1, 1, 1), self.beta - self.mean * t)


# --- the formulas --------------------------------------------------------------------------------


def fuse_bn_tensor(kernel: np.ndarray, bias: np.ndarray, bn: BatchNorm) -> Pair:
    std = np.sqrt(bn.var + bn.eps)
    t = (bn.gamma / std).reshape(-1, 1, 1, 1)
    return kernel * t, bn.beta + (bias - bn.mean) * bn.gamma / std


def fuse_identity_bn(bn: BatchNorm, groups: int) -> Pair:
    channels = len(bn.gamma)
    input_dim = channels // groups
    kernel = np.zeros((channels, input_dim, 3, 3))
    for i in range(channels):
        kernel[i, i % input_dim, 1, 1] = 1
    return fuse_bn_tensor(kernel, np.zeros(channels), bn)


def pad_1x1_to_3x3_tensor(kernel: np.ndarray) -> np.ndarray:
    return np.pad(kernel, [(0, 0), (0, 0), (1, 1), (1, 1)])


# --- and the algebra -----------------------------------------------------------------------------


def assert_same(folded: AffineConv, expected: Pair) -> None:
    np.testing.assert_allclose(folded.weight, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(folded.bias, expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_fuse_bn_tensor(groups: int, stride: int, bias: bool) -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry.conv(4, 6, (3, 3), groups=groups, strides=(stride, stride), pads=(1,) * 4)
    b = rng.normal(size=6) if bias else np.zeros(6)
    conv = AffineConv(geometry, rng.normal(size=geometry.weight_shape), b)
    bn = BatchNorm.random(6, rng)
    folded = bn.affine() @ conv
    assert folded.geometry == geometry
    assert_same(folded, fuse_bn_tensor(conv.weight, conv.bias, bn))
    x = rng.normal(size=(2, 4, 5, 4))
    np.testing.assert_allclose(folded(x), bn(conv(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("identity", [False, True])
def test_rep_vgg_block_convert_to_deploy(groups: int, identity: bool) -> None:
    """3x3-BN + alpha * (1x1-BN) + identity-BN, with a learnable scalar alpha on the 1x1 branch."""
    rng = np.random.default_rng(groups)
    channels, alpha = 4, 0.37
    three = Geometry.conv(channels, channels, (3, 3), groups=groups, pads=(1,) * 4)
    point = Geometry.conv(channels, channels, (1, 1), groups=groups)
    w3, w1 = rng.normal(size=three.weight_shape), rng.normal(size=point.weight_shape)
    zero = np.zeros(channels)
    bn3, bn1, bn0 = (BatchNorm.random(channels, rng) for _ in range(3))

    k3, b3 = fuse_bn_tensor(w3, zero, bn3)
    k1, b1 = fuse_bn_tensor(w1, zero, bn1)
    kernel, bias = k3 + alpha * pad_1x1_to_3x3_tensor(k1), b3 + alpha * b1
    if identity:
        k0, b0 = fuse_identity_bn(bn0, groups)
        kernel, bias = kernel + k0, bias + b0

    dense = AffineConv(three, w3, zero)
    pointwise = AffineConv(point, w1, zero)
    scalar = AffineConv(Geometry.diagonal(channels, 2), np.full((channels, 1, 1, 1), alpha), zero)
    block = bn3.affine() @ dense + scalar @ bn1.affine() @ pointwise
    if identity:
        block = block + bn0.affine()
    assert block.geometry == three
    assert_same(block, (kernel, bias))

    x = rng.normal(size=(2, channels, 4, 3))
    trained = bn3(dense(x)) + alpha * bn1(pointwise(x)) + (bn0(x) if identity else 0)
    np.testing.assert_allclose(block(x), trained, rtol=1e-12, atol=1e-12)


def test_rep_vgg_block_with_stride_two() -> None:
    rng = np.random.default_rng(5)
    three = Geometry.conv(2, 4, (3, 3), strides=(2, 2), pads=(1,) * 4)
    point = Geometry.conv(2, 4, (1, 1), strides=(2, 2))
    w3, w1 = rng.normal(size=three.weight_shape), rng.normal(size=point.weight_shape)
    bn3, bn1 = BatchNorm.random(4, rng), BatchNorm.random(4, rng)
    k3, b3 = fuse_bn_tensor(w3, np.zeros(4), bn3)
    k1, b1 = fuse_bn_tensor(w1, np.zeros(4), bn1)
    block = bn3.affine() @ AffineConv(three, w3, np.zeros(4)) + bn1.affine() @ AffineConv(
        point, w1, np.zeros(4)
    )
    assert block.geometry == three
    assert_same(block, (k3 + pad_1x1_to_3x3_tensor(k1), b3 + b1))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 1)])
def test_depthwise_switch_to_deploy(kernel: int, stride: int) -> None:
    rng = np.random.default_rng(kernel)
    channels, pad = 6, kernel // 2
    geometry = Geometry.conv(
        channels,
        channels,
        (kernel, kernel),
        groups=channels,
        strides=(stride, stride),
        pads=(pad,) * 4,
    )
    conv = AffineConv(geometry, rng.normal(size=geometry.weight_shape), np.zeros(channels))
    bn = BatchNorm.random(channels, rng)
    deployed = bn.affine() @ conv
    assert deployed.geometry == geometry
    assert_same(deployed, fuse_bn_tensor(conv.weight, conv.bias, bn))
    x = rng.normal(size=(1, channels, 5, 6))
    np.testing.assert_allclose(deployed(x), bn(conv(x)), rtol=1e-12, atol=1e-12)
