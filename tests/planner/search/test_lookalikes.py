"""Nodes and constants that look linear or per-channel, and are not: found by reviewers, one test each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.constant_folding import ConstantNodes
from onnx_repfuse.graph.scope import Const
from tests.build import run

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def same(text: str, weights: dict[str, Any], *feeds: dict[str, Any], opset: int = 17) -> onnx.ModelProto:
    """Fold without a check, and compare at every feed; returns what came out."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "my" : 1]> g {text}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    fused = fuse(model, options=Options(check=False)).model
    assert fused is not None
    for feed in feeds:
        for want, got in zip(run(model, feed), run(fused, feed), strict=True):
            assert want.shape == got.shape
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert fuse(model).report.verification  # and the default runs
    return fused


@pytest.mark.parametrize("step", [1, 2])
def test_a_slice_of_a_constant_without_axes(step: int) -> None:
    text = """(float[n,4] x) => (float[n,2] y) {
        k = Slice(c, s, e, , st)  u = Mul(x, k)  v = Add(u, b)  y = MatMul(v, W) }"""
    weights = {"c": random(4, 4), "s": [0], "e": [step], "st": [step], "b": random(4), "W": random(4, 2)}
    same(text, weights, {"x": random(3, 4)})


@pytest.mark.parametrize(
    ("opset", "op"),
    [
        (
            17,
            'Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , sc)',
        ),
        (9, 'Upsample<mode="nearest">(x, sc)'),
    ],
)
def test_a_resize_of_channels(opset: int, op: str) -> None:
    """4 channels times 1.2 are 4, but others."""
    text = f"(float[1,4,8,8] x) => (float[1,2,16,16] y) {{ t = {op}  y = Conv(t, w) }}"
    weights = {"sc": np.array([1, 1.2, 2, 2], np.float32), "w": random(2, 4, 1, 1)}
    same(text, weights, {"x": random(1, 4, 8, 8)}, opset=opset)


@pytest.mark.parametrize(
    ("shape", "target", "out"),
    [
        ("n,4,16", [-1, 0], "m,2"),
        ("4,16", [1, 0, -1], "1,4,2"),
        ("1,4,16", [4, 0], "4,2"),
        ("4,16", [1, 0, 4], "1,4,2"),
    ],
)
def test_a_reshape_that_copies_another_dim(shape: str, target: list[int], out: str) -> None:
    dims = [3 if d == "n" else int(d) for d in shape.split(",")]
    text = f"""(float[{shape}] x) => (float[{out}] y) {{
        t = MatMul(x, A)  u = Reshape(t, sh)  y = MatMul(u, B) }}"""
    same(text, {"sh": target, "A": random(16, 4), "B": random(4, 2)}, {"x": random(*dims)})


def test_functions_that_are_called_as_operators_are() -> None:
    product = """(float[1,3] x) => (float[1,3] y)
        <float three = {3}, float zero = {0}, float six = {6}>
        { a = Add(x, three)  b = Clip(a, zero, six)  c = Div(b, six)  y = my.Mul(c, x) }
        <domain: "my", opset_import: ["" : 17]> Mul (a, b) => (c) { c = Add(a, b) }"""
    same(product, {}, {"x": random(1, 3)})
    shape = """(float[4,4] x) => (float[2,2] y) {
        t = MatMul(x, A)  sh = my.Shape(x)  u = Reshape(t, sh)  y = MatMul(u, B) }
        <domain: "my", opset_import: ["" : 17]> Shape (a) => (c) { c = Constant<value_ints=[2, 8]>() }"""
    same(shape, {"A": random(4, 4), "B": random(8, 2)}, {"x": random(4, 4)})


@pytest.mark.parametrize(
    ("op", "kind"), [("Add", "int64"), ("Add", "int32"), ("Mul", "int64"), ("Div", "int64")]
)
def test_whole_numbers(op: str, kind: str) -> None:
    text = f"({kind}[n,4] x) => ({kind}[n,4] y) {{ t = {op}(x, b)  y = {op}(t, b) }}"
    same(text, {"b": np.array([1, 2, 3, 4], kind)}, {"x": np.arange(8).reshape(2, 4).astype(kind)})


