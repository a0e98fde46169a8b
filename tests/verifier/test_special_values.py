"""NaN, infinities, the largest and the smallest numbers, which folds without arithmetic hand on as their nodes do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.distance import ulp
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.special_values import hands_on
from tests.build import run
from tests.versions import since

PASSED, FAILED = Status.PASSED, Status.FAILED
F = np.finfo(np.float32)
TOP, INF = float(F.max), float("inf")
LIMITS = {
    "zero": 0.0,
    "one": 1.0,
    "six": 6.0,
    "top": TOP,
    "low": -TOP,
    "inf": INF,
    "down": -INF,
    "half": 0.5,
    "two": 2.0,
}


def case(before: str, after: str, kind: int = TensorProto.FLOAT) -> FoldCase:
    """A fold of x, (n, 4, t) -> y."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    top = float(np.finfo(dtype).max)

    def side(text: str) -> onnx.ModelProto:
        given = "float16[n,4,t] x" if kind == TensorProto.FLOAT16 else "float[n,4,t] x"
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> fold ({given}) => (float[n,4,t] y) {{ {text} }}'
        )
        model.graph.output[0].type.tensor_type.elem_type = kind
        read = {name for node in model.graph.node for name in node.input}
        for name, value in LIMITS.items():
            value = float(np.sign(value) * top) if abs(value) == TOP else value
            if name in read:
                model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return model

    return FoldCase(side(before), side(after))


RIGHT = {
    "two ReLUs": ("a = Relu(x) y = Relu(a)", "y = Relu(x)"),
    "limits": ("a = Relu(x) y = Clip(a, zero, six)", "y = Clip(x, zero, six)"),
    "limits of Max and Min": ("a = Max(x, zero) y = Min(a, six)", "a = Min(x, six) y = Max(a, zero)"),
    "an infinite limit": ("a = Relu(x) y = Clip(a, zero, inf)", "y = Relu(x)"),
    "a finite limit": ("a = Clip(x, low, top) y = Clip(a, low, top)", "y = Clip(x, low, top)"),
    "nothing": ("a = Mul(x, one) y = Sub(a, zero)", "y = Identity(x)"),
    "nothing, but where it overflows": ("a = Mul(x, two) y = Mul(a, half)", "y = Identity(x)"),
    "axes": (
        "t = Transpose<perm = [0, 2, 1]>(x) r = Relu(t) y = Transpose<perm = [0, 2, 1]>(r)",
        "y = Relu(x)",
    ),
}
WRONG = {
    "an infinity becomes the largest number": ("a = Relu(x) y = Clip(a, zero, inf)", "y = Clip(x, zero, top)"),
    "the largest number is no limit": ("y = Clip(x, low, top)", "y = Identity(x)"),
    "NaN becomes zero": ("y = Relu(x)", "m = Greater(x, zero) y = Where(m, x, zero)"),
    "NaN stays": ("m = Greater(x, zero) y = Where(m, x, zero)", "y = Relu(x)"),
    "no infinity any more": ("y = Max(x, down)", "y = Max(x, low)"),
}  # fmt: skip


KINDS = [
    TensorProto.FLOAT,
    pytest.param(TensorProto.FLOAT16, marks=since("Min of float16 ends the process", onnxruntime="1.20")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RIGHT)
def test_what_hands_on_all_values_alike_passes(name: str, kind: int) -> None:
    fold = case(*RIGHT[name], kind)
    assert hands_on(fold)
    verdict = probe(fold)
    assert verdict.status is PASSED, verdict.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRONG)
def test_what_hands_on_another_value_fails(name: str, kind: int) -> None:
    verdict = probe(case(*WRONG[name], kind))
    assert verdict.status is FAILED
    assert "of NaN, infinities, or the largest or smallest numbers it makes" in verdict.message


def test_arithmetic_is_not_judged_by_values_of_which_it_has_no_law() -> None:
    """The difference of two products is NaN for infinities, and one product is not."""
    fold = case(
        "a = Mul(x, two) b = Mul(x, half) y = Sub(a, b)", "c = Mul(x, one) d = Mul(x, half) y = Mul(c, half)"
    )
    assert not hands_on(fold)
    fold = case("a = Mul(x, six) b = Mul(x, two) y = Sub(a, b)", "a = Mul(x, two) y = Mul(a, two)")
    assert probe(fold).status is PASSED


@pytest.mark.parametrize("before", ["a = Add(x, x) y = Sub(a, x)", "a = Relu(x) b = Sub(x, a) y = Add(a, b)"])
def test_sums_of_tensors_of_which_one_is_left_are_not_judged_by_infinities(before: str) -> None:
    """`(x + x) - x` is x, but `(inf + inf) - inf` is NaN."""
    fold = case(before, "y = Identity(x)")
    assert not hands_on(fold)
    assert probe(fold).status is PASSED


