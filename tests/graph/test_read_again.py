"""Types after a change: what is inferred of the new nodes alone is what inference of all nodes finds."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnx_repfuse.graph import read_again as module
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.edit_points import replace_nodes
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.read_again import read_again
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.document import Document
from tests.build import Net

FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes each inference saw."""
    counts: list[int] = []
    protos = module._protos

    def counted(scope: Scope, nodes: list[gs.Node]) -> list[onnx.NodeProto]:
        counts.append(len(nodes))
        return protos(scope, nodes)

    monkeypatch.setattr(module, "_protos", counted)
    return counts


def scope_of(size: int | str) -> Scope:
    """Conv, Relu, then a Sigmoid that `replace` replaces, and another Relu."""
    net = Net(3)
    y = net.op("Sigmoid", net.op("Relu", net.conv("x", 3, 4, 3)))
    model = net.model(net.op("Relu", y))
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", FLOAT, [1, 3, size, size]))
    with Document.from_model(model) as document:
        (scope,) = read_scopes(document)
        return scope


def replace(scope: Scope, op: str, **attributes: object) -> str:
    """Compute the Sigmoid's tensor by two other nodes, as a fold would; its name."""
    (old,) = (node for node in scope.nodes if node.op == "Sigmoid")
    read, name = old.inputs[0].name, old.outputs[0].name
    nodes = [
        new_node(op, "", dict(attributes), [read], ["between"]),
        new_node("Tanh", "", {}, ["between"], [name]),
    ]
    replace_nodes(scope, {id(old): nodes})
    scope.index()
    return name


def scratch(scope: Scope) -> dict[str, object]:
    assert scope.infer is not None
    types, _ = scope.infer(module._protos(scope, scope.nodes))
    return {name: types[name] for name in scope.producer}


def test_only_new_nodes_are_inferred_where_all_others_keep_their_types(inferred: list[int]) -> None:
    scope = scope_of(8)
    name = replace(scope, "Neg")
    scope.types["between"] = scope.types[name]
    read_again(scope)
    assert inferred == [2]
    assert {name: scope.types[name] for name in scope.producer} == scratch(scope)
    assert scope.assumed["between"] == scope.assumed[name]


@pytest.mark.parametrize("declared", [None, (FLOAT, (1, 4, 8, 9))])
def test_all_nodes_are_inferred_where_a_new_tensor_is_not_what_was_declared(
    inferred: list[int], declared: tuple[int, tuple[int, ...]] | None
) -> None:
    scope = scope_of(8)
    replace(scope, "Neg")
    if declared is not None:
        scope.types["between"] = declared
    read_again(scope)
    assert inferred[-1] == 5
    assert {name: scope.types[name] for name in scope.producer} == scratch(scope)


def test_all_nodes_are_inferred_where_a_tensor_has_another_shape_now(inferred: list[int]) -> None:
    scope = scope_of(8)
    name = replace(scope, "MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    scope.types["between"] = scope.types[name]
    read_again(scope)
    assert inferred == [2, 5]
    assert scope.types[scope.nodes[-1].outputs[0].name] == (FLOAT, (1, 4, 4, 4))


def test_all_nodes_are_inferred_at_unknown_sizes_and_where_sizes_are_computed(inferred: list[int]) -> None:
    scope = scope_of("N")
    name = replace(scope, "Neg")
    scope.types["between"] = scope.types[name]
    read_again(scope)
    assert inferred == [5]
    scope = scope_of(8)
    (old,) = (node for node in scope.nodes if node.op == "Sigmoid")
    shape = new_node("Shape", "", {}, [old.outputs[0].name], ["sizes"])
    replace_nodes(scope, {id(old): [old, shape]})
    scope.index()
    scope.types["sizes"] = (onnx.TensorProto.INT64, (4,))
    inferred.clear()
    read_again(scope)
    assert inferred == [len(scope.nodes)]
    assert np.prod(scope.assumed["sizes"]) == 4
