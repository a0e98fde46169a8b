"""What functions and subgraphs demand of the inputs is found, too: else the model would run at no size tried."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_repfuse import fuse
from onnx_repfuse.verifier.flat_graph import flat_graph

HEAD = '<ir_version: 10, opset_import: ["" : 17, "own" : 1]>\n'
WEIGHT = "k = Constant<value = float[7] {1, 2, 3, 4, 5, 6, 7}>()"
FUNCTION = '<domain: "own", opset_import: ["" : 17, "own" : 1]>\n'


def _function(name: str, body: str) -> str:
    return f"{FUNCTION}{name} (X) => (Y) {{ {body} }}\n"


IN_A_FUNCTION = f"{HEAD}m (float[n, c] x) => (float[n, d] y) {{ y = own.F(x) }}\n" + _function(
    "F", f"{WEIGHT} Y = LayerNormalization(X, k)"
)
IN_A_NESTED_FUNCTION = (
    f"{HEAD}m (float[n, c] x) => (float[n, d] y) {{ t = own.G(x) y = own.G(t) }}\n"
    + _function("G", "Y = own.F(X)")
    + _function("F", f"{WEIGHT} Y = Mul(X, k)")
)
IN_A_BRANCH = f"""{HEAD}m (float[n, c] x, bool b) => (y) {{
    y = If (b) <
        then_branch = t () => (p) {{ {WEIGHT} p = Mul(x, k) }},
        else_branch = e () => (q) {{ {WEIGHT.replace("k", "j")} q = own.F(x, j) }}
    >
}}
{FUNCTION}F (X, J) => (Y) {{ Y = Add(X, J) }}
"""
A_TABLE = (
    f"{HEAD}m (int64[n, c] x) => (y) {{ t = own.F(x) two = Constant<value = float {{2}}>() y = Mul(t, two) }}\n"
    + _function(
        "F", "w = Constant<value = float[3, 2] {1, 2, 3, 4, 5, 6}>() i = Identity(X) Y = Gather(w, i)"
    )
)


@pytest.mark.parametrize("text", [IN_A_FUNCTION, IN_A_NESTED_FUNCTION, IN_A_BRANCH, A_TABLE])
def test_sizes_and_tables_of_functions_and_branches_are_found(text: str) -> None:
    assert fuse(parser.parse_model(text)).report.verification is not None


def test_a_function_that_calls_itself_is_not_inlined() -> None:
    model = parser.parse_model(
        f"{HEAD}m (float[n] x) => (y) {{ y = own.F(x) }}\n" + _function("F", "Y = own.F(X)")
    )
    assert [node.op_type for node in flat_graph(model).node] == ["F"]


def test_large_weights_are_declared_alone() -> None:
    model = parser.parse_model(IN_A_FUNCTION)
    weight = onnx.numpy_helper.from_array(np.ones((100, 100), np.float32), "w")
    model.graph.initializer.append(weight)
    (declared,) = flat_graph(model).initializer
    assert (list(declared.dims), declared.ByteSize() < 100) == ([100, 100], True)
    assert model.graph.initializer[0] == weight
