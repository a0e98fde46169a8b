"""The window of a convolution or pool: a fact of its geometry alone, whether it is linear or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.lift.conv_matmul import resolve_pads
from onnx_repfuse.lift.linear_op import Context

__all__ = ["Window", "any_window", "fits", "has_window", "kernel_of", "window_of"]


class Window(NamedTuple):
    """Per spatial axis: taps, stride, and the slack of `floor((n + slack) / stride) + 1` positions; all pads."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    slack: tuple[int, ...]
    pads: tuple[int, ...]


def has_window(node: gs.Node) -> bool:
    """Whether a node slides a window over space: a convolution or a pool."""
    return node.op == "Conv" or operator(node).has_window


def kernel_of(scope: Scope, node: gs.Node) -> tuple[int, ...]:
    """The taps of a convolution or pool per spatial axis; () where they are not known."""
    kernel = node.attrs.get("kernel_shape")
    if kernel is None and node.op == "Conv":
        return (static(scope.shape(optional_input(node, 1))) or ())[2:]
    return tuple(kernel or ())


def window_of(context: Context, node: gs.Node) -> Window | None:
    """The window of a node; None where it has none, or its positions are not certain at every size.

    With ceil_mode, there may be a window more; and runtimes count a pool's window that is larger than its input, which
    they cut, where the stride is larger than what is missing. Automatic pads are resolved, where they are known.
    """
    window = any_window(context, node)
    is_certain = window is not None and (
        node.op == "Conv" or fits(context, node.inputs[0].name, window.slack)
    )
    return window if is_certain else None


def fits(context: Context, name: str, slack: Sequence[int]) -> bool:
    """Whether a window of that slack lies within a tensor and its pads, at every size that is possible."""
    size = context.size(name, len(slack)) or (1,) * len(slack)
    return all(positions + more >= 0 for positions, more in zip(size, slack, strict=True))


def any_window(context: Context, node: gs.Node) -> Window | None:
    """As `window_of`, also where it may be larger than its input."""
    if not has_window(node) or node.attrs.get("ceil_mode", 0) or len(node.outputs) != 1:
        return None
    kernel = kernel_of(context.scope, node)
    rank = len(kernel)
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    if not kernel or not len(strides) == len(dilations) == rank or min(*kernel, *strides, *dilations) < 1:
        return None
    is_automatic = str(node.attrs.get("auto_pad") or "NOTSET").startswith("SAME")
    if is_automatic and node.op != "Conv" and max(dilations) > 1:
        return None  # runtimes pad for the window without its dilation
    pads = resolve_pads(context, node, kernel)
    if not isinstance(pads, tuple) or len(pads) != 2 * rank:
        return None
    axes = zip(pads[:rank], pads[rank:], kernel, dilations, strict=True)
    slack = tuple(begin + end - step * (taps - 1) - 1 for begin, end, taps, step in axes)
    return Window(kernel, strides, slack, pads)
