"""Channels moved to positions by Reshape, Transpose and Reshape, as the DepthToSpace that they are.

(n, C*r*r, h, w) -> (n, C, r, r, h, w) -> (n, C, h, r, w, r) -> (n, C, h*r, w*r)        pixel_shuffle, mode CRD
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import known_dims
from onnx_repfuse.graph.extents import Dims
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift.rearranged import Part, Rearranged

__all__ = ["pixel_shuffle"]

MODES_SINCE = 11  # the opset that brought the order CRD; before, DepthToSpace is DCR
TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)  # of which ONNX Runtime has a DepthToSpace


def pixel_shuffle(scope: Scope, source: str, node: gs.Node, tensor: Rearranged) -> View | None:
    """The DepthToSpace that nodes are; None if they are none.

    Args:
        source: what the first of them reads.
        node: the last of them.
        tensor: its output, as parts of the axes of the source.
    """
    dims, output = known_dims(scope)[source], node.outputs[0].name
    if len(dims) != 4 or not isinstance(dims[1], int) or scope.data_type(source) not in TYPES:
        return None
    block = 0 if tensor.chosen else _block(tensor)
    if block < 2 or dims[1] % (block * block):
        return None
    channels = dims[1] // (block * block)
    modes = ("DCR", "CRD") if scope.opset >= MODES_SINCE else ("DCR",)
    mode = next((mode for mode in modes if tensor.axes == _joined(dims, block, mode).axes), None)
    if mode is None:
        return None
    attributes = {"blocksize": block} if scope.opset < MODES_SINCE else {"blocksize": block, "mode": mode}
    return View(
        new_node("DepthToSpace", node.name, attributes, [source], [output]),
        source,
        output,
        dims[1],
        channels,
        (1, 2),
        (1, 2),
        dims=4,
        entry=None,
        target=None,
        listed_in="",
        start=scope.shape(source) or (None,) * 4,
        end=scope.shape(output) or (None,) * 4,
        like="",
        is_copy=False,
        keeps_constants=True,
        sizes=dims,
        sizes_behind=known_dims(scope).get(output, ()),
    )


def _block(tensor: Rearranged) -> int:
    """How many channels become neighbours along the height; 0 if none do."""
    parts = tensor.axes[2] if len(tensor.axes) == 4 else ()
    last = parts[-1] if parts else Part(0, 0)
    return last.size if last.axis == 1 and isinstance(last.size, int) else 0


def _joined(dims: Dims, block: int, mode: str) -> Rearranged:
    """What a DepthToSpace makes of a tensor."""
    first = Rearranged.of(dims)
    assert isinstance(dims[1], int)
    channels = dims[1] // (block * block)
    # channel c of row i and column j: (i, j, c) in the order DCR, (c, i, j) in CRD
    height, width, own = (block * channels, channels, 1) if mode == "DCR" else (block, 1, block * block)
    kept = () if channels == 1 else (Part(1, channels, own),)
    rows, columns = (*first.axes[2], Part(1, block, height)), (*first.axes[3], Part(1, block, width))
    return Rearranged((first.axes[0], kept, rows, columns), {})
