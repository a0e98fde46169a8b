"""The steps of every author's conversion: a Conv with its BatchNorm, a padded kernel, an identity as a kernel."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional


class Reparam(nn.Module):
    """A block whose author replaces it by `fused()` before deployment."""

    def fused(self) -> nn.Module:
        raise NotImplementedError


@torch.no_grad()
def deploy(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `Reparam` is replaced by what its author deploys."""

    def walk(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            setattr(parent, name, child.fused() if isinstance(child, Reparam) else child)
            walk(getattr(parent, name))

    holder = nn.ModuleList([deepcopy(model)])
    walk(holder)
    return holder[0].eval()


class ConvBN(Reparam):
    """Conv without bias, BatchNorm, perhaps an activation; `same` padding for odd kernels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
        act: nn.Module | None = None,
        dilation: int = 1,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, (height, width), stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fused(self) -> nn.Module:
        conv = conv_of(*fuse_bn(self.conv, self.bn), like=self.conv)
        return conv if isinstance(self.act, nn.Identity) else nn.Sequential(conv, self.act)


def bn_scale_shift(bn: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode is `scale * x + shift`."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return scale, bn.bias - bn.running_mean * scale


def fuse_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The kernel and bias of one Conv that replaces both."""
    scale, shift = bn_scale_shift(bn)
    bias = shift if conv.bias is None else shift + scale * conv.bias
    return conv.weight * scale[:, None, None, None], bias


def identity_kernel(channels: int, groups: int, kernel: int) -> Tensor:
    """`x` itself, as a Conv of `kernel` x `kernel`."""
    width = channels // groups
    weight = torch.zeros(channels, width, kernel, kernel)
    weight[torch.arange(channels), torch.arange(channels) % width, kernel // 2, kernel // 2] = 1
    return weight


def pad_kernel(weight: Tensor, kernel: int) -> Tensor:
    """A kernel centred in a larger one of zeros (both odd along each axis)."""
    height, width = (kernel - weight.shape[2]) // 2, (kernel - weight.shape[3]) // 2
    return functional.pad(weight, [width, width, height, height])


def dilate_kernel(weight: Tensor, dilation: int) -> Tensor:
    """The dense kernel of a dilated one."""
    channels, width, height, _ = weight.shape
    side = dilation * (height - 1) + 1
    dense = torch.zeros(channels, width, side, side)
    dense[:, :, ::dilation, ::dilation] = weight
    return dense


def conv_of(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """A Conv of this kernel and bias, with the stride, dilation and groups of `like`, and pads for a larger kernel."""
    grown = [
        dilation * (new - old) // 2
        for new, old, dilation in zip(weight.shape[2:], like.kernel_size, like.dilation, strict=True)
    ]
    padding = tuple(pad + more for pad, more in zip(like.padding, grown, strict=True))
    conv = nn.Conv2d(
        like.in_channels,
        weight.shape[0],
        tuple(weight.shape[2:]),
        like.stride,
        padding,
        like.dilation,
        like.groups,
    )
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)
    return conv
