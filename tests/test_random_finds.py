"""What random graphs found, one test each."""

from __future__ import annotations

from tests.build import Net, check


def test_an_output_that_is_another_tensor_takes_an_identity_once() -> None:
    net = Net(4)
    name = net.conv("x", 4, 4, 1)
    net.nodes[-1].name = "first"
    check(net.model(net.op("Identity", net.bn(name, 4))), {"Conv": 1})
    net = Net(4)
    name = net.conv("x", 4, 4, 1)
    check(net.model(net.op("Mean", name, name)), {"Conv": 1})
    net = Net(4)
    name = net.bn(net.op("Relu", "x"), 4)
    check(net.model(net.op("Identity", name)), {"Relu": 1, "BatchNormalization": 1})
    net = Net(4)
    check(net.model(net.op("Identity", net.op("Relu", "x"))), None)
