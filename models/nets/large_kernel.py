"""Large depthwise kernels beside small ones (RepLKNet, UniRepLKNet), and ACNet's 3x3 + 1x3 + 3x1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.nets.fusing import (
    ConvBN,
    Reparam,
    bn_scale_shift,
    conv_of,
    dilate_kernel,
    fuse_bn,
    pad_kernel,
)


class AcBlock(Reparam):
    """ACNet: 3x3 + 1x3 + 3x1, each with its own BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.square = ConvBN(inputs, outputs, 3, stride)
        self.horizontal = ConvBN(inputs, outputs, (1, 3), stride)
        self.vertical = ConvBN(inputs, outputs, (3, 1), stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.square(x) + self.vertical(x) + self.horizontal(x))

    def fused(self) -> nn.Module:
        branches = [
            fuse_bn(branch.conv, branch.bn) for branch in (self.square, self.vertical, self.horizontal)
        ]
        kernel = sum(pad_kernel(kernel, 3) for kernel, _ in branches)
        bias = sum(bias for _, bias in branches)
        return nn.Sequential(conv_of(kernel, bias, like=self.square.conv), self.act)


def acnet() -> nn.Module:
    return nn.Sequential(AcBlock(3, 12, 2), AcBlock(12, 12), AcBlock(12, 20, 2), AcBlock(20, 20))


class ReparamLargeKernel(Reparam):
    """RepLKNet: a depthwise 31x31 beside a depthwise 5x5."""

    def __init__(self, channels: int, kernel: int, small: int) -> None:
        super().__init__()
        self.large = ConvBN(channels, channels, kernel, groups=channels)
        self.small = ConvBN(channels, channels, small, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    def fused(self) -> nn.Module:
        kernel, bias = fuse_bn(self.large.conv, self.large.bn)
        kernel1, bias1 = fuse_bn(self.small.conv, self.small.bn)
        return conv_of(kernel + pad_kernel(kernel1, kernel.shape[-1]), bias + bias1, like=self.large.conv)


class RepLkBlock(nn.Module):
    """RepLKNet's block: BatchNorm, 1x1, large kernel, 1x1, residual."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, channels, act=nn.ReLU())
        self.large = ReparamLargeKernel(channels, kernel, 5)
        self.act = nn.ReLU()
        self.pw2 = ConvBN(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(self.act(self.large(self.pw1(self.prelkb_bn(x)))))


class RepLkFfn(nn.Module):
    """RepLKNet's feed-forward block: BatchNorm, 1x1, GELU, 1x1, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, 2 * channels)
        self.act = nn.GELU()
        self.pw2 = ConvBN(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(self.act(self.pw1(self.preffn_bn(x))))


def replknet() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.ReLU()),
        RepLkBlock(8, 31),
        RepLkFfn(8),
        RepLkBlock(8, 13),
        RepLkFfn(8),
        nn.BatchNorm2d(8),
    )


class DilatedReparam(nn.Module):
    """UniRepLKNet: a depthwise 13x13 beside dilated small ones, each with its BatchNorm."""

    SIZES = 5, 7, 3, 3, 3
    DILATIONS = 1, 2, 3, 4, 5

    def __init__(self, channels: int, kernel: int = 13) -> None:
        super().__init__()
        self.origin = ConvBN(channels, channels, kernel, groups=channels)
        self.branches = nn.ModuleList(
            ConvBN(channels, channels, size, groups=channels, dilation=dilation)
            for size, dilation in zip(self.SIZES, self.DILATIONS, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin(x)
        for branch in self.branches:
            y = y + branch(x)
        return y

    def merged(self) -> nn.Conv2d:
        kernel, bias = fuse_bn(self.origin.conv, self.origin.bn)
        for branch in self.branches:
            weight, shift = fuse_bn(branch.conv, branch.bn)
            kernel = kernel + pad_kernel(dilate_kernel(weight, branch.conv.dilation[0]), kernel.shape[-1])
            bias = bias + shift
        return conv_of(kernel, bias, like=self.origin.conv)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's response norm on channels-last features; its bias is optional."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.sqrt((x * x).sum((1, 2), keepdim=True) + 1e-6)
        y = (self.gamma * norm / (norm.mean(-1, keepdim=True) + 1e-6) + 1) * x
        return y if self.beta is None else y + self.beta


class UniRepLkBlock(Reparam):
    """UniRepLKNet's block: the authors fold the norm into the large kernel, and BatchNorm, layer scale and the
    response norm's bias into the second Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.dwconv = DilatedReparam(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(hidden, bias=True)
        self.pwconv2 = nn.Linear(hidden, channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x))
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y.permute(0, 2, 3, 1)))))
        return x + self.gamma.view(1, -1, 1, 1) * self.bn(y.permute(0, 3, 1, 2))

    def fused(self) -> nn.Module:
        return _DeployedUniRepLkBlock(self)


class _DeployedUniRepLkBlock(nn.Module):
    def __init__(self, block: UniRepLkBlock) -> None:
        super().__init__()
        merged = block.dwconv.merged()
        self.dwconv = conv_of(*fuse_bn(merged, block.norm), like=merged)
        self.squeeze, self.excite = block.squeeze, block.excite
        self.pwconv1, self.act = block.pwconv1, block.act
        channels = block.pwconv1.out_features
        self.grn = GlobalResponseNorm(channels, bias=False)
        self.grn.gamma.copy_(block.grn.gamma)
        scale, shift = bn_scale_shift(block.bn)
        scale, shift = scale * block.gamma, shift * block.gamma
        self.pwconv2 = nn.Linear(channels, block.pwconv2.out_features)
        self.pwconv2.weight.copy_(scale[:, None] * block.pwconv2.weight)
        self.pwconv2.bias.copy_(shift + scale * (block.pwconv2.weight @ block.grn.beta.flatten()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x)
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


def unireplknet() -> nn.Module:
    return nn.Sequential(ConvBN(3, 12, 3, 2, act=nn.ReLU()), UniRepLkBlock(12), UniRepLkBlock(12))
