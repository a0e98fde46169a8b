"""The map of the whole graph: columns from the inputs to the outputs, wrapped into bands."""

from __future__ import annotations

from onnx_repfuse.records.graph_map import MapNode
from onnx_repfuse.report.map_layout import columns, lay_out, width_of_bands


def node(name, *above, scope="", is_constant=False):
    return MapNode(name, "Relu", scope, above, is_constant=is_constant)


def test_columns_follow_the_longest_path():
    # 0 -> 1 -> 2 -> 3, and 0 -> 3
    assert columns((node("a"), node("b", 0), node("c", 1), node("d", 2, 0))) == [[0], [1], [2], [3]]


def test_branches_keep_their_rows():
    # 0 -> (1, 2), 1 -> 4, 2 -> 3: the files lists 3 before 4
    found = columns(
        (node("in"), node("upper", 0), node("lower", 0), node("of lower", 2), node("of upper", 1))
    )
    assert found == [[0], [1, 2], [4, 3]]


def test_constants_stand_before_what_reads_them():
    nodes = (
        *(node("x"), node("y", 0), node("z", 1)),
        *(node("axes", is_constant=True), node("of axes", 3, is_constant=True), node("last", 2, 4)),
    )
    assert columns(nodes) == [[0], [1, 3], [2, 4], [5]]


def test_nodes_in_any_order_and_several_scopes():
    nodes = (node("last", 1), node("first"), node("inner", scope="then"))
    assert columns(nodes) == [[1], [0], [2]]
    assert columns(()) == []


def test_cells_never_share_a_place_and_bands_do_not_touch():
    above = [{number // 2, number - 1 if number % 7 else number // 3} for number in range(1, 200)]
    nodes = [node("0"), *(node(str(number), *found) for number, found in enumerate(above, 1))]
    found = columns(tuple(nodes))
    width = width_of_bands(found)
    layout = lay_out(found, width)
    assert len(set(layout.cells)) == len(nodes)
    assert all(0 <= x < layout.width and 0 <= y < layout.height for x, y in layout.cells)


def test_a_deep_network_is_about_twice_as_wide_as_high():
    found = [[number] for number in range(3000)]
    width = width_of_bands(found)
    layout = lay_out(found, width)
    assert 0.2 < layout.height / layout.width <= 0.5
    assert width_of_bands(found[:5]) == 5
    assert width_of_bands([]) == 1
    assert lay_out([], 1).height == 0
