"""How much a correct fold may differ: see docs/verification.md for the derivation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.verdict import FoldVerdict, Status
from onnx_repfuse.verifier.distance import difference, largest, ulp
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.noise import noise_tolerance
from onnx_repfuse.verifier.oracle.evaluator import Oracle, Truth
from onnx_repfuse.verifier.session import DoesNotRun, open_session

__all__ = ["Errors", "Side", "Worst", "ulps_tolerance"]

Array = np.ndarray[Any, np.dtype[Any]]
_WALK = 1.0  # c of c * sqrt(n) * u * sum|w||x|
_DOUBLE = FLOAT_FORMATS[onnx.TensorProto.DOUBLE].unit_roundoff
_SINGLE = FLOAT_FORMATS[onnx.TensorProto.FLOAT].unit_roundoff
_SIGMAS = 4.0


class Side:
    """One of a fold's two models, evaluated with all the sizes its rounding errors depend on.

    Formats shorter than float32 get sharper figures, of squares, because there u is no longer small beside a
    fault: errors of many independent roundings add up in squares.

    Raises:
        Unsupported: the oracle does not know its operators.
    """

    def __init__(self, case: FoldCase, model: onnx.ModelProto) -> None:
        self.case = case
        self.oracle = Oracle(model)
        self.nodes = len(model.graph.node)
        self.coarse = case.unit > _SINGLE
        self._squares = Oracle(model, 2) if self.coarse else None
        self._storage = Oracle(model, 2, storage=True) if self.coarse else None

    def __call__(self, feed: Mapping[str, Array]) -> Errors:
        """Evaluate. Raises Unsupported, or ValueError and the like where sizes do not fit."""
        truth = self.oracle(feed)
        roots = [
            None if oracle is None else np.sqrt(oracle(feed).magnitude.astype(np.float64))
            for oracle in (self._squares, self._storage)
        ]
        return Errors(self, truth, *roots)


class Errors:
    """The truth for one feed, and how far a computation may be from it.

    Attributes:
        value: the truth, in float64.
    """

    def __init__(self, side: Side, truth: Truth, squares: Array | None, storage: Array | None) -> None:
        self._side = side
        self._terms = truth.terms
        self._magnitude = truth.magnitude.astype(np.float64)
        self._squares = squares
        self._storage = storage
        self.value = truth.value

    def fold(self, before: Errors) -> Array:
        """What rounding the folded weights (of this side) may change against `before`, both in float64."""
        case = self._side.case
        rounding = case.unit * (2.0 * self._magnitude + before._magnitude)
        if self._squares is not None and before._squares is not None:
            rounding = np.minimum(rounding, case.unit * (_SIGMAS * self._squares + 3.0 * before._squares))
        walk = np.sqrt(before._terms) * before._magnitude + np.sqrt(self._terms) * self._magnitude
        return np.asarray(rounding + 4.0 * _DOUBLE * walk + case.smallest * 16.0 * (self._terms + 1.0))

    def run(self, spread: bool = False) -> Array:
        """What a runtime of the fold's precision may differ from the truth.

        Args:
            spread: this feed only stands for others of its size, so inner tensors may be larger than here.
        """
        case, nodes = self._side.case, self._side.nodes
        tiny = case.smallest * 16.0 * (self._terms + 1.0)
        walk = _WALK * np.sqrt(self._terms) * self._magnitude
        if self._storage is None or self._squares is None or not accumulates_in_float():
            return np.asarray(walk * case.unit + nodes * case.unit * self._magnitude + tiny)
        stored = self._storage + (np.sqrt(nodes) * self._squares if spread else 0.0)
        return np.asarray(walk * _SINGLE + _SIGMAS * case.unit * stored + tiny)


@lru_cache(maxsize=1)
def accumulates_in_float() -> bool:
    """Whether this machine's runtime sums half precision in single: it does where it has no half kernels."""
    count = 4096
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((1, count, 1, 1), dtype=np.float16), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "sum",
        [value("x", onnx.TensorProto.FLOAT16, [1, count, 1, 1])],
        [value("y", onnx.TensorProto.FLOAT16, None)],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    try:
        found = open_session(model).run({"x": np.ones((1, count, 1, 1), dtype=np.float16)})["y"]
    except DoesNotRun:
        return False
    return float(found.ravel()[0]) == count


def ulps_tolerance(value: Array, shaken: Sequence[Array]) -> Array:
    """Without an oracle: 4 times the change by one ulp, and 8 ulp of the largest value."""
    noise = max((largest(difference(value, other)) for other in shaken), default=0.0)
    return np.asarray(noise_tolerance(noise, ulp(largest(value), value.dtype)))


class Worst:
    """The element that is farthest beyond (or nearest to) its tolerance, over many comparisons."""

    def __init__(self, output: str, judge: str) -> None:
        self.output = output
        self.judge = judge
        self.ratio = -1.0
        self.error = 0.0
        self.tolerance = 0.0
        self.where = ""
        self.notes: dict[str, None] = {}

    def see(self, gap: Array, allowed: Array, where: str) -> None:
        """Take in one comparison; a gap that is not finite, or has no tolerance, counts as infinite."""
        allowed = np.broadcast_to(allowed, gap.shape)
        with np.errstate(all="ignore"):
            ratio = np.where(gap == 0, 0.0, gap / allowed)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if not ratio.size:
            return
        at = int(ratio.argmax())
        if float(ratio.flat[at]) > self.ratio:
            self.ratio = float(ratio.flat[at])
            self.error, self.tolerance = float(gap.flat[at]), float(allowed.flat[at])
            self.where = f"{where}, at {tuple(int(i) for i in np.unravel_index(at, gap.shape))}"

    def note(self, text: str) -> None:
        """Add a remark to the message, once."""
        self.notes[text] = None

    def verdict(self, stage: str) -> FoldVerdict:
        """PASSED if every comparison stayed within its tolerance."""
        good = self.ratio <= 1.0
        text = f"'{self.output}' differs by {self.error:.3g} where {self.tolerance:.3g} is allowed"
        if not good:
            text = f"{text}, {self.where}"
        message = "; ".join((text, *self.notes))
        status = Status.PASSED if good else Status.FAILED
        return FoldVerdict(self.output, status, stage, self.error, self.tolerance, self.judge, message)
