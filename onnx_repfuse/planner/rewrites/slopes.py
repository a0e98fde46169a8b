"""PRelu, which runtimes compute slowly: ONNX Runtime takes the general way of operators that broadcast, where other
activations have kernels of their own.

With one slope it is a LeakyRelu: exactly the same, and runtimes compute that one within the Conv before it. With a
slope for each channel it is `s*x + (1 - s)*Relu(x)`: four operators, which are faster together, but are four.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, Shape, optional_input
from onnx_repfuse.options import Options
from onnx_repfuse.planner.pricing.cost import CostModel, cost_model
from onnx_repfuse.records.report import Kind

__all__ = ["common_slope", "is_slow_prelu", "keeps_shape"]

# What a PRelu takes for an element, as a multiple of moving one. Measured 2026-11-27 with onnxruntime 1.32.0 on an
# Intel Xeon (family 6 model 167), one thread: 3.4 ns for an element, where the four operators take 0.8.
WORK = 25


def is_slow_prelu(scope: Scope, node: gs.Node, options: Options) -> bool:
    """Whether a PRelu is to be written as what is faster: one of several slopes at level 2 only."""
    if node.op != "PRelu" or not options.allows(Kind.ACTIVATION):
        return False
    const = scope.const(optional_input(node, 1))
    if const is None or const.size > MAX_FOLDED_ELEMENTS:
        return False
    is_one = (
        scope.data_type(node.outputs[0].name) == onnx.TensorProto.FLOAT and common_slope(const) is not None
    )
    if is_one and "LeakyRelu" not in options.avoid:
        return True
    elements = scope.elements(node.outputs[0].name) or 0
    return options.level == 2 and _pays(elements, cost_model(options.cost))


def _pays(elements: int, model: CostModel) -> bool:
    """Whether Relu, Mul, Mul and Add of so many elements are cheaper."""
    other = 3 * model.elementwise(2 * elements) + model.elementwise(3 * elements)
    return other < model.elementwise((2 + WORK) * elements)


def common_slope(const: Const) -> float | None:
    """The one slope of all elements; None where there are several, or it is not finite."""
    values = np.asarray(const.read()).astype(np.float64).ravel()
    is_one = values.size > 0 and np.isfinite(values[0]) and bool(np.all(values == values[0]))
    return float(values[0]) if is_one else None


def keeps_shape(shape: Shape | None, slopes: tuple[int, ...]) -> bool:
    """Whether slopes of this shape broadcast to a tensor of that one, and do not enlarge it."""
    if shape is None or len(slopes) > len(shape):
        return False
    aligned = shape[len(shape) - len(slopes) :]
    return all(size in (1, dim) for size, dim in zip(slopes, aligned, strict=True))
