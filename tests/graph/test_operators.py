"""The records of operators agree with the ONNX standard, as the onnx package describes it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_repfuse.graph.operators import OPERATORS, Operator, operator, operator_of_proto

SCHEMAS: dict[str, dict[int, onnx.defs.OpSchema]] = defaultdict(dict)
for schema in onnx.defs.get_all_schemas_with_history():
    if schema.domain == "":
        SCHEMAS[schema.name][schema.since_version] = schema
RECORDS = [pytest.param(record, id=name) for name, record in OPERATORS.items()]


@pytest.mark.parametrize("record", RECORDS)
def test_it_is_an_operator_of_the_standard(record: Operator) -> None:
    assert record.name in SCHEMAS
    if record.since > 1:
        assert record.since == min(SCHEMAS[record.name])


@pytest.mark.parametrize("record", [p for p in RECORDS if p.values[0].attributes_are_inputs_since > 1])
def test_attributes_became_inputs_in_that_opset(record: Operator) -> None:
    versions = SCHEMAS[record.name]
    at = record.attributes_are_inputs_since
    before = versions[max(version for version in versions if version < at)]
    moved = set(before.attributes) - set(versions[at].attributes)
    assert moved & {i.name for i in versions[at].inputs}


def test_an_operator_of_another_domain_has_no_facts() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], domain="com.example")
    assert operator_of_proto(node) == operator(gs.Node(op="com.example.Conv")) == Operator("")
    assert operator_of_proto(onnx.helper.make_node("Conv", ["x", "w"], ["y"])) is OPERATORS["Conv"]


UNARY = ["Abs", "Ceil", "Exp", "Floor", "Identity", "Neg", "Reciprocal", "Sigmoid", "Sqrt", "Tanh"]
INTEGERS = {"axes": np.array([0]), "shape": np.array([3, 2]), "index": np.array([1, 0])}


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        *((op, ["x"], {}) for op in UNARY),
        *((op, ["x", "y"], {}) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Equal")),
        ("Cast", ["x"], {"to": onnx.TensorProto.INT64}),
        ("Concat", ["x", "y"], {"axis": 1}),
        ("ConstantOfShape", ["shape"], {}),
        ("Expand", ["x", "shape3"], {}),
        ("Flatten", ["x"], {"axis": 0}),
        ("Gather", ["x", "index"], {"axis": 1}),
        ("MatMul", ["x", "x_t"], {}),
        ("Reshape", ["x", "shape"], {}),
        ("Slice", ["x", "start", "end", "", "step"], {}),
        ("Squeeze", ["one", "axes"], {}),
        ("Transpose", ["x"], {"perm": [1, 0]}),
        ("Unsqueeze", ["x", "axes"], {}),
        ("Where", ["mask", "x", "y"], {}),
    ],
)
def test_evaluate_computes_what_the_standard_says(
    op: str, inputs: list[str], attrs: dict[str, object]
) -> None:
    rng = np.random.default_rng(0)
    values = {
        "x": rng.uniform(0.5, 2.5, (2, 3)).astype(np.float32),
        "y": rng.uniform(0.5, 2.5, (2, 3)).astype(np.float32),
        "x_t": rng.uniform(0.5, 2.5, (3, 2)).astype(np.float32),
        "one": np.ones((1, 3), np.float32),
        "mask": np.array([[True], [False]]),
        "shape3": np.array([4, 2, 3]),
        "start": np.array([1, -1]),
        "end": np.array([-9, -9]),
        "step": np.array([-1, -2]),
        **INTEGERS,
    }
    node = onnx.helper.make_node(op, inputs, ["out"], **attrs)
    model_inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape
        )
        for name in dict.fromkeys(inputs)
        if name
    ]
    output = onnx.helper.make_empty_tensor_value_info("out")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", model_inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    (expected,) = ReferenceEvaluator(model).run(None, {i.name: values[i.name] for i in model_inputs})
    evaluate = OPERATORS[op].evaluate
    assert evaluate is not None
    got = np.asarray(evaluate(attrs, *(values[name] if name else None for name in inputs)))
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
