"""Blocks with a 3x3 beside a 1x1: PP-YOLOE, QARepVGG, YOLOv9's RepConv, YOLOv10's RepVGGDW, YOLOv7's implicit head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.fusing import ConvBN, Reparam, conv_of, fuse_bn, identity_kernel, pad_kernel


class AlphaRepVggBlock(Reparam):
    """PP-YOLOE's RepVggBlock: `act(conv3x3(x) + alpha * conv1x1(x))`, where alpha is a learned scalar."""

    def __init__(self, channels: int, alpha: float = 0.7) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 3)
        self.conv2 = ConvBN(channels, channels, 1)
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.alpha * self.conv2(x))

    def fused(self) -> nn.Module:
        kernel, bias = fuse_bn(self.conv1.conv, self.conv1.bn)
        kernel1, bias1 = fuse_bn(self.conv2.conv, self.conv2.bn)
        kernel, bias = kernel + self.alpha * pad_kernel(kernel1, 3), bias + self.alpha * bias1
        return nn.Sequential(conv_of(kernel, bias, like=self.conv1.conv), self.act)


class CspRepStage(nn.Module):
    """The CSP stage of PP-YOLOE's CSPRepResNet: half the channels pass residual RepVgg blocks; effective SE."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        middle = (inputs + outputs) // 2
        self.down = ConvBN(inputs, middle, 3, stride=2, act=nn.SiLU())
        half = middle // 2
        self.conv1 = ConvBN(middle, half, act=nn.SiLU())
        self.conv2 = ConvBN(middle, half, act=nn.SiLU())
        self.conv3 = ConvBN(middle, outputs, act=nn.SiLU())
        self.before = nn.ModuleList(ConvBN(half, half, 3, act=nn.SiLU()) for _ in range(depth))
        self.blocks = nn.ModuleList(AlphaRepVggBlock(half, alpha=0.7 - 0.2 * i) for i in range(depth))
        self.attention = nn.Conv2d(middle, middle, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        left, right = self.conv1(x), self.conv2(x)
        for before, block in zip(self.before, self.blocks, strict=True):
            right = right + block(before(right))
        x = torch.cat([left, right], dim=1)
        return self.conv3(x * functional.hardsigmoid(self.attention(x.mean((2, 3), keepdim=True))))


def ppyoloe() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, stride=2, act=nn.SiLU()), CspRepStage(8, 16, depth=2), CspRepStage(16, 24, depth=1)
    )


class QARepVggBlock(Reparam):
    """QARepVGG: `act(bn(bn(conv3x3(x)) + alpha * conv1x1(x) + x))`; the 1x1 has no BatchNorm of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3 = ConvBN(inputs, outputs, 3, stride)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride)
        self.alpha = nn.Parameter(torch.tensor(0.8))
        self.identity = inputs == outputs and stride == 1
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(x) + self.alpha * self.conv1(x)
        return self.act(self.bn(y + x if self.identity else y))

    def fused(self) -> nn.Module:
        like = self.conv3.conv
        kernel, bias = fuse_bn(like, self.conv3.bn)
        kernel = kernel + self.alpha * pad_kernel(self.conv1.weight, 3)
        if self.identity:
            kernel = kernel + identity_kernel(like.in_channels, 1, 3)
        inner = conv_of(kernel, bias + self.alpha * self.conv1.bias, like=like)
        return nn.Sequential(conv_of(*fuse_bn(inner, self.bn), like=like), self.act)


