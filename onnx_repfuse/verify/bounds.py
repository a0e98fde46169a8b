"""How many values an integer input may take: the rows of the tables it indexes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnx_repfuse.verify.sessions import Model, Port, load

__all__ = ["integer_bounds", "table_rows"]


def integer_bounds(original: Model, inputs: Iterable[Port]) -> dict[str, int]:
    """Input name -> number of values, for the integer inputs that index a table. Raises DoesNotRun."""
    integers = {port.name for port in inputs if "int" in port.type}
    return table_rows(load(original, weights=False).graph, integers) if integers else {}


def table_rows(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, int]:
    """Rows of the smallest constant table that each of `names` indexes with Gather, also through Cast."""
    origin = {name: name for name in names}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten") and node.input:
            if node.input[0] in origin:
                origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            shape = sizes.get(node.input[0], ())
            if axis < len(shape):
                name = origin[node.input[1]]
                bounds[name] = min(bounds.get(name, shape[axis]), shape[axis])
    return bounds