@pytest.mark.parametrize("dims", ["", "[5]"])
@pytest.mark.parametrize("three", [3.0, [3.0]])
@pytest.mark.parametrize("gate", ["y = Div(b, six)", "c = Div(b, six)  y = Mul(x, c)"])
def test_activations_without_channels(dims: str, three: Any, gate: str) -> None:
    out = dims or ("" if three == 3.0 else "[1]")
    text = f"""(float{dims} x) => (float{out} y) <float zero = {{0}}, float six = {{6}}> {{
        a = Add(x, three)  b = Clip(a, zero, six)  {gate} }}"""
    same(text, {"three": np.array(three, np.float32)}, {"x": np.full((5,) if dims else (), 0.3, np.float32)})


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        ("k1 = Pow(p, q)  k = Cast<to=1>(k1)", {"p": [1, 1, 1, 1], "q": [-1]}),
        ("k1 = Cast<to=8>(p)  k = Cast<to=1>(k1)", {"p": np.array([1.5, 2, 3, 4], np.float32)}),
    ],
)
def test_constants_that_are_not_evaluated(made: str, weights: dict[str, Any]) -> None:
    text = f"(float[n,4] x) => (float[n,4] y) {{ {made}  u = Mul(x, k)  y = Add(u, k) }}"
    same(text, weights, {"x": random(2, 4)})


def test_a_value_of_another_shape_than_inferred_is_not_taken() -> None:
    constants = {"w": Const((4, 4), onnx.TensorProto.FLOAT, lambda: random(4, 4))}
    nodes = ConstantNodes(17, constants)
    transpose = onnx.helper.make_node("Transpose", ["w"], ["t"])
    assert nodes.add(transpose, {"t": (onnx.TensorProto.FLOAT, (2, 8))}, waits=False) == ["t"]
    with pytest.raises(Inexact):
        constants["t"].read()


def test_a_long_range() -> None:
    text = """(float[n,700] x) => (float[n,100] y) {
        r = Range(s, l, d)  rc = Cast<to=1>(r)  w = Reshape(rc, sh)  t = MatMul(x, w)  y = Mul(t, c) }"""
    ends = {"s": np.array(0), "l": np.array(70000), "d": np.array(1)}
    same(text, {**ends, "sh": [700, 100], "c": random(100) * 1e-6}, {"x": random(2, 700)})


def test_the_body_of_a_loop_is_not_held_to_its_shapes() -> None:
    text = """(float[a,b,h,w] x, int64 n, bool c) => (float[p,q,r,s] y) {
        y = Loop (n, c, x) <body = b (int64 i, bool ci, float[1,3,7,7] v) => (bool co, float[p,q,r,s] vo) {
            co = Identity(ci)
            t = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(v, W)
            u = Mul(t, k)
            vo = Resize<mode="nearest">(u, , sc)
        }> }"""
    weights = {"W": random(3, 3, 3, 3), "k": random(3, 1, 1), "sc": np.array([1, 1, 2, 2], np.float32)}
    feeds = [
        {"x": random(1, 3, h, h), "n": np.array(n), "c": np.array(True)} for h, n in ((7, 1), (8, 1), (7, 2))
    ]
    same(text, weights, *feeds)


def test_what_training_updates_stays() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,4,4] x) => (float[1,4,4,4] y) { t = Conv(x, W)  y = Mul(t, k) }""")
    model.graph.initializer.extend(
        [numpy_helper.from_array(random(4, 3, 1, 1), "W"), numpy_helper.from_array(random(4, 1, 1), "k")]
    )
    info = model.training_info.add()
    info.algorithm.name = "a"
    info.algorithm.node.append(onnx.helper.make_node("Identity", ["W"], ["W_new"]))
    info.algorithm.output.append(onnx.helper.make_tensor_value_info("W_new", 1, [4, 3, 1, 1]))
    binding = info.update_binding.add()
    binding.key, binding.value = "W", "W_new"
    fused = fuse(model).model
    assert fused is not None
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    assert "W" in {tensor.name for tensor in fused.graph.initializer}
