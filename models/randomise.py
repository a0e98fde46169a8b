"""Make an untrained network look trained: no scale of one, no bias of zero, activations of order one.

An untrained network hides errors. A BatchNorm with mean 0 and variance 1 can be dropped unnoticed. A layer scale of
1e-5 hides the whole branch behind it. Careless random statistics multiply from block to block until the outputs reach
1e15 and every difference looks like rounding. So `randomise` first draws the affine parameters. Then it runs a batch
through the network, and each BatchNorm takes the statistics of the tensor that *it really receives*, moved a little.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MEAN_OFF = 0.1  # of a standard deviation
_VARIANCE_OFF = 0.8, 1.25
_VARIANCE_FLOOR = 0.01  # of the mean square, because pooled features of random images hardly differ
_NEGATIVE_SCALES = 0.1  # the share of BatchNorm scales below zero; trained networks have some


def randomise(model: nn.Module, inputs: Tensor, seed: int = 0) -> nn.Module:
    """Replace every trivial parameter of `model`, in place, and measure its BatchNorm statistics on `inputs`."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for module in model.modules():
            _draw_affine(module, generator)
        for parameter in model.parameters():
            _draw_if_constant(parameter, generator)
        _measure_statistics(model, inputs, generator)
    return model


def images(batch: int, channels: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    """Mixed-sign noise at several scales, so that images differ after pooling too; about unit variance."""
    width = width or height
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(batch, channels, height, width)
    scales = [size for size in (1, 4, 16, height) if size <= height]
    for size in scales:
        noise = torch.randn(batch, channels, size, size, generator=generator)
        total += functional.interpolate(noise, size=(height, width), mode="nearest")
    return total / len(scales) ** 0.5


def _uniform(shape: torch.Size, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _draw_affine(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, (*_BATCH_NORM, nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
        scale = _uniform(module.weight.shape, 0.5, 1.5, generator)
        negative = torch.rand(scale.shape, generator=generator) < _NEGATIVE_SCALES
        module.weight.copy_(torch.where(negative, -scale, scale))
        module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
    if "LayerScale" in type(module).__name__:
        for gamma in module.parameters(recurse=False):
            gamma.copy_(_uniform(gamma.shape, 0.5, 1.5, generator))


def _draw_if_constant(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Replace biases of zero, scales of one and layer scales of 1e-5 that are plain parameters."""
    if not parameter.requires_grad or not parameter.is_floating_point() or parameter.numel() == 0:
        return
    value = float(parameter.flatten()[0])
    if value == 0 and bool((parameter == 0).all()):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    elif bool((parameter == value).all()):
        parameter.copy_(_uniform(parameter.shape, 0.5, 1.5, generator))


def _round(x: Tensor) -> Tensor:
    """Round to ten bits, so that the last bits of another processor do not change a rebuilt file."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 1024).round() / 1024, exponent)


def _measure_statistics(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> None:
    measured: set[int] = set()

    def measure(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if id(module) in measured or module.running_mean is None:
            return
        measured.add(id(module))
        (x,) = arguments
        space = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, space, correction=0)
        variance = torch.maximum(variance, _VARIANCE_FLOOR * (variance + mean**2))
        variance = variance.clamp_min(1e-3 * float(variance.mean()) + 1e-6)
        off = torch.randn(mean.shape, generator=generator)
        module.running_mean.copy_(_round(mean + _MEAN_OFF * variance.sqrt() * off))
        module.running_var.copy_(_round(variance * _uniform(variance.shape, *_VARIANCE_OFF, generator)))

    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, _BATCH_NORM)]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
