"""ECBSR (edge-oriented convolution block for super-resolution): 3x3 + (1x1 -> 3x3) + (1x1 -> Sobel, Laplacian) + x.

The edge filters are constant depthwise kernels times a learned scale, which exporters write as a Mul of two constants.
The output of each 1x1 is padded with its own bias before the filter, as in DBB.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.dbb import sequence
from models.nets.fusing import Reparam, conv_of, identity_kernel

_MASKS = {
    "sobel_x": [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]],
    "sobel_y": [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]],
    "laplacian": [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]],
}


def pad_with_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Pad one pixel on each side with the value `bias`."""
    y = functional.pad(x, (1, 1, 1, 1), "constant", 0)
    border = bias.view(1, -1, 1, 1)
    y[:, :, 0:1, :] = border
    y[:, :, -1:, :] = border
    y[:, :, :, 0:1] = border
    y[:, :, :, -1:] = border
    return y


class Pointwise3x3(nn.Module):
    """1x1 -> 3x3, with more channels between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2 * channels, 1)
        self.second = nn.Conv2d(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(pad_with_bias(self.first(x), self.first.bias))

    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        return sequence(self.first.weight, self.first.bias, self.second.weight, self.second.bias, 1)


class PointwiseEdge(nn.Module):
    """1x1 -> a fixed depthwise edge filter with a learned scale and bias."""

    def __init__(self, channels: int, mask: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(0.3 * torch.randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(0.1 * torch.randn(channels))
        self.register_buffer("mask", torch.tensor(_MASKS[mask]).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        y = pad_with_bias(self.first(x), self.first.bias)
        return functional.conv2d(y, self.scale * self.mask, self.bias, groups=y.shape[1])

    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        channels = self.scale.shape[0]
        dense = identity_kernel(channels, 1, 1) * (self.scale * self.mask)
        return sequence(self.first.weight, self.first.bias, dense, self.bias, 1)


class Ecb(Reparam):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.branches = nn.ModuleList(
            [Pointwise3x3(channels), *(PointwiseEdge(channels, mask) for mask in _MASKS)]
        )
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x)
        for branch in self.branches:
            y = y + branch(x)
        return self.act(y + x)

    def fused(self) -> nn.Module:
        kernel = self.conv3x3.weight + identity_kernel(self.conv3x3.in_channels, 1, 3)
        bias = self.conv3x3.bias
        for branch in self.branches:
            weight, shift = branch.kernel_bias()
            kernel, bias = kernel + weight, bias + shift
        return nn.Sequential(conv_of(kernel, bias, like=self.conv3x3), self.act)


class Ecbsr(nn.Module):
    """Upscales grey images by two."""

    def __init__(self, channels: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(*(Ecb(channels) for _ in range(depth)))
        self.tail = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.tail(self.body(self.head(x))) + x, 2)


def ecbsr() -> nn.Module:
    return Ecbsr()
