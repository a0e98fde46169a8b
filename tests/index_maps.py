"""Nodes that choose, cut and shuffle channels and positions, as exporters write them."""

from __future__ import annotations

import numpy as np

from tests.build import Net

END = np.iinfo(np.int64).max


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def gather(net: Net, x: str, *channels: int, axis: int = 1) -> str:
    return str(net.op("Gather", x, ints(net, *channels), axis=axis))


def cut(net: Net, x: str, axes: list[int], starts: list[int], ends: list[int], steps: list[int]) -> str:
    return str(net.op("Slice", x, *(ints(net, *values) for values in (starts, ends, axes, steps))))


def split(net: Net, x: str, *sizes: int) -> list[str]:
    return list(net.op("Split", x, ints(net, *sizes), outputs=len(sizes), axis=1))


def shaped(net: Net, x: str, *sizes: int) -> str:
    return str(net.op("Reshape", x, ints(net, *sizes)))


def shuffled(net: Net, x: str, channels: int, groups: int, *space: int) -> str:
    """ShuffleNet's channel_shuffle."""
    split = shaped(net, x, -1, groups, channels // groups, *space)
    return shaped(net, net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), -1, channels, *space)


def asked(net: Net, x: str, *sizes: int | tuple[int, int], casts: int = 0) -> str:
    """A list of numbers and of sizes of x, (axis, divisor), as the TorchScript exporter computes it.

    It puts two Casts to the same type behind each quotient.
    """
    parts = []
    for size in sizes:
        if isinstance(size, int):
            parts.append(ints(net, size))
            continue
        axis, divisor = size
        one = net.op("Gather", net.op("Shape", x), net.const(np.array(axis)))
        if divisor > 1:
            one = net.op("Div", one, net.const(np.array(divisor)))
            for _ in range(casts):
                one = net.op("Cast", one, to=7)
        parts.append(net.op("Unsqueeze", one, ints(net, 0)))
    return str(net.op("Concat", *parts, axis=0))
