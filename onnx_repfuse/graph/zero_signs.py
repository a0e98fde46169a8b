"""Whether anything behind a tensor computes another value from -0 than from 0.

An Add of zero makes 0 of -0, and changes no other value. `1 / x` makes infinities of other signs of the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.facts import HAVE_SUBGRAPHS
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Scope, optional_input

__all__ = ["shows_zero", "tells_zeros_apart"]

MAX_TENSORS_BEHIND = 64  # looked at for one that tells 0 from -0
# Operators that make something else of -0 than of 0, with the inputs for which they do.
_TELL_ZEROS_APART = {"Reciprocal": (0,), "Div": (1,), "Pow": (0,), "BitCast": (0,)}
# Operators behind which the sign of a zero is lost: they add many terms, or have one value for both zeros.
_LOSE_SIGN = {
    "Abs", "Conv", "ConvTranspose", "Cos", "Exp", "Gemm", "Log", "LogSoftmax", "MatMul", "ReduceL1", "ReduceL2",
    "ReduceLogSumExp", "ReduceSumSquare", "Shape", "Sigmoid", "Softmax", "Softplus",
}  # fmt: skip
# With a constant of which every value is one of these, a zero of either sign gives the same.
_LOSE_SIGN_BESIDE = {
    "Add": np.not_equal, "Max": np.greater, "Min": np.less, "Sub": np.not_equal, "Sum": np.not_equal,
}  # fmt: skip


def shows_zero(scope: Scope, node: gs.Node, zeros: NDArray[np.float64], *, is_left: bool) -> bool:
    """Whether something behind an Add or Sub of zeros sees that it makes 0 of -0.

    x + -0 and x - 0 are x for every x, and -0 - x is -x.

    Args:
        scope: of the node.
        node: the Add or Sub.
        zeros: the constant operand.
        is_left: it is the first one.
    """
    changes_sign = np.signbit(zeros) == (node.op == "Sub" and not is_left)
    return bool(changes_sign.any()) and tells_zeros_apart(scope, node.outputs[0].name)


def tells_zeros_apart(scope: Scope, name: str) -> bool:
    """Whether something behind a tensor may compute another value from -0 than from 0.

    What is not known to do the same with both is taken to tell them apart, as are subgraphs. A graph output does not:
    -0 equals 0.
    """
    seen: set[str] = set()
    pending = [name]
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in scope.captured or len(seen) > MAX_TENSORS_BEHIND:
            return True
        for consumer in scope.consumers.get(tensor, ()):
            is_unknown = "." in consumer.op or consumer.op in HAVE_SUBGRAPHS  # of another domain
            if is_unknown or _tells_apart(scope, consumer, tensor):
                return True
            if not _loses_sign(scope, consumer):
                pending += [output.name for output in consumer.outputs if output.name]
    return False


def _tells_apart(scope: Scope, node: gs.Node, tensor: str) -> bool:
    places = _TELL_ZEROS_APART.get(node.op, ())
    if node.op == "Pow":  # a power of zero is zero, of one sign or the other, unless the exponent is negative
        exponent = _values(scope, optional_input(node, 1))
        places = () if exponent is not None and bool(np.all(exponent >= 0)) else places
    return any(optional_input(node, place) == tensor for place in places)


def _loses_sign(scope: Scope, node: gs.Node) -> bool:
    """Whether an operator gives out the same, to the bit, for a zero of either sign."""
    if node.op in _LOSE_SIGN:
        return True
    if node.op == "Pow":
        exponent = _values(scope, optional_input(node, 1))
        return exponent is not None and bool(np.all(exponent % 2 == 0))
    if node.op == "Clip":
        return any(_differs(end, kind) for end, kind in _ends(scope, node))
    kind = _LOSE_SIGN_BESIDE.get(node.op)
    others = [_values(scope, optional_input(node, place)) for place in range(len(node.inputs) if kind else 0)]
    return any(_differs(values, kind) for values in others)


def _differs(values: NDArray[np.float64] | None, kind: np.ufunc | None) -> bool:
    """Whether constants are known to be all other than zero, or all above it, or below."""
    return values is not None and kind is not None and bool(np.all(kind(values, 0.0)))


def _ends(scope: Scope, clip: gs.Node) -> Iterator[tuple[NDArray[np.float64] | None, np.ufunc]]:
    """The limits of a Clip, where they are known, and how one that hides zeros compares with zero."""
    for place, (key, kind) in enumerate((("min", np.greater), ("max", np.less)), 1):
        if operator(clip).uses_attributes(scope.opset):
            yield (np.array(clip.attrs[key], np.float64) if key in clip.attrs else None), kind
        else:
            yield _values(scope, optional_input(clip, place)), kind


def _values(scope: Scope, name: str) -> NDArray[np.float64] | None:
    """A constant that is small enough to be read while planning."""
    const = scope.const(name) if name else None
    if const is None or const.takes_kernel or not 0 < const.effort <= MAX_FOLDED_ELEMENTS:
        return None
    values = const.computed()
    return None if values is None else np.asarray(values).astype(np.float64)
