"""Transposes around element-wise operators vanish where the second undoes the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, check, counts, equal

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def _between(net: Net, x: str, *ops: str, back: list[int] = FIRST) -> Any:
    y = net.op("Transpose", x, perm=LAST)
    for op in ops:
        scalars = {"Clip": (0.0, 6.0), "Pow": (2.0,), "Max": (0.3,)}.get(op, ())
        y = net.op(op, y, *map(net.const, scalars))
    return net.op("Transpose", y, perm=back)


@pytest.mark.parametrize("ops", [["Relu"], ["HardSwish"], ["Clip"], ["Tanh", "Pow", "Max"], ["Elu", "Erf"]])
@pytest.mark.parametrize("ends", [False, True])
def test_around_element_wise_operators(ops: list[str], ends: bool) -> None:
    """Also where they compute an output of the graph, whose name stays."""
    net = Net(4)
    y = _between(net, net.conv("x", 4, 4, 3), *ops)
    model = net.model(y if ends else net.conv(y, 4, 4, 3))
    result = check(model, {"Conv": 2 - ends, **dict.fromkeys(ops, 1)})
    assert [output.name for output in result.model.graph.output] == [out.name for out in model.graph.output]


def test_two_branches_become_one() -> None:
    """What was hidden behind another layout is a ReLU as any other."""
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    z = net.op("Add", net.conv(_between(net, y, "Relu"), 4, 4, 3), net.conv(net.op("Relu", y), 4, 4, 1))
    check(net.model(z), {"Conv": 2, "Relu": 1})


def test_rows_of_pairs() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    for op in ("Tanh", "Relu", "Sigmoid"):
        y = _between(net, y, op)
    for op in ("Exp", "Tanh"):  # each undoes the one before the operator
        y = net.op("Transpose", y, perm=[0, 1, 3, 2])
        y = net.op(op, y)
    model = net.model(net.op("Transpose", y, perm=[0, 1, 3, 2]))
    result = fuse(model)
    assert "Transpose" in counts(model)
    assert counts(result.model).get("Transpose", 0) <= 1
    assert equal(model, result.model) > 0


def test_what_sees_the_layout_stays() -> None:
    for op, inputs in (
        ("Softmax", []),
        ("PRelu", [np.linspace(0.1, 0.9, 4)]),
        ("Max", [np.linspace(-1, 1, 4)]),
    ):
        net = Net(4)
        y = net.op("Transpose", "x", perm=LAST)
        y = net.op(op, y, *map(net.const, inputs))
        model = net.model(net.op("Transpose", y, perm=FIRST))
        assert counts(fuse(model).model) == counts(model)
    net = Net(4)
    model = net.model(_between(net, "x", "Tanh", back=[0, 1, 3, 2]))
    assert counts(fuse(model).model) == counts(model)
    net = Net(4)
    y = net.op("Transpose", "x", perm=LAST)
    model = net.model(net.op("Transpose", net.op("Tanh", y), perm=FIRST), net.op("Exp", y))
    assert counts(fuse(model).model) == counts(model)


def test_it_may_be_left_out() -> None:
    net = Net(4)
    model = net.model(_between(net, "x", "Tanh"))
    for options in (Options(skip=("commute",)), Options(keep=("tanh*",))):
        assert counts(fuse(model, options=options).model) == counts(model)
