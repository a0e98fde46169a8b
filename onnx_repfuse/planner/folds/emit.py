"""From steps to ONNX nodes: attributes and fresh names.

Weights are `Const`s that compute themselves when they are written (`weights.rounding`); one that overflows or
underflows raises Inexact then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Vector
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.graph.operators.channel_rules import NEGATIVE_AXES_SINCE, NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.planner.pricing.steps import Lowered, Step
from onnx_repfuse.planner.weights.rounding import (
    factors,
    grown,
    materialized,
    rounded,
    transposed,
    transposed_shape,
)

LAST = (1 << 63) - 1  # the end of an axis of any size

__all__ = ["Emission", "emit"]

Array = NDArray[Any]


@dataclass(eq=False)
class Emission:
    """What `emit` created: nodes in order, and the constants they read."""

    nodes: list[gs.Node] = field(default_factory=list)
    constants: dict[str, Const] = field(default_factory=dict)


def emit(scope: Scope, output: str, lowered: Lowered, *, data_type: int, name: str) -> Emission:
    """Nodes that compute the tensor `output`.

    Args:
        data_type: of the result, an ONNX float type.
        name: the stem for names of nodes and tensors.
    """
    emitter = _Emitter(scope, data_type, name)
    names: list[str] = []
    last = len(lowered.steps) - 1
    for number, step in enumerate(lowered.steps):
        names.append(output if number == last else scope.fresh(f"{name}.{step.op.lower()}"))
        inputs = [names[ref] if isinstance(ref, int) else str(ref) for ref in step.inputs]
        emitter.emit(step, inputs, names[-1])
    return Emission(emitter.nodes, emitter.constants)


@dataclass(eq=False)
class _Emitter:
    scope: Scope
    data_type: int
    name: str
    nodes: list[gs.Node] = field(default_factory=list)
    constants: dict[str, Const] = field(default_factory=dict)

    def emit(self, step: Step, inputs: list[str], output: str) -> None:
        if step.op == "Mul":
            shape, attributes = self.channel_broadcast(step)
            self.node("Mul", [*inputs, self.scale(step, shape)], output, **attributes)
        elif step.op == "Shift":
            shape, attributes = self.channel_broadcast(step)
            self.node("Add", [*inputs, self.shift("shift", step, shape)], output, **attributes)
        elif step.op == "Norm":
            self.batch_normalization(step, inputs, output)
        elif step.op == "Conv":
            self.convolution(step, inputs[0], output)
        elif step.op == "Slice":
            self.slice(step, inputs[0], output)
        elif step.op in ("SizesMul", "SizesAdd"):
            assert step.index is not None
            self.node(step.op.removeprefix("Sizes"), [inputs[0], self.index("sizes", step.index)], output)
        elif step.index is not None:
            index = self.index("indices", step.index)
            self.node("Gather", [inputs[0], index], output, axis=self.axis_of_choice(step))
        elif step.op == "Concat":
            self.node("Concat", inputs, output, axis=step.layout[0])
        elif step.view is not None:
            node = step.view.node
            self.node(node.op, [inputs[0], *self.view_inputs(step, inputs[1:])], output, **node.attrs)
        else:
            self.node(step.op, inputs, output)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(new_node(op, self.scope.fresh(self.name), attributes, inputs, [output]))

    def constant(self, label: str, const: Const) -> str:
        name = self.scope.fresh(f"{self.name}.{label}")
        self.constants[name] = const
        return name

    def vector(self, label: str, shape: tuple[int, ...], value: Array) -> str:
        return self.constant(
            label, Const(shape, self.data_type, lambda: rounded(value.reshape(shape), self.data_type))
        )

    def scale(self, step: Step, shape: tuple[int, ...]) -> str:
        assert isinstance(step.kernel, Vector)
        scale = step.kernel.scale
        return self.constant(
            "scale", Const(shape, self.data_type, lambda: factors(scale, shape, self.data_type))
        )

    def shift(self, label: str, step: Step, shape: tuple[int, ...]) -> str:
        """The step's bias; what lifts it again in a later round takes it from the constant, unrounded."""
        bias = step.bias
        assert bias is not None

        def value() -> Array:
            return rounded(bias.value().reshape(shape), self.data_type)

        return self.constant(label, Const(shape, self.data_type, value, None, bias))

    def axis_of_choice(self, step: Step) -> int:
        """The channel axis of a Gather; counted from the end where it permutes the channels.

        Else OpenVINO (2026.4) takes a permutation in front of a Conv for nothing, and leaves it out.
        """
        axis, spatial_rank = step.layout
        assert step.index is not None
        permutes = np.array_equal(np.sort(step.index), np.arange(len(step.index)))
        if axis == 1 and permutes and self.scope.opset >= NEGATIVE_AXES_SINCE:
            return -1 - spatial_rank
        return axis

    def channel_broadcast(self, step: Step) -> tuple[tuple[int, ...], dict[str, int]]:
        """The shape of a constant per channel that broadcasts, and the attributes that say so below opset 7."""
        axis, rank = step.layout
        if self.scope.opset < NUMPY_BROADCAST_SINCE:
            return (step.channels,), {"broadcast": 1, "axis": 1} if axis == 1 else {"broadcast": 1}
        # (C, 1, 1) for (N, C, H, W), (C,) for (N, T, C)
        return (step.channels, *(1,) * rank) if axis == 1 else (step.channels,), {}

    def batch_normalization(self, step: Step, inputs: list[str], output: str) -> None:
        """`scale * x + shift` as `scale * (x - 0) / sqrt(1 + 0) + shift`."""
        shape = (step.channels,)
        parameters = [
            self.scale(step, shape),
            self.shift("shift", step, shape),
            self.vector("mean", shape, np.zeros(shape)),
            self.vector("var", shape, np.ones(shape)),
        ]
        self.node("BatchNormalization", [*inputs, *parameters], output, epsilon=0.0)

    def convolution(self, step: Step, source: str, output: str) -> None:
        """A Conv or ConvTranspose; on the last axis a MatMul or, with a bias, a Gemm."""
        assert step.kernel is not None
        kernel = grown(step.kernel)
        g = kernel.geometry
        bias = [] if step.bias is None else [self.shift("bias", step, (g.c_out,))]

        def weight() -> Array:
            return materialized(kernel, self.data_type)

        if g.channel_axis == -1 and bias:
            matrix = self.weight(g.weight_shape, weight, kernel)
            self.node("Gemm", [source, matrix, *bias], output, transB=1)
        elif g.channel_axis == -1:
            matrix = self.weight((g.c_in, g.c_out), lambda: np.ascontiguousarray(weight().T), kernel)
            self.node("MatMul", [source, matrix], output)
        elif g.transposed:
            name = self.weight(transposed_shape(kernel), lambda: transposed(weight(), kernel), kernel)
            self.node("ConvTranspose", [source, name, *bias], output, **_transposed_attributes(kernel))
        else:
            name = self.weight(g.weight_shape, weight, kernel)
            self.node("Conv", [source, name, *bias], output, **_conv_attributes(kernel))

    def weight(self, shape: tuple[int, ...], value: Callable[[], Array], kernel: Kernel) -> str:
        return self.constant("weight", Const(shape, self.data_type, value, kernel))

    def slice(self, step: Step, source: str, output: str) -> None:
        """Channels `lo ..` of a tensor, or the positions that a kernel takes."""
        if step.kernel is not None:
            self.slice_of_space(step.kernel.geometry, source, output)
            return
        lo, hi, axis = step.lo, step.lo + step.channels, step.layout[0]
        if OPERATORS["Slice"].uses_attributes(self.scope.opset):
            self.node("Slice", [source], output, axes=[axis], starts=[lo], ends=[hi])
            return
        indices = [self.index(*pair) for pair in (("starts", [lo]), ("ends", [hi]), ("axes", [axis]))]
        self.node("Slice", [source, *indices], output)

    def slice_of_space(self, g: Geometry, source: str, output: str) -> None:
        """Positions `origin, origin + stride, ...` along each axis, up to those left out at the end."""
        cut = [
            axis for axis in range(g.rank) if (g.origin[axis], g.slack[axis], g.strides[axis]) != (0, -1, 1)
        ]
        axes, starts = [axis + 2 for axis in cut], [g.origin[axis] for axis in cut]
        left_out = [-1 - g.origin[axis] - g.slack[axis] for axis in cut]
        ends, steps = [-count or LAST for count in left_out], [g.strides[axis] for axis in cut]
        if OPERATORS["Slice"].uses_attributes(self.scope.opset):
            self.node("Slice", [source], output, axes=axes, starts=starts, ends=ends)
            return
        named = [("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps)]
        self.node("Slice", [source, *(self.index(*pair) for pair in named)], output)

    def index(self, label: str, values: ArrayLike) -> str:
        array = np.array(values, np.int64)
        return self.constant(label, Const(array.shape, onnx.TensorProto.INT64, lambda: array))

    def view_inputs(self, step: Step, rewritten: list[str]) -> list[str]:
        """Further inputs of a view; a list of sizes that names the channels is written anew for other channels."""
        view = step.view
        assert view is not None
        others = [tensor.name for tensor in view.node.inputs[1:]]
        if step.channels == view.channels or view.entry is None:
            return others
        if rewritten:
            return [*others[:-1], *rewritten]
        assert view.target is not None
        sizes = np.array(view.target.read()).ravel()
        sizes[view.entry] = step.channels
        const = Const(sizes.shape, view.target.data_type, lambda: sizes)
        return [*others[:-1], self.constant("shape", const)]


def _conv_attributes(kernel: Kernel) -> dict[str, Any]:
    g = kernel.geometry
    return {
        "dilations": list(g.dilations),
        "group": g.groups,
        "kernel_shape": list(g.kernel),
        "pads": [*g.pads_begin, *g.pads_end],
        "strides": list(g.strides),
    }


def _transposed_attributes(kernel: Kernel) -> dict[str, Any]:
    g = kernel.geometry
    ends = g.pads_end  # pad_end - output_padding
    return {
        "dilations": list(g.dilations),
        "group": g.groups,
        "kernel_shape": list(g.kernel),
        "output_padding": [max(0, -end) for end in ends],
        "pads": [*g.pads_begin, *(max(0, end) for end in ends)],
        "strides": list(g.strides),
    }
