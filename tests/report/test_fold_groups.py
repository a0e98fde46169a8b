"""Which folds are alike, and their order."""

from __future__ import annotations

from dataclasses import replace

from onnx_repfuse.records.report import Kind, NodeRef
from onnx_repfuse.report.fold_groups import group_folds
from tests.outcomes import fold


def test_names_and_sizes_do_not_matter():
    other = fold(1)
    other = replace(other, absorbed=tuple(replace(node, label="5x5, 8->8") for node in other.absorbed))
    (group,) = group_folds([fold(0), other])
    assert [number for number, _ in group.members] == [0, 1]
    assert (group.macs, group.nodes) == (400, 12)
    assert group.title == "3 Conv + 3 BatchNormalization + Sum -> Conv"


def test_nor_does_the_order_of_branches():
    one = fold(0)
    a, b, *rest = one.absorbed
    assert len(group_folds([one, replace(fold(0), absorbed=(*rest[:-1], a, b, rest[-1]))])) == 1


def test_wiring_kind_and_operators_do():
    one = fold(0, 2)
    conv, norm, *rest = one.absorbed
    rewired = replace(one, absorbed=(conv, replace(norm, inputs=("x0",)), *rest))
    assert len(group_folds([one, rewired, fold(1, 3), replace(one, kind=Kind.POOL)])) == 4
    two = NodeRef("add", "Add", ("x", "y"), ("z",))
    same = [replace(one, absorbed=(two,)), replace(one, absorbed=(replace(two, inputs=("x",)),))]
    assert len(group_folds(same)) == 2


def test_what_saves_most_comes_first():
    cheap, dear = fold(0, 2), replace(fold(1, 3), macs_before=9000)
    assert [[number for number, _ in group.members] for group in group_folds([cheap, dear])] == [[1], [0]]
    larger = replace(fold(2, 2), macs_before=5000)
    (group,) = group_folds([cheap, larger])
    assert [number for number, _ in group.members] == [1, 0]
    assert group_folds([]) == []
