"""PP-LCNet and PP-LCNetV3: depthwise separable blocks; V3 has many branches, and learned affines around activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.fusing import ConvBN, Reparam, conv_of, fuse_bn, identity_kernel, pad_kernel


class DepthwiseConvBN(Reparam):
    """A depthwise Conv and its BatchNorm; `switch_to_deploy` leaves one Conv with a bias."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fused(self) -> nn.Module:
        return conv_of(*fuse_bn(self.conv, self.bn), like=self.conv)


def separable(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(
        DepthwiseConvBN(inputs, kernel, stride), nn.Hardswish(), ConvBN(inputs, outputs, act=nn.Hardswish())
    )


def pplcnet() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.Hardswish()),
        separable(8, 16, 3, 1),
        separable(16, 24, 3, 2),
        separable(24, 24, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(24, 32, 1),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class LearnableAffine(nn.Module):
    """PP-LCNetV3's `scale * x + bias`, both scalars of shape [1]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class AffineAct(nn.Module):
    """Hardswish, decomposed as by Paddle2ONNX into Add, Clip, Mul, Div, and an affine after it."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = LearnableAffine()

    def forward(self, x: Tensor) -> Tensor:
        return self.lab(x * torch.clip(x + 3.0, 0.0, 6.0) / 6.0)


class MergedBranches(Reparam):
    """The sum of an identity with BatchNorm, a 1x1 and several kxk branches; the authors deploy one Conv."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, branches: int
    ) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.conv_1x1 = ConvBN(inputs, outputs, 1, stride, groups) if kernel > 1 else None
        self.conv_kxk = nn.ModuleList(
            ConvBN(inputs, outputs, kernel, stride, groups) for _ in range(branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = 0 if self.identity is None else self.identity(x)
        if self.conv_1x1 is not None:
            y = y + self.conv_1x1(x)
        for conv in self.conv_kxk:
            y = y + conv(x)
        return y

    def fused(self) -> nn.Module:
        like = self.conv_kxk[0].conv
        size = like.kernel_size[0]
        parts = [fuse_bn(branch.conv, branch.bn) for branch in self.conv_kxk]
        if self.conv_1x1 is not None:
            parts.append(fuse_bn(self.conv_1x1.conv, self.conv_1x1.bn))
        if self.identity is not None:
            unit = conv_of(
                identity_kernel(like.in_channels, like.groups, size), torch.zeros(like.in_channels), like
            )
            parts.append(fuse_bn(unit, self.identity))
        kernel = sum(pad_kernel(kernel, size) for kernel, _ in parts)
        return conv_of(kernel, sum(bias for _, bias in parts), like=like)


class LearnableRep(nn.Module):
    """PP-LCNetV3's LearnableRepLayer: merged branches, an affine, and an activation unless the stride is 2."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, branches: int = 4
    ) -> None:
        super().__init__()
        self.branches = MergedBranches(inputs, outputs, kernel, stride, groups, branches)
        self.lab = LearnableAffine()
        self.act = AffineAct() if stride == 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lab(self.branches(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(
            self.conv2(functional.relu(self.conv1(functional.adaptive_avg_pool2d(x, 1))))
        )


def v3_block(inputs: int, outputs: int, kernel: int, stride: int, attention: bool = False) -> nn.Module:
    depthwise = LearnableRep(inputs, inputs, kernel, stride, groups=inputs)
    pointwise = LearnableRep(inputs, outputs, 1, 1, groups=1)
    return nn.Sequential(depthwise, SqueezeExcite(inputs) if attention else nn.Identity(), pointwise)


def pplcnetv3() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2),
        v3_block(8, 16, 3, 1),
        v3_block(16, 24, 3, 2),
        v3_block(24, 24, 5, 1, attention=True),
    )
