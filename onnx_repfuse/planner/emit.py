"""From steps to ONNX nodes: attributes and fresh names.

Weights are `Const`s that compute themselves (`payloads`); one that overflows raises Inexact(OVERFLOW) when it does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Kernel, Vector
from onnx_repfuse.graph.load import new_node
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.planner.lowering import Lowered, Step
from onnx_repfuse.planner.weights import grown, materialized, rounded, transposed, transposed_shape

__all__ = ["Emission", "emit"]


@dataclass(eq=False)
class Emission:
    """What `emit` made: nodes in order, and the constants they read."""

    nodes: list[gs.Node]
    constants: dict[str, Const]


def emit(
    scope: Scope,
    root: str,
    lowered: Lowered,
    *,
    data_type: int,
    name: str,
) -> Emission:
    """Nodes that compute tensor `root`; `name` is the stem for names of nodes and tensors.

    Args:
        data_type: of the result.
    """
    made = Emission([], {})
    names: list[str] = []

    def tensor(ref: Hashable) -> str:
        return names[ref] if isinstance(ref, int) else str(ref)

    def constant(
        label: str,
        shape: tuple[int, ...],
        value: Callable[[], NDArray[Any]],
        kernel: Kernel | None = None,
        bias: Bias | None = None,
    ) -> str:
        fresh = scope.fresh(f"{name}.{label}")
        made.constants[fresh] = Const(shape, data_type, value, kernel, bias)
        return fresh

    def channel_shape(step: Step) -> tuple[int, ...]:
        axis, space = step.layout
        return (step.channels, *(1,) * space) if axis == 1 else (step.channels,)

    def vector(label: str, shape: tuple[int, ...], value: NDArray[np.float64]) -> str:
        return constant(label, shape, lambda: rounded(value.reshape(shape), data_type))

    def shift(label: str, shape: tuple[int, ...], bias: Bias) -> str:
        return constant(label, shape, lambda: rounded(bias.value().reshape(shape), data_type), bias=bias)

    def node(op: str, inputs: list[str], output: str, attrs: dict[str, Any] | None = None) -> None:
        made.nodes.append(new_node(op, scope.fresh(name), attrs or {}, inputs, [output]))

    for number, step in enumerate(lowered.steps):
        output = root if number == len(lowered.steps) - 1 else scope.fresh(f"{name}.{step.op.lower()}")
        inputs = [tensor(ref) for ref in step.inputs]
        names.append(output)
        if step.op == "Mul":
            assert isinstance(step.kernel, Vector)
            node(
                "Mul",
                [*inputs, vector("scale", channel_shape(step), step.kernel.scale)],
                output,
            )
        elif step.op == "Shift":
            assert step.bias is not None
            node("Add", [*inputs, shift("shift", channel_shape(step), step.bias)], output)
        elif step.op == "Norm":
            assert isinstance(step.kernel, Vector)
            assert step.bias is not None
            shape, ones, zeros = (step.channels,), np.ones(step.channels), np.zeros(step.channels)
            parameters = [
                vector("scale", shape, step.kernel.scale),
                shift("shift", shape, step.bias),
                vector("mean", shape, zeros),
                vector("var", shape, ones),
            ]
            node("BatchNormalization", [*inputs, *parameters], output, {"epsilon": 0.0})
        elif step.op == "Conv":
            _emit_convolution(step, inputs[0], output, data_type, constant, shift, node)
        elif step.op == "Slice":
            _emit_slice(scope, step, inputs[0], output, step.layout[0], made, node, name)
        elif step.op == "Concat":
            node("Concat", inputs, output, {"axis": step.layout[0]})
        elif step.view is not None:
            node(
                step.view.node.op,
                [*inputs, *_view_inputs(scope, step, made, name)],
                output,
                _view_attrs(step),
            )
        else:
            node(step.op, inputs, output)
    return made


def _view_inputs(scope: Scope, step: Step, made: Emission, name: str) -> list[str]:
    """Its further inputs: sizes that name the channels are written anew for other channels."""
    view = step.view
    assert view is not None
    rest = [tensor.name for tensor in view.node.inputs[1:]]
    if step.channels == view.channels or view.entry is None:
        return rest
    assert view.target is not None
    sizes = np.array(view.target.read()).ravel()
    sizes[view.entry] = step.channels
    fresh = scope.fresh(f"{name}.shape")
    made.constants[fresh] = Const(sizes.shape, view.target.data_type, _of(sizes))
    return [*rest[:-1], fresh]


def _view_attrs(step: Step) -> dict[str, Any]:
    assert step.view is not None
    return dict(step.view.node.attrs)


def _emit_convolution(
    step: Step,
    source: str,
    output: str,
    data_type: int,
    constant: Callable[..., str],
    shift: Callable[..., str],
    node: Callable[..., None],
) -> None:
    assert step.kernel is not None
    kernel = grown(step.kernel)
    g = kernel.geometry

    def weight() -> NDArray[Any]:
        return materialized(kernel, data_type)

    bias = [] if step.bias is None else [shift("bias", (g.c_out,), step.bias)]
    if g.channel_axis == -1 and bias:
        node(
            "Gemm", [source, constant("weight", g.weight_shape, weight, kernel), *bias], output, {"transB": 1}
        )
    elif g.channel_axis == -1:
        matrix = constant("weight", (g.c_in, g.c_out), lambda: np.ascontiguousarray(weight().T), kernel)
        node("MatMul", [source, matrix], output)
    elif g.transposed:
        node(
            "ConvTranspose",
            [
                source,
                constant("weight", transposed_shape(kernel), lambda: transposed(weight(), kernel), kernel),
                *bias,
            ],
            output,
            _transposed_attributes(kernel),
        )
    else:
        attrs = {
            "dilations": list(g.dilations),
            "group": g.groups,
            "kernel_shape": list(g.kernel),
            "pads": [*g.pads_begin, *g.pads_end],
            "strides": list(g.strides),
        }
        node("Conv", [source, constant("weight", g.weight_shape, weight, kernel), *bias], output, attrs)


def _emit_slice(
    scope: Scope,
    step: Step,
    source: str,
    output: str,
    axis: int,
    made: Emission,
    node: Callable[..., None],
    name: str,
) -> None:
    lo, hi = step.lo, step.lo + step.channels
    if OPERATORS["Slice"].uses_attributes(scope.opset):
        node("Slice", [source], output, {"axes": [axis], "starts": [lo], "ends": [hi]})
        return
    inputs = [source]
    for label, value in (("starts", lo), ("ends", hi), ("axes", axis)):
        fresh = scope.fresh(f"{name}.{label}")
        array = np.array([value], np.int64)
        made.constants[fresh] = Const((1,), onnx.TensorProto.INT64, _of(array))
        inputs.append(fresh)
    node("Slice", inputs, output)


def _of(value: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: value


def _transposed_attributes(kernel: Kernel) -> dict[str, Any]:
    g = kernel.geometry
    ends = g.pads_end  # pad_end - output_padding
    return {
        "dilations": list(g.dilations),
        "group": g.groups,
        "kernel_shape": list(g.kernel),
        "output_padding": [max(0, -e) for e in ends],
        "pads": [*g.pads_begin, *(max(0, e) for e in ends)],
        "strides": list(g.strides),
    }
