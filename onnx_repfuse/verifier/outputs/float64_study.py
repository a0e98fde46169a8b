"""The precision study: how far the original and the result are from the exact function of the original's weights.

The truth is the original evaluated in float64. Each operator is computed by the folds' oracle where it knows the
operator, by a few lines here for those that onnx's reference computes in float32, and else by onnx's reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import erf
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import Precision
from onnx_repfuse.verifier.distance import Array, difference, flatten, is_inexact, largest
from onnx_repfuse.verifier.input_hints import input_hints
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds
from onnx_repfuse.verifier.oracle.registry import DEFAULT_DOMAIN, evaluate_node, is_known
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor, Unsupported
from onnx_repfuse.verifier.session import Model, load, one_line, open_session, subgraphs

__all__ = ["evaluate", "study"]

# What numpy, onnx's reference and the oracle raise on operands they cannot take.
_CANNOT_EVALUATE = (Unsupported, ValueError, IndexError, TypeError, RuntimeError, NotImplementedError)
Rows = Mapping[str, "Array | None"]


def study(
    original: Model, fused: Model, *, spec: FeedSpec | None = None, runtime: Runtime = DEFAULT_RUNTIME
) -> tuple[Precision, ...]:
    """Compare two models with float64.

    Args:
        original, fused: paths or models in memory, with the same interface; small ones, since numpy does the work.
        spec: what the user said about the inputs.
        runtime: how both are run.

    Returns:
        one Precision per float output.

    Raises:
        InputError: one of them does not run, or the original cannot be evaluated in float64 (the message says why).
    """
    proto = load(original)
    with open_session(original, runtime) as session:
        groups = choose_feeds(session, spec or FeedSpec(), input_hints(original, session.inputs))
    errors: dict[str, list[tuple[Array, Array]]] = {}
    with open_session(fused, runtime) as session:
        for group in groups:
            for feed, outputs in zip(group.feeds, group.outputs, strict=True):
                exact = flatten(evaluate(proto, feed))
                results = flatten(session.run(feed, list(outputs)))
                for name, pair in _errors(exact, flatten(outputs), results).items():
                    errors.setdefault(name, []).append(pair)
    return tuple(_precision(name, pairs) for name, pairs in errors.items())


def evaluate(model: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The graph outputs in float64; integers stay integers.

    Raises:
        InputError: an operator cannot be evaluated.
    """
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    graph = model.graph
    values = {tensor.name: Tensor.of(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    values.update({name: _to_float64(value) for name, value in feed.items()})
    outputs = [value.name for value in graph.output]
    # Values without further consumers are dropped at once: float64 takes twice the memory of the model's own.
    consumers = Counter([*outputs, *(name for node in graph.node for name in node.input)])
    for node in graph.node:
        values.update(zip(node.output, _evaluate_node(model, node, values), strict=False))
        consumers.subtract(node.input)
        for name in node.input:
            if not consumers[name]:
                values.pop(name, None)
    return {name: _to_numpy(values[name]) for name in outputs}


def _evaluate_node(model: onnx.ModelProto, node: onnx.NodeProto, values: Mapping[str, Any]) -> list[Any]:
    """Raises InputError."""
    try:
        return _apply(model, node, [values[name] if name else None for name in node.input])
    except KeyError as error:
        raise InputError(f"{node.op_type} reads {error}, which float64 evaluation does not know") from error
    except _CANNOT_EVALUATE as error:
        raise InputError(f"{node.op_type} cannot be evaluated in float64: {one_line(error)}") from error


def _apply(model: onnx.ModelProto, node: onnx.NodeProto, operands: list[Any]) -> list[Any]:
    if node.domain not in DEFAULT_DOMAIN:
        return _apply_reference(model, node, operands)
    opset = next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAIN), 1)
    context = Context.of(node, opset)
    if is_known(node) and all(operand is None or isinstance(operand, Tensor) for operand in operands):
        with suppress(Unsupported):  # the reference may know this form of the operator
            return evaluate_node(node, context, operands)
    function = _EXACT.get(node.op_type)
    # Before opset 13, Softmax flattens its input to two dims. A LayerNormalization may give out its mean, too.
    if function is None or opset < 13 or len(node.output) != 1:
        return _apply_reference(model, node, operands)
    arrays = [_to_numpy(operand) for operand in operands]
    return [Tensor.of(function(context.attributes, *arrays))]


def _apply_reference(model: onnx.ModelProto, node: onnx.NodeProto, operands: list[Any]) -> list[Any]:
    """One node, as a model of its own, by onnx's reference implementation of its operator."""
    from onnx.reference import ReferenceEvaluator

    # A subgraph may capture values of the outer graph, which a model of one node does not have.
    if subgraphs(node):
        raise Unsupported("its subgraphs are not evaluated")
    feed = {name: _to_numpy(operand) for name, operand in zip(node.input, operands, strict=True) if name}
    inputs = [onnx.ValueInfoProto(name=name) for name in feed]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "one_node", inputs, outputs)
    opsets = list(model.opset_import)
    single = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    with np.errstate(all="ignore"):  # overflow shows in the result
        results = iter(ReferenceEvaluator(single).run(None, feed))
    return [_to_float64(next(results)) if name else None for name in node.output]


def _softmax(given: dict[str, Any], x: Array) -> Array:
    axis = given.get("axis", -1)
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis, keepdims=True))


def _sigmoid(given: dict[str, Any], x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _layer_norm(given: dict[str, Any], x: Array, scale: Array, bias: Array | None = None) -> Array:
    axes = tuple(range(given.get("axis", -1) % x.ndim, x.ndim))
    epsilon = given.get("epsilon", float(np.float32(1e-5)))
    centred = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axes, keepdims=True) + epsilon)
    return np.asarray(centred / deviation * scale + (0 if bias is None else bias))


_erf = np.vectorize(erf, otypes=[np.float64])

# f(attributes, *inputs) for operators that onnx's reference computes in float32 whatever it is given.
_EXACT: dict[str, Callable[..., Array]] = {
    "Erf": lambda given, x: _erf(x),
    "Sigmoid": _sigmoid,
    "Tanh": lambda given, x: np.tanh(x),
    "Exp": lambda given, x: np.exp(x),
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
}


def _to_float64(value: Any) -> Any:
    return Tensor.of(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _to_numpy(value: Any) -> Any:
    return value.value if isinstance(value, Tensor) else value


def _errors(exact: Rows, original: Rows, fused: Rows) -> dict[str, tuple[Array, Array]]:
    """Output -> (the original's, the result's) absolute error per element, of float outputs of equal shapes."""
    errors = {}
    for name, truth in exact.items():
        first, second = original.get(name), fused.get(name)
        if truth is None or first is None or second is None or not is_inexact(first.dtype):
            continue
        if truth.shape == first.shape == second.shape:
            errors[name] = (difference(truth, first), difference(truth, second))
    return errors


def _precision(name: str, errors: Sequence[tuple[Array, Array]]) -> Precision:
    """Root mean square and maximum of the errors over all feeds; infinite ones do not count."""
    of_original, of_fused = zip(*errors, strict=True)
    return Precision(
        name,
        _root_mean_square(of_original),
        _root_mean_square(of_fused),
        max(largest(error) for error in of_original),
        max(largest(error) for error in of_fused),
    )


def _root_mean_square(errors: Sequence[Array]) -> float:
    finite = [error[np.isfinite(error)] for error in errors]
    total = sum(float(error @ error) for error in finite)
    return float(np.sqrt(total / max(sum(error.size for error in errors), 1)))
