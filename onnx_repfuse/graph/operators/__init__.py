"""One record of facts per ONNX operator. To describe an operator, add its record to the file of its kind."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.conv_matmul import CONV_MATMUL
from onnx_repfuse.graph.operators.einsum import EINSUM
from onnx_repfuse.graph.operators.facts import Operator
from onnx_repfuse.graph.operators.index_maps import INDEX_MAPS
from onnx_repfuse.graph.operators.pointwise import ARITHMETIC, POINTWISE
from onnx_repfuse.graph.operators.pooling import POOLING
from onnx_repfuse.graph.operators.resize import RESIZE
from onnx_repfuse.graph.operators.space_maps import SPACE_MAPS
from onnx_repfuse.graph.scope import ONNX_DOMAINS

__all__ = ["OPERATORS", "Operator", "operator", "operator_of_proto"]

OPERATORS = {
    record.name: record
    for record in (
        *ARITHMETIC,
        *CONV_MATMUL,
        *EINSUM,
        *INDEX_MAPS,
        *POINTWISE,
        *POOLING,
        *RESIZE,
        *SPACE_MAPS,
    )
}
UNKNOWN = Operator("")


def operator(node: gs.Node) -> Operator:
    """The facts of a node's operator; an empty record for one that nobody described, or of another domain."""
    return OPERATORS.get(node.op, UNKNOWN)


def operator_of_proto(node: onnx.NodeProto) -> Operator:
    """As `operator`."""
    record = OPERATORS.get(node.op_type, UNKNOWN)
    return record if record is UNKNOWN or node.domain in ONNX_DOMAINS else UNKNOWN