SPECIAL = [
    np.nan,
    INF,
    -INF,
    -0.0,
    0.0,
    TOP,
    -TOP,
    F.tiny,
    -F.tiny,
    F.smallest_subnormal,
    -F.smallest_subnormal,
    3,
    -3,
]
# Of what the planner joins or removes, what ONNX Runtime makes of such values, before and after.
ONES = """
    a = Relu(x) y = Relu(a)
    a = Clip(x, low1, six) y = Relu(a)
    a = Relu(x) y = Clip(a, zero, six)
    a = Clip(x, low1, six) y = Clip(a, zero, one)
    a = Relu(x) y = Clip(a, zero)
    a = Max(x, zero) y = Min(a, six)
    a = Relu(x) y = Min(a, six)
    a = Abs(x) y = Abs(a)
    a = Neg(x) y = Neg(a)
    a = Floor(x) y = Ceil(a)
    a = Round(x) y = Floor(a)
    a = Abs(x) y = Relu(a)
    a = Exp(x) y = Relu(a)
    a = Mul(x, one) y = Tanh(a)
    a = Sub(x, zero) y = Tanh(a)
    a = Div(x, one) y = Tanh(a)
    a = Pow(x, one) y = Tanh(a)
    a = Sum(x) y = Relu(a)
    a = Mean(x) y = Relu(a)
    a = PRelu(x, one) y = Tanh(a)
    y = PRelu(x, zero)
    a = Dropout(x) y = Tanh(a)
    a = Relu(x) b = Relu(x) y = Add(a, b)
    a = Transpose<perm = [0, 2, 1]>(x) b = Relu(a) y = Transpose<perm = [0, 2, 1]>(b)
    a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Mul(x, c)
    a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)
    s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, s)
"""


def _cases() -> Iterator[Any]:
    """Each line of ONES, and since when ONNX Runtime computes both alike."""
    for line in map(str.strip, ONES.strip().splitlines()):
        version = "1.27" if "PRelu" in line else "1.24" if "Round" in line else "0.0"
        yield pytest.param(line, marks=since("its operators make other values of such", onnxruntime=version))


@pytest.mark.parametrize("nodes", list(_cases()))
def test_element_wise_folds_keep_what_the_runtime_makes_of_special_values(nodes: str) -> None:
    limits = "float zero = {0}, float one = {1}, float three = {3}, float six = {6}, float low1 = {-1}"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[n,4,t] x) => (float[n,4,t] y) <{limits}> {{ {nodes} }}'
    )
    result = fuse(model, options=Options(check=False))
    assert result.report.folds or result.report.changes
    x = np.stack([np.roll(np.array(SPECIAL, np.float32), shift) for shift in range(4)])[None]
    before, after = (_bits(run(each, {"x": x})[0], nodes) for each in (model, result.model))
    np.testing.assert_array_equal(before, after)


def _bits(value: NDArray[Any], nodes: str) -> NDArray[Any]:
    """All NaNs are one; signs of zero count. What HardSwish rounds is left out, but for where it is no number."""
    if ("six" in nodes and "Add" in nodes) or "HardSigmoid" in nodes:
        return np.nan_to_num(np.clip(value, -1e6, 1e6), nan=-7.0).round(3)
    if "Max" in nodes:  # of zeros of both signs it gives out one or the other, by their place in a vector
        value = value + np.float32(0)
    return np.where(np.isnan(value), np.float32(-7), value).view(np.uint32)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", ["max", "one", "below one", "tiny", "smallest_subnormal"])
def test_one_unit_in_the_last_place(value: str, kind: Any) -> None:
    """Of the largest double, too, whose logarithm is rounded to that of infinity."""
    limits = np.finfo(kind)
    number = {"one": 1.0, "below one": 1 - limits.epsneg}.get(value) or getattr(limits, value)
    spacing = float(kind(number) - np.nextafter(kind(number), kind(0)))
    below_a_power = 2 if value in ("one", "tiny") else 1  # the numbers below are twice as dense
    assert ulp(float(number), np.dtype(kind)) == (
        spacing * below_a_power if value != "tiny" else float(limits.smallest_subnormal)
    )


@pytest.mark.filterwarnings("error")
def test_the_largest_doubles_are_met_without_a_word() -> None:
    top = helper.make_tensor("top", TensorProto.DOUBLE, [], [np.finfo(np.float64).max])
    one = helper.make_tensor("one", TensorProto.DOUBLE, [], [1.0])
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", 4])
    outputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N", 4]) for name in ("y", "z")]
    nodes = [
        helper.make_node("Max", ["x", "top"], ["y"]),
        helper.make_node("Clip", ["x", "", "top"], ["a"]),
        helper.make_node("Clip", ["a", "one"], ["b"]),
        helper.make_node("Relu", ["b"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], outputs, [top, one])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    report = fuse(model).report
    assert report.folds or report.changes
    assert report.refusals == ()
