"""The Diverse Branch Block (arXiv 2103.13425): four branches, two of which pad with their own BatchNorm's bias.

A sequence 1x1-BN -> kxk is one kxk Conv only if the pixels that the kxk reads outside the image are what the 1x1-BN
would compute from zeros there: its bias. So the kxk has no padding, and a padding with that value stands between the
two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.fusing import ConvBN, Reparam, bn_scale_shift, conv_of, fuse_bn, identity_kernel, pad_kernel

Border = Callable[[Tensor, Tensor, int], Tensor]


def assigned(y: Tensor, value: Tensor, p: int) -> Tensor:
    """Pad as the authors do: zeros on all sides, then the four sides assigned."""
    y = functional.pad(y, [p] * 4)
    y[:, :, 0:p, :] = value
    y[:, :, -p:, :] = value
    y[:, :, :, 0:p] = value
    y[:, :, :, -p:] = value
    return y


def concatenated(y: Tensor, value: Tensor, p: int) -> Tensor:
    """Pad by concatenation: rows above and below, then columns at both sides.

    For exporters that cannot export assignments.
    """
    row = value.expand(y.shape[0], -1, p, y.shape[3])
    y = torch.cat([row, y, row], dim=2)
    column = value.expand(y.shape[0], -1, y.shape[2], p)
    return torch.cat([column, y, column], dim=3)


def shifted(y: Tensor, value: Tensor, p: int) -> Tensor:
    """Pad the difference to the value with zeros, then add the value."""
    return functional.pad(y - value, [p] * 4) + value


class BnAndPad(nn.Module):
    """BatchNorm, then padding with the value that it computes from zero."""

    def __init__(self, channels: int, pad: int, border: Border) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad, self.border = pad, border

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        _, value = bn_scale_shift(self.bn)
        return self.border(y, value.view(1, -1, 1, 1), self.pad)


class IdentityBased1x1(nn.Module):
    """A 1x1 Conv that learns the difference to the identity; the graph contains the sum."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        nn.init.zeros_(self.conv.weight)
        self.register_buffer("unit", identity_kernel(channels, groups, 1))
        self.groups = groups

    def kernel(self) -> Tensor:
        return self.conv.weight + self.unit

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel(), None, groups=self.groups)


class DiverseBranchBlock(Reparam):
    """kxk-BN + 1x1-BN + (1x1-BN -> kxk-BN) + (1x1-BN -> AveragePool-BN), then an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        border: Border = assigned,
    ) -> None:
        super().__init__()
        pad = kernel // 2
        self.origin = ConvBN(inputs, outputs, kernel, stride, groups)
        self.pointwise = ConvBN(inputs, outputs, 1, stride, groups)

        self.before_pool = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)
        self.pool_pad = BnAndPad(outputs, pad, border)
        self.pool = nn.AvgPool2d(kernel, stride)
        self.pool_bn = nn.BatchNorm2d(outputs)

        self.first = IdentityBased1x1(inputs, groups)
        self.first_pad = BnAndPad(inputs, pad, border)
        self.second = ConvBN(inputs, outputs, kernel, stride, groups, padding=0)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin(x)
        y = y + self.pointwise(x)
        y = y + self.pool_bn(self.pool(self.pool_pad(self.before_pool(x))))
        y = y + self.second(self.first_pad(self.first(x)))
        return self.act(y)

    def fused(self) -> nn.Module:
        conv = self.origin.conv
        size, groups = conv.kernel_size[0], conv.groups
        kernel, bias = fuse_bn(conv, self.origin.bn)
        kernel1, bias1 = fuse_bn(self.pointwise.conv, self.pointwise.bn)

        mean = identity_kernel(conv.out_channels, groups, size).amax((2, 3), keepdim=True) / size**2
        scale, shift = bn_scale_shift(self.pool_bn)
        average = mean.expand(-1, -1, size, size) * scale[:, None, None, None]
        kernel2, bias2 = sequence(*fuse_bn(self.before_pool, self.pool_pad.bn), average, shift, groups)

        scale, shift = bn_scale_shift(self.first_pad.bn)
        inner = self.first.kernel() * scale[:, None, None, None]
        kernel3, bias3 = sequence(inner, shift, *fuse_bn(self.second.conv, self.second.bn), groups)

        kernel = kernel + pad_kernel(kernel1, size) + kernel2 + kernel3
        return nn.Sequential(conv_of(kernel, bias + bias1 + bias2 + bias3, like=conv), self.act)


def sequence(k1: Tensor, b1: Tensor, k2: Tensor, b2: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """A 1x1 Conv and then a kxk one, as one kxk Conv, group by group."""
    kernels, biases = [], []
    for first, bias, second in zip(k1.chunk(groups), b1.chunk(groups), k2.chunk(groups), strict=True):
        kernels.append(functional.conv2d(second, first.permute(1, 0, 2, 3)))
        biases.append((second * bias[None, :, None, None]).sum((1, 2, 3)))
    return torch.cat(kernels), torch.cat(biases) + b2


def dbb() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.ReLU()),
        DiverseBranchBlock(8, 8),
        DiverseBranchBlock(8, 16, stride=2, groups=4),
    )


def dbb_dynamic() -> nn.Module:
    return DiverseBranchBlock(3, 8, kernel=5)


def dbb_borders() -> nn.Module:
    """The same block, padded in the two other ways."""
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.ReLU()),
        DiverseBranchBlock(8, 8, border=concatenated),
        DiverseBranchBlock(8, 16, stride=2, border=shifted),
        DiverseBranchBlock(16, 16, groups=4, border=concatenated),
        DiverseBranchBlock(16, 16, kernel=5, border=shifted),
    )
