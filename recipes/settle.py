"""Networks without trained weights, whose outputs depend on their inputs nevertheless."""

from __future__ import annotations

import torch

__all__ = ["settle"]


def settle(network: torch.nn.Module, pictures: torch.Tensor) -> None:
    """Give each BatchNormalization random factors, and the statistics that it sees for these pictures.

    Activations fade from layer to layer of a network as it is initialized, until its outputs are constants: those
    cannot show a fault.
    """
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(pictures)
    network.eval()
