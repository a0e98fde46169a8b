"""The records of operators agree with the ONNX standard, as the onnx package describes it."""

from __future__ import annotations

from collections import defaultdict

import onnx
import onnx_graphsurgeon as gs
import pytest

from onnx_repfuse.graph.operators import OPERATORS, Operator, operator, operator_of_proto
from tests.versions import since

SCHEMAS: dict[str, dict[int, onnx.defs.OpSchema]] = defaultdict(dict)
for schema in onnx.defs.get_all_schemas_with_history():
    if schema.domain == "":
        SCHEMAS[schema.name][schema.since_version] = schema
NEWER = {"Swish": since("onnx before 1.19 knows no opset 24", onnx="1.19")}
RECORDS = [pytest.param(record, id=name, marks=NEWER.get(name, ())) for name, record in OPERATORS.items()]


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
