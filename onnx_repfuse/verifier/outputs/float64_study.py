"""The precision study: how far the original and the result are from the exact function of the original's weights.

The truth is the original evaluated in float64: by the probes' oracle where it knows the operator, else by onnx's
reference implementation of that one operator, on float64 values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import erf
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import Precision
from onnx_repfuse.verifier.distance import Array, difference, flatten, is_inexact, largest
from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds, index_bounds
from onnx_repfuse.verifier.oracle.registry import evaluate_node, is_known
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor, Unsupported
from onnx_repfuse.verifier.session import Model, load, one_line, open_session

__all__ = ["evaluate", "study"]


def study(
    original: Model, fused: Model, *, feeds: FeedSpec | None = None, runtime: Runtime = DEFAULT_RUNTIME
) -> tuple[Precision, ...]:
    """Compare two models with float64.

    Args:
        original, fused: paths or models in memory, with the same interface; small ones: numpy does the work.
        feeds: what is known about the inputs.
        runtime: how it is run.

    Raises:
        InputError: one of them does not run, or the original cannot be evaluated in float64 (it says why).
    """
    proto = load(original)
    with open_session(original, runtime) as runner:
        chosen = choose_feeds(runner, feeds or FeedSpec(), index_bounds(original, runner.inputs))
    given = [(feed, row) for group in chosen for feed, row in zip(group.feeds, group.outputs, strict=True)]
    errors: dict[str, list[tuple[Array, Array]]] = {}
    with open_session(fused, runtime) as runner:
        for feed, row in given:
            truth = flatten(evaluate(proto, feed))
            first, second = flatten(row), flatten(runner.run(feed, list(row)))
            for name, exact in truth.items():
                one, two = first.get(name), second.get(name)
                if exact is None or one is None or two is None or not is_inexact(one.dtype):
                    continue
                if exact.shape == one.shape == two.shape:
                    errors.setdefault(name, []).append((difference(exact, one), difference(exact, two)))
    return tuple(_summary(name, found) for name, found in errors.items())


def evaluate(model: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The graph outputs in float64; integers stay integers.

    Raises:
        InputError: an operator cannot be evaluated.
    """
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    graph = model.graph
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    values: dict[str, Any] = {t.name: Tensor.of(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    values.update({name: _wide(value) for name, value in feed.items()})
    kept = {value.name for value in graph.output}
    left = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        try:
            results = _apply(model, node, opset, [values[name] if name else None for name in node.input])
        except KeyError as error:
            raise InputError(
                f"{node.op_type} reads {error}, which float64 evaluation does not know"
            ) from error
        except (Unsupported, ValueError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{node.op_type} cannot be evaluated in float64: {one_line(error)}") from error
        values.update(zip(node.output, results, strict=False))
        for name in node.input:  # let go of what nobody reads any more
            left[name] -= 1
            if not left[name] and name not in kept:
                values.pop(name, None)
    return {value.name: _plain(values[value.name]) for value in graph.output}


def _apply(model: onnx.ModelProto, node: onnx.NodeProto, opset: int, operands: list[Any]) -> list[Any]:
    if is_known(node) and all(one is None or isinstance(one, Tensor) for one in operands):
        try:
            return evaluate_node(node, Context.of(node, opset), operands)
        except Unsupported:
            pass
    if node.op_type in _EXACT and node.domain in ("", "ai.onnx") and opset >= 13 and len(node.output) == 1:
        plain = [None if one is None else one.value for one in operands]
        return [Tensor.of(_EXACT[node.op_type](Context.of(node, opset).attributes, *plain))]
    return _by_reference(model, node, operands)


def _softmax(x: Array, axis: int) -> Array:
    grown = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(grown / grown.sum(axis, keepdims=True))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _layer_norm(given: dict[str, Any], x: Array, scale: Array, bias: Array | None = None) -> Array:
    axes = tuple(range(given.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    spread = np.sqrt(
        np.square(centred).mean(axes, keepdims=True) + given.get("epsilon", float(np.float32(1e-5)))
    )
    return np.asarray(centred / spread * scale + (0 if bias is None else bias))


_erf = np.vectorize(erf, otypes=[np.float64])

# onnx's reference computes these in float32 whatever it is given.
_EXACT: dict[str, Callable[..., Array]] = {
    "Erf": lambda given, x: _erf(x),
    "Sigmoid": lambda given, x: _sigmoid(x),
    "Tanh": lambda given, x: np.tanh(x),
    "Exp": lambda given, x: np.exp(x),
    "Softmax": lambda given, x: _softmax(x, given.get("axis", -1)),
    "LayerNormalization": _layer_norm,
}


def _by_reference(model: onnx.ModelProto, node: onnx.NodeProto, operands: list[Any]) -> list[Any]:
    """One operator, by onnx's own implementation."""
    from onnx.reference import ReferenceEvaluator

    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise Unsupported("its subgraphs are not evaluated")
    feed = {name: _plain(one) for name, one in zip(node.input, operands, strict=True) if name}
    inputs = [onnx.ValueInfoProto(name=name) for name in feed]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    single = onnx.helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    with np.errstate(all="ignore"):
        found = iter(ReferenceEvaluator(single).run(None, feed))
    return [_wide(next(found)) if name else None for name in node.output]


def _wide(value: Any) -> Any:
    return Tensor.of(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Tensor) else value


def _summary(name: str, errors: list[tuple[Array, Array]]) -> Precision:
    squares = [0.0, 0.0]
    worst = [0.0, 0.0]
    count = 0
    for pair in errors:
        count += pair[0].size
        for side, gap in enumerate(pair):
            finite = gap[np.isfinite(gap)]
            squares[side] += float(finite @ finite)
            worst[side] = max(worst[side], largest(gap))
    root = [float(np.sqrt(total / max(count, 1))) for total in squares]
    return Precision(name, root[0], root[1], worst[0], worst[1])
