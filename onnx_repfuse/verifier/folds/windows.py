"""The windows of a fold's nodes: how far they reach, in which strides, and whether beyond their input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from onnx_repfuse.verifier.session import input_at

__all__ = ["deepest_sum", "pads", "pads_half", "path", "window_of", "windows"]


def pads(node: onnx.NodeProto) -> bool:
    """Whether a node reads padding."""
    if node.op_type == "Pad":
        return True
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "pads" in attributes and any(attributes["pads"].ints):
        return True
    return "auto_pad" in attributes and attributes["auto_pad"].s.startswith(b"SAME")


def pads_half(model: onnx.ModelProto) -> bool:
    """Whether all windows may have half of themselves in padding, on every side; a ConvTranspose fits any size."""
    shapes = _stored_shapes(model)
    for node in model.graph.node:
        window = None if node.op_type == "ConvTranspose" else window_of(node, shapes)
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if window is None or ("auto_pad" in attributes and attributes["auto_pad"].s.startswith(b"SAME")):
            continue
        extents = window[0] * 2
        given = list(attributes["pads"].ints) if "pads" in attributes else [0] * len(extents)
        if any(2 * pad + 2 < extent for pad, extent in zip(given, extents, strict=False)):
            return False
    return True


def windows(model: onnx.ModelProto) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(extent, stride), each per axis, of each node with a kernel. A 3x3 kernel of dilation 2 has extent (5, 5)."""
    shapes = _stored_shapes(model)
    for node in model.graph.node:
        window = window_of(node, shapes)
        if window is not None:
            yield window


def _stored_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def path(model: onnx.ModelProto) -> tuple[int, int]:
    """(stride, extent) of what the last nodes read of the first through all windows between, of the axis where each is
    largest: two 3x3 of stride 2, one behind the other, are one of stride 4 and extent 7."""
    shapes = _stored_shapes(model)
    steps = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64}
    found: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        stride, extent = _largest_of_both([found[name] for name in node.input if name in found])
        extents, strides = window_of(node, shapes) or ((1,), (1,))
        stepped = steps.get(input_at(node, 4)) if node.op_type == "Slice" else None
        if stepped is not None:
            strides = tuple(map(abs, onnx.numpy_helper.to_array(stepped).ravel().tolist()))
        reached = stride * max(strides, default=1), extent + (max(extents) - 1) * stride
        found.update(dict.fromkeys(node.output, reached))
    return _largest_of_both(found.values())


def _largest_of_both(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The largest stride and the largest extent, at least 1."""
    strides, extents = zip(*pairs, (1, 1), strict=True)
    return max(strides), max(extents)


def window_of(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(extent, stride) of a node, each per axis; None if it has no kernel, or one of unknown shape.

    Args:
        shapes: of weights, by name: a Conv need not say its kernel's shape.
    """
    ints = {a.name: tuple(a.ints) for a in node.attribute if a.type == onnx.AttributeProto.INTS}
    kernel = ints.get("kernel_shape")
    if kernel is None and node.op_type in ("Conv", "ConvTranspose"):
        kernel = shapes.get(input_at(node, 1), ())[2:]
    if not kernel:
        return None
    dilations = ints.get("dilations") or (1,) * len(kernel)
    extents = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=False))
    return extents, ints.get("strides") or (1,) * len(kernel)


def deepest_sum(model: onnx.ModelProto) -> int:
    """The most channels that one output of a Conv, ConvTranspose, Gemm or MatMul of the model sums; at least 1."""
    shapes = _stored_shapes(model)
    deepest = 1
    for node in model.graph.node:
        shape = shapes.get(input_at(node, 1), ())
        if len(shape) < 2:
            continue
        if node.op_type == "Conv":  # (M, C / group, *kernel)
            deepest = max(deepest, shape[1])
        elif node.op_type == "MatMul":  # (..., K, N)
            deepest = max(deepest, shape[-2])
        elif node.op_type in ("ConvTranspose", "Gemm"):  # (C, M / group, *kernel); (K, N), or transposed
            deepest = max(deepest, *shape[:2])
    return deepest
