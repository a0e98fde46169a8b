"""Low-rank adapters as trained, `x W + s (x A) B`, on Linear layers and on a Conv; merged for deployment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.nets.fusing import Reparam


class LoraLinear(Reparam):
    def __init__(
        self, inputs: int, outputs: int, rank: int = 4, scaling: float = 0.5, bias: bool = True
    ) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=bias)
        self.lora_a = nn.Linear(inputs, rank, bias=False)
        self.lora_b = nn.Linear(rank, outputs, bias=False)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x)) * self.scaling

    def fused(self) -> nn.Module:
        self.base.weight += self.scaling * self.lora_b.weight @ self.lora_a.weight
        return self.base


class LoraConv(Reparam):
    """A 3x3 Conv whose adapter is a 3x3 to few channels, then a 1x1."""

    def __init__(self, inputs: int, outputs: int, rank: int = 4, scaling: float = 0.5) -> None:
        super().__init__()
        self.base = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.lora_a = nn.Conv2d(inputs, rank, 3, padding=1, bias=False)
        self.lora_b = nn.Conv2d(rank, outputs, 1, bias=False)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x)) * self.scaling

    def fused(self) -> nn.Module:
        delta = torch.einsum("or,rihw->oihw", self.lora_b.weight[:, :, 0, 0], self.lora_a.weight)
        self.base.weight += self.scaling * delta
        return self.base


class Block(nn.Module):
    """One transformer layer; the adapters sit on the query, the value and the feed-forward layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = LoraLinear(width, width), LoraLinear(width, width)
        self.key = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up = LoraLinear(width, 2 * width)
        self.down = LoraLinear(2 * width, width, bias=False)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        weights = (self.query(y) @ self.key(y).transpose(-2, -1) * y.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out(weights @ self.value(y))
        return x + self.down(self.act(self.up(self.norm2(x))))


class LoraNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU(), LoraConv(width, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = LoraLinear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(1))


def lora() -> nn.Module:
    return LoraNet()
