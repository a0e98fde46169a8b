"""The window of a convolution or pool: a fact of its geometry alone, whether it is linear or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.facts import all_pads, auto_pad, per_axis
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.records.reasons import Reason

__all__ = [
    "Window",
    "any_window",
    "fits",
    "has_window",
    "holds_a_position",
    "kernel_of",
    "proved_size",
    "resolve_pads",
    "window_of",
]


class Window(NamedTuple):
    """Per spatial axis: taps, stride, and the slack of `floor((n + slack) / stride) + 1` positions; all pads."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    slack: tuple[int, ...]
    pads: tuple[int, ...]


def has_window(node: gs.Node) -> bool:
    """Whether a node slides a window over its input: a convolution or a pool, no ConvTranspose."""
    facts = operator(node)
    return facts.has_window and not facts.scatters


def kernel_of(scope: Scope, node: gs.Node) -> tuple[int, ...]:
    """The taps of a convolution or pool per spatial axis; () where they are not known."""
    kernel = node.attrs.get("kernel_shape")
    if kernel is None and node.op == "Conv":
        return (static(scope.shape(optional_input(node, 1))) or ())[2:]
    return tuple(kernel or ())


def window_of(scope: Scope, node: gs.Node) -> Window | None:
    """The window of a node; None where it has none, or its positions are not certain at every size.

    With ceil_mode, there may be a window more; and runtimes count a pool's window that is larger than its input, which
    they cut, where the stride is larger than what is missing. Automatic pads are resolved, where they are known.
    """
    window = any_window(scope, node)
    if window is None or node.op == "Conv":  # a Conv that is larger than its input does not run
        return window
    return window if fits(scope, node.inputs[0].name, window.slack) else None


def fits(scope: Scope, name: str, slack: Sequence[int]) -> bool:
    """Whether a window of that slack lies within a tensor and its pads, at every size that is possible."""
    size = proved_size(scope, name, len(slack)) or (1,) * len(slack)
    return all(positions + more >= 0 for positions, more in zip(size, slack, strict=True))


def holds_a_position(pool: gs.Node, kernel: Sequence[int], pads: Sequence[int]) -> bool:
    """Whether no window of a pool lies in its padding: a dilated one may step over all of the tensor.

    Args:
        kernel: taps per spatial axis.
        pads: all begins, then all ends.
    """
    rounds_up = bool(pool.attrs.get("ceil_mode", 0))
    if not any(pads) and not rounds_up:
        return True
    if max(per_axis(pool.attrs, "dilations", len(kernel))) > 1:
        return False
    # The window that ceil_mode adds begins up to a stride behind the last one that fits.
    late = per_axis(pool.attrs, "strides", len(kernel)) if rounds_up else (1,) * len(kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    axes = zip(begins, ends, late, kernel, strict=True)
    return all(begin < taps and end + more <= taps for begin, end, more, taps in axes)


def any_window(scope: Scope, node: gs.Node, *, rounds_up: bool = False) -> Window | None:
    """As `window_of`, also where it may be larger than its input.

    Args:
        rounds_up: also of a pool with ceil_mode, which may have a window more.
    """
    if not has_window(node) or len(node.outputs) != 1:
        return None
    if node.attrs.get("ceil_mode", 0) and not rounds_up:
        return None
    kernel = kernel_of(scope, node)
    rank = len(kernel)
    strides, dilations = per_axis(node.attrs, "strides", rank), per_axis(node.attrs, "dilations", rank)
    if not _are_sound(kernel, strides, dilations):
        return None
    if max(dilations) > 1 and _pads_undilated(node):
        return None
    try:
        pads = resolve_pads(scope, node, kernel)
    except Inexact:
        return None
    if len(pads) != 2 * rank:
        return None
    axes = zip(pads[:rank], pads[rank:], kernel, dilations, strict=True)
    slack = tuple(begin + end - step * (taps - 1) - 1 for begin, end, taps, step in axes)
    return Window(kernel, strides, slack, pads)


def _are_sound(kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> bool:
    """Whether there are taps, and a stride and a dilation of 1 or more for each axis: others make no sense."""
    if not kernel or {len(strides), len(dilations)} != {len(kernel)}:
        return False
    return min(*kernel, *strides, *dilations) > 0


def _pads_undilated(node: gs.Node) -> bool:
    """Whether runtimes pad for the window without its dilation, whatever the standard says: pools with SAME."""
    return node.op != "Conv" and auto_pad(node.attrs).startswith("SAME")


def resolve_pads(scope: Scope, node: gs.Node, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The pads of a Conv or pool, all begins, then all ends, with auto_pad resolved (ONNX spec, operator Conv).

    Raises Inexact where they are not known.
    """
    rank = len(kernel)
    mode, pads = auto_pad(node.attrs), all_pads(node.attrs, rank)
    if mode == "NOTSET":
        return pads
    if any(pads):
        raise Inexact(Reason.UNSUPPORTED, f"it has auto_pad={mode} and pads, which exclude each other")
    if mode == "VALID":
        return (0,) * (2 * rank)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Inexact(Reason.UNSUPPORTED, f"auto_pad={mode} is unknown")
    totals = _same_padding(scope, node, kernel)
    smaller = [total // 2 for total in totals]
    larger = [total - total // 2 for total in totals]
    # An odd position goes to the end (UPPER) or to the begin (LOWER).
    return (*smaller, *larger) if mode == "SAME_UPPER" else (*larger, *smaller)


def _same_padding(scope: Scope, node: gs.Node, kernel: tuple[int, ...]) -> list[int]:
    """What SAME pads along each axis, on both sides together, to give ceil(size / stride) positions."""
    rank = len(kernel)
    strides, dilations = per_axis(node.attrs, "strides", rank), per_axis(node.attrs, "dilations", rank)
    size = proved_size(scope, node.inputs[0].name, rank)
    totals = []
    for axis in range(rank):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if strides[axis] == 1:  # as many positions as before, whatever the size
            totals.append(reach - 1)
            continue
        if size is None:
            raise Inexact(Reason.SHAPE, "auto_pad with a stride needs a known size")
        outputs = -(-size[axis] // strides[axis])
        totals.append(max((outputs - 1) * strides[axis] + reach - size[axis], 0))
    return totals


def proved_size(scope: Scope, name: str, rank: int) -> tuple[int, ...] | None:
    """Proved positions per spatial axis of a (N, C, *space) tensor with `rank` spatial axes."""
    shape = scope.shape(name)
    return static(shape[2:]) if shape is not None and len(shape) == rank + 2 else None
