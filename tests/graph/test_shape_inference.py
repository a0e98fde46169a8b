"""Types inferred for a scope: proved, whatever the file calls its tensors."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from tests.build import Net


def test_a_tensor_is_not_confused_with_the_stand_in_of_weights_of_its_name() -> None:
    net = Net(4, shape=(1, 4))
    product = net.op("MatMul", "x", net.random(4, 4))
    name = str((int(TensorProto.FLOAT), (4, 4)))  # what such weights are called while types are inferred
    other = net.op("MatMul", "x", name)
    graph = net.graph((product, other, name))
    values = numpy_helper.from_array(np.ones(2, np.float32), name)
    places = numpy_helper.from_array(np.array([0, 5], np.int64), f"{name}_places")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 7]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with Document.from_model(model) as document:
        (scope,) = read_scopes(document)
    assert scope.shape(product) == (1, 4)
    assert scope.shape(other) is None
    assert scope.shape(name) is None
