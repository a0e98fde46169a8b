"""What nodes prove of sizes and of positions assigned to, and what they leave open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.border.propagate import Propagator
from onnx_repfuse.lift.border.scatter_ranges import scatter_ranges
from onnx_repfuse.lift.border.symbolic_shape import shape_entries, size_key, sizes
from onnx_repfuse.lift.border.symbolic_tensor import AxisRange, NotProved
from onnx_repfuse.modelfile.document import Document
from tests.parts import graph, info, model, node

INTS = {f"i{n}": np.array([n], np.int64) for n in range(4)} | {"minus": np.array([-1], np.int64)}
SCALARS = {f"s{n}": np.array(n, np.int64) for n in range(2)}


@contextmanager
def lifting(nodes: Sequence[NodeProto], outputs: Sequence[str], **weights: object) -> Iterator[Context]:
    """The context of a graph that reads `x` (N, 2, H, W), a vector of ints `v` and a scalar `k`, all unknown."""
    inputs = [
        info("x", ["N", 2, "H", "W"]),
        info("v", [1], TensorProto.INT64),
        info("k", [], TensorProto.INT64),
    ]
    values = [helper.make_empty_tensor_value_info(name) for name in outputs]
    body = graph(list(nodes), values, {**INTS, **SCALARS, **weights}, inputs)
    with Document.from_model(model(body)) as document:
        yield Context(read_scopes(document)[0], {})


@pytest.mark.parametrize(("step", "first"), [("i1", 1), ("v", None)])
def test_the_first_row_of_a_slice_is_one_position_unless_its_step_may_be_negative(
    step: str, first: int | None
) -> None:
    with lifting([node("Slice", f"x i0 i1 i2 {step}", "y")], ["y"]) as context:
        assert sizes(context, "y", 4)[2] == first


def test_entries_of_a_shape_behind_where_and_equal() -> None:
    """As torch's legacy exporter replaces -1 in the shape of an Expand."""
    nodes = [
        node("Concat", "v i2 i3", "shape", axis=0),
        node("Equal", "shape minus", "is_open"),
        node("Equal", "shape minuses", "are_open"),
        node("Where", "are_open ones shape", "whole"),
    ]
    wide = {"minuses": np.full(3, -1), "ones": np.ones(3, np.int64)}
    with lifting(nodes, ["is_open", "whole"], **wide) as context:
        assert shape_entries(context, "whole") == [None, 2, 3]
        assert shape_entries(context, "are_open") == [None, 0, 0]
        assert shape_entries(context, "is_open") == [None] * 3  # broadcast


@pytest.mark.parametrize(("repeats", "is_kept"), [("i1", True), ("v", False)])
def test_a_tile_keeps_the_cells_of_an_axis_that_it_does_not_repeat(repeats: str, is_kept: bool) -> None:
    nodes = [node("Concat", f"i3 {repeats}", "counts", axis=0), node("Tile", "table counts", "y")]
    with lifting(nodes, ["y"], table=np.array([[1.0, 2.0, 3.0, 3.0, 3.0]], np.float32)) as context:
        tensor = Propagator(context).tensor_of("y")
    assert (tensor.source is None) == is_kept


def rows_of(shape: str = "x", step: str = "i1", **attributes: int) -> list[NodeProto]:
    """Indices of the first row of `x` with axis 2 first, as exporters write them for a size they do not know."""
    return [
        node("Transpose", "x", "t", perm=[2, 0, 1, 3]),
        node("Shape", shape, "shape", **attributes),
        node("Gather", "shape s" + ("1" if attributes else "0"), "size", axis=0),
        node("Range", "s0 size s1", "all"),
        node("Slice", f"all i0 i1 i0 {step}", "rows"),
        node("Unsqueeze", "rows minus", "indices"),
        node("Expand", "zero part", "updates"),
        node("ScatterND", "t indices updates", "y"),
    ]


@pytest.mark.parametrize(
    ("nodes", "is_proved"),
    [
        (rows_of("t"), True),
        (rows_of("x"), False),  # another axis
        (rows_of("t", "v"), False),  # the step may be another one
        (rows_of("t", start=1), False),
        (rows_of("t", end=-1), False),
    ],
)
def test_computed_indices_are_a_range_of_rows_only_if_all_of_it_is_proved(
    nodes: list[NodeProto], is_proved: bool
) -> None:
    weights = {"zero": np.zeros(1, np.float32), "part": np.ones(4, np.int64)}
    with lifting(nodes, ["y"], **weights) as context:
        scatter = context.scope.producer["y"]
        if is_proved:
            rows = scatter_ranges(context, scatter, [None] * 4, 1 << 10)
            assert rows == [AxisRange(length=1), *[AxisRange()] * 3]
        else:
            with pytest.raises(NotProved):
                scatter_ranges(context, scatter, [None] * 4, 1 << 10)


def test_sizes_with_equal_keys_are_equal() -> None:
    nodes = [
        node("Pad", "x pads", "padded"),
        node("Transpose", "padded", "t", perm=[2, 0, 1, 3]),
        node("Identity", "t", "same"),
    ]
    with lifting(nodes, ["same"], pads=np.array([0, 0, 1, 0, 0, 0, 2, 0], np.int64)) as context:
        assert size_key(context, "same", 0) == size_key(context, "padded", 2) == ("x", 2, 3)
        assert size_key(context, "same", 3) == ("x", 3, 0)
