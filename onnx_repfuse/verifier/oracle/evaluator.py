"""The verifier's own oracle: a small graph evaluated in float64, with the magnitude of what was summed.

The rounding error of any evaluation in a shorter format is proportional to that magnitude (`folds/error_bound.py`). The
oracle shares no code with the algebra that computes folds, and ONNX Runtime checks it: what the runtime computes with
the original nodes must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.oracle.registry import DEFAULT_DOMAIN, evaluate_node, is_known, rounds
from onnx_repfuse.verifier.oracle.tensor import Array, Context, StoredKernel, Tensor, Unsupported

__all__ = ["Oracle", "Truth"]

# Elements of a kernel from which on it stays in its stored type. Most folds evaluate few inputs, for which blocks in
# the processor's cache are converted faster than a kernel is in memory.
LARGE_KERNEL = 1 << 16


@dataclass(frozen=True)
class Truth:
    """The oracle's answer for one tensor.

    Attributes:
        value: float64.
        magnitude: float32, of the same shape (`Tensor`).
        terms: how many non-zero terms an element sums, added up over all nodes; float64. Shape (rows, 1, ...) where
            every node keeps the rows (axis 0) apart, else (1, 1, ...), so that it broadcasts to `value`.
    """

    value: Array
    magnitude: Array
    terms: Array


class Oracle:
    """A small model, ready to be evaluated many times.

    Args:
        model: nodes of the default domain, constants as initializers; its first output is evaluated.
        power: 1 for magnitudes sum |w| |x|, 2 for sum w^2 x^2.
        storage: with power 2, sum the squares of what each node stores instead: the inputs count as exact, and each
            node's result adds its square. That is what rounding every stored tensor adds up to.
        stored_as: round what each node computes to this type, as hardware does that keeps tensors in it; float64 by
            default.
        arrays: the constants by name, if they were read before.

    Raises:
        Unsupported: it has an operator the oracle does not know.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        power: int = 1,
        storage: bool = False,
        stored_as: np.dtype[Any] | None = None,
        arrays: Mapping[str, Array] | None = None,
    ) -> None:
        graph = model.graph
        unknown = next((node for node in graph.node if not is_known(node)), None)
        if unknown is not None:
            raise Unsupported(f"{unknown.domain}.{unknown.op_type}" if unknown.domain else unknown.op_type)
        opset = next((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAIN), 1)
        self.power = power
        self.storage = storage
        self.stored_as = stored_as
        self.nodes = [(node, Context.of(node, opset, power)) for node in graph.node]
        self.output = graph.output[0].name
        self.done = _read_last(graph, self.output)
        self.read = {name for node in graph.node if node.op_type != "Shape" for name in node.input} | {
            self.output
        }
        large = _large_kernels(graph)
        self.constants: dict[str, Tensor] = {}
        for tensor in graph.initializer:
            array = onnx.numpy_helper.to_array(tensor) if arrays is None else arrays[tensor.name]
            is_large = tensor.name in large
            self.constants[tensor.name] = (
                StoredKernel(array, array, power) if is_large else Tensor.of(array, power)
            )

    def __call__(
        self, feed: Mapping[str, Array], *, needs_values: bool = True, needs_magnitudes: bool = True
    ) -> Truth:
        """Evaluate, or the values alone, or the magnitudes alone, which do not depend on values where all is linear.

        What is not needed means nothing in the result.

        Raises Unsupported, or ValueError where shapes do not fit.
        """
        tensors = dict(self.constants)
        for name, array in feed.items():
            if name not in self.read:  # at most its sizes are
                tensors[name] = Tensor(array, array)
                continue
            tensor = Tensor.of(np.asarray(array), self.power)
            if self.storage:
                tensor = Tensor(tensor.value, np.zeros_like(tensor.magnitude))
            tensors[name] = tensor
        terms: list[Array] = []
        for (node, context), done in zip(self.nodes, self.done, strict=True):
            operands = [tensors[name] if name else None for name in node.input]
            results = evaluate_node(node, context.counting(terms, needs_values, needs_magnitudes), operands)
            if self.storage and rounds(node, context):
                results = [_with_storage(result, operands[0]) for result in results]
            if self.stored_as is not None and rounds(node, context):
                results = [_rounded(result, self.stored_as) for result in results]
            tensors.update(zip(node.output, results, strict=False))
            del operands, results
            for name in done:  # large images would add up
                tensors.pop(name, None)
        result = tensors[self.output]
        return Truth(result.value, result.magnitude, _total(terms, result.value))


def _read_last(graph: onnx.GraphProto, output: str) -> list[list[str]]:
    """For each node, the tensors that neither a later node nor `output` needs."""
    later, result = {output}, list[list[str]]()
    for node in reversed(graph.node):
        names = {*node.input, *node.output} - later
        later |= names
        result.append(sorted(names))
    return result[::-1]


def _with_storage(result: Tensor, operand: Tensor | None) -> Tensor:
    """The result with the square of what is stored added to its magnitude.

    An element that equals the operand's at its place was stored before: LeakyRelu hands on what is positive.
    """
    rounded = result.value
    if operand is not None and operand.value.shape == rounded.shape:
        rounded = np.where(rounded == operand.value, 0.0, rounded)
    with np.errstate(all="ignore"):  # squares of large values overflow in float32
        return Tensor(result.value, (result.magnitude + np.square(rounded)).astype(np.float32))


def _rounded(result: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """The result as it is read back from a tensor of this type."""
    with np.errstate(all="ignore"):  # overflow shows in the result
        return Tensor(result.value.astype(dtype).astype(np.float64), result.magnitude)


def _large_kernels(graph: onnx.GraphProto) -> set[str]:
    """Initializers that only Conv nodes read, as their kernel, and that are worth converting block by block."""
    large = {
        tensor.name
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) > LARGE_KERNEL and tensor.data_type in FLOAT_FORMATS
    }
    for node in graph.node:
        for position, name in enumerate(node.input):
            is_kernel = node.op_type == "Conv" and position == 1
            if not is_kernel:
                large.discard(name)
    return large


def _total(terms: list[Array], value: Array) -> Array:
    """The sum of what the nodes counted, plus 1; (rows,) or (1,) each -> broadcastable to `value`."""
    rows = value.shape[0] if value.ndim >= 2 else 1
    if any(len(count) not in (rows, 1) for count in terms):
        # A node has rows of another meaning, such as those of a transposed matrix: take its largest count for all.
        terms = [np.array([count.max() if count.size else 0.0]) for count in terms]
    total = sum(terms, np.ones(1))
    return total.reshape((-1,) + (1,) * (value.ndim - 1)) if value.ndim else total.max()