def qarepvgg() -> nn.Module:
    return nn.Sequential(
        QARepVggBlock(3, 12, stride=2),
        QARepVggBlock(12, 12),
        QARepVggBlock(12, 24, stride=2),
        QARepVggBlock(24, 24),
        QARepVggBlock(24, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class RepConv(Reparam):
    """YOLOv6, v7 and v9: `silu(conv3x3(x) + conv1x1(x) [+ bn(x)])`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, identity: bool = False) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs, outputs, 3, stride)
        self.conv2 = ConvBN(inputs, outputs, 1, stride)
        self.bn = nn.BatchNorm2d(inputs) if identity else None
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.bn is None else self.bn(x)
        return self.act(self.conv1(x) + self.conv2(x) + identity)

    def fused(self) -> nn.Module:
        kernel, bias = fuse_bn(self.conv1.conv, self.conv1.bn)
        kernel1, bias1 = fuse_bn(self.conv2.conv, self.conv2.bn)
        kernel, bias = kernel + pad_kernel(kernel1, 3), bias + bias1
        if self.bn is not None:
            unit = conv_of(
                identity_kernel(self.bn.num_features, 1, 3), torch.zeros_like(bias), self.conv1.conv
            )
            kernel2, bias2 = fuse_bn(unit, self.bn)
            kernel, bias = kernel + kernel2, bias + bias2
        return nn.Sequential(conv_of(kernel, bias, like=self.conv1.conv), self.act)


class RepCsp(nn.Module):
    """YOLOv9's RepCSP: residual bottlenecks of RepConv and Conv on one of two 1x1 paths."""

    def __init__(self, inputs: int, outputs: int, depth: int = 1) -> None:
        super().__init__()
        hidden = outputs // 2
        self.cv1 = ConvBN(inputs, hidden, act=nn.SiLU())
        self.cv2 = ConvBN(inputs, hidden, act=nn.SiLU())
        self.cv3 = ConvBN(2 * hidden, outputs, act=nn.SiLU())
        self.rep = nn.ModuleList(RepConv(hidden, hidden) for _ in range(depth))
        self.after = nn.ModuleList(ConvBN(hidden, hidden, 3, act=nn.SiLU()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        for rep, after in zip(self.rep, self.after, strict=True):
            y = y + after(rep(y))
        return self.cv3(torch.cat((y, self.cv2(x)), 1))


class RepNcspElan(nn.Module):
    """YOLOv9's RepNCSPELAN4."""

    def __init__(self, inputs: int, outputs: int, middle: int, inner: int) -> None:
        super().__init__()
        self.cv1 = ConvBN(inputs, middle, act=nn.SiLU())
        self.cv2 = nn.Sequential(RepCsp(middle // 2, inner), ConvBN(inner, inner, 3, act=nn.SiLU()))
        self.cv3 = nn.Sequential(RepCsp(inner, inner), ConvBN(inner, inner, 3, act=nn.SiLU()))
        self.cv4 = ConvBN(middle + 2 * inner, outputs, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.append(self.cv2(parts[-1]))
        parts.append(self.cv3(parts[-1]))
        return self.cv4(torch.cat(parts, 1))


class ADown(nn.Module):
    """YOLOv9's downsampling: an AveragePool, halves of the channels through a strided 3x3 and a MaxPool with 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1 = ConvBN(inputs // 2, outputs // 2, 3, 2, act=nn.SiLU())
        self.cv2 = ConvBN(inputs // 2, outputs // 2, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.avg_pool2d(x, 2, 1, 0).chunk(2, 1)
        return torch.cat((self.cv1(left), self.cv2(functional.max_pool2d(right, 3, 2, 1))), 1)


def yolov9() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.SiLU()),
        RepConv(8, 16, stride=2),
        RepNcspElan(16, 24, middle=16, inner=12),
        ADown(24, 24),
        RepConv(24, 24, identity=True),
        nn.Conv2d(24, 20, 1),
    )


class RepVggDw(Reparam):
    """YOLOv10's RepVGGDW: a depthwise 7x7 beside a depthwise 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 7, groups=channels)
        self.conv1 = ConvBN(channels, channels, 3, groups=channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.conv1(x))

    def fused(self) -> nn.Module:
        kernel, bias = fuse_bn(self.conv.conv, self.conv.bn)
        kernel1, bias1 = fuse_bn(self.conv1.conv, self.conv1.bn)
        return nn.Sequential(
            conv_of(kernel + pad_kernel(kernel1, 7), bias + bias1, like=self.conv.conv), self.act
        )


class Cib(nn.Module):
    """YOLOv10's compact inverted block with the large kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.cv1 = nn.Sequential(
            ConvBN(channels, channels, 3, groups=channels, act=nn.SiLU()),
            ConvBN(channels, hidden, act=nn.SiLU()),
            RepVggDw(hidden),
            ConvBN(hidden, channels, act=nn.SiLU()),
            ConvBN(channels, channels, 3, groups=channels, act=nn.SiLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv1(x)


class Psa(nn.Module):
    """YOLOv10's partial self-attention: half of the channels attend; a depthwise Conv is their position encoding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.half = half
        self.cv1 = ConvBN(channels, channels, act=nn.SiLU())
        self.qkv = ConvBN(half, 2 * half)
        self.pe = ConvBN(half, half, 3, groups=half)
        self.proj = ConvBN(half, half)
        self.ffn = nn.Sequential(ConvBN(half, channels, act=nn.SiLU()), ConvBN(channels, half))
        self.cv2 = ConvBN(channels, channels, act=nn.SiLU())

    def attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        quarter = self.half // 2
        q, k, v = self.qkv(x).flatten(2).split([quarter, quarter, self.half], dim=1)
        weights = (q.transpose(1, 2) @ k * quarter**-0.5).softmax(-1)
        y = (v @ weights.transpose(1, 2)).view(batch, channels, height, width)
        return self.proj(y + self.pe(v.reshape(batch, channels, height, width)))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.cv1(x).split((self.half, self.half), dim=1)
        right = right + self.attention(right)
        right = right + self.ffn(right)
        return self.cv2(torch.cat((left, right), 1))


def yolov10() -> nn.Module:
    spatial_channel_down = nn.Sequential(ConvBN(16, 24, act=nn.SiLU()), ConvBN(24, 24, 3, 2, groups=24))
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act=nn.SiLU()),
        ConvBN(8, 16, 3, 2, act=nn.SiLU()),
        Cib(16),
        spatial_channel_down,
        Cib(24),
        Psa(24),
        nn.Conv2d(24, 20, 1),
    )


class ImplicitHead(Reparam):
    """YOLOv7's IDetect head: a learned constant is added before a 1x1 Conv, another is multiplied after it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ia = nn.Parameter(0.2 * torch.randn(1, inputs, 1, 1))
        self.m = nn.Conv2d(inputs, outputs, 1)
        self.im = nn.Parameter(1 + 0.2 * torch.randn(1, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.im * self.m(x + self.ia)

    def fused(self) -> nn.Module:
        scale = self.im.flatten()
        bias = (self.m.bias + (self.m.weight * self.ia).sum((1, 2, 3))) * scale
        return conv_of(self.m.weight * scale[:, None, None, None], bias, like=self.m)


def yolov7() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 12, 3, 2, act=nn.SiLU()),
        RepConv(12, 24, stride=2),
        RepConv(24, 24, identity=True),
        ImplicitHead(24, 21),
    )
