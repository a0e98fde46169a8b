"""An attribute in a function that refers to an argument is unknown, whatever the operator, if calls do not agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper

from onnx_repfuse import Options, fuse
from tests.build import run
from tests.parts import agree, batch_norm, graph, info, model, node, norm, random, rarely

GIVEN = {
    AttributeProto.FLOAT: 0.5,
    AttributeProto.INT: 2,
    AttributeProto.FLOATS: [0.5, 2.0],
    AttributeProto.INTS: [2, 3],
}
OTHERS = {
    AttributeProto.FLOAT: 0.25,
    AttributeProto.INT: 3,
    AttributeProto.FLOATS: [0.5, 1.0],
    AttributeProto.INTS: [2, 4],
}


def _reference(name: str, kind: int) -> AttributeProto:
    return AttributeProto(name=name, ref_attr_name="p", type=kind)


def _call(body: list[NodeProto], value: object, *others: object) -> onnx.ModelProto:
    """A model that calls a function of `X` to `Y` with `p=value`, in an If branch that rarely runs.

    It also calls it with other values, for nobody.
    """
    made = rarely(
        graph([helper.make_node("F", ["x"], ["o"], domain="local", p=value)], [info("o", None)]),
        graph([node("Conv", "x u", "o2")], [info("o2", None)]),
        {"u": random(4, 3, 1, 1)},
    )
    for number, other in enumerate(others):
        call = helper.make_node("F", ["x"], [f"unread{number}"], domain="local", p=other)
        made.graph.node.append(call)
    opsets = [helper.make_opsetid("", 17)]
    made.opset_import.add(domain="local", version=1)
    made.functions.append(helper.make_function("local", "F", ["X"], ["Y"], body, opsets, ["p"]))
    return made


def _constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))


@pytest.mark.parametrize("form", ["value_float", "value_floats", "value_int", "value_ints"])
def test_a_constant_of_an_argument_is_no_constant(form: str) -> None:
    kind = AttributeProto.AttributeType.Value(form.removeprefix("value_").upper())
    constant = helper.make_node("Constant", [], ["k"])
    constant.attribute.append(_reference(form, kind))
    body = [
        constant,
        node("Cast", "k", "f", to=TensorProto.FLOAT),
        node("ReduceSum", "f", "s", keepdims=0),
        _constant("w", random(4, 3, 1, 1)),
        node("Mul", "X s", "m"),
        node("Conv", "m w", "Y"),
    ]
    feeds = {"x": random(1, 3, 4, 4)}, {"x": 100 * random(1, 3, 4, 4) + 200}
    agree(_call(body, GIVEN[kind], OTHERS[kind]), *feeds)
    agree(_call(body, GIVEN[kind], GIVEN[kind]), *feeds, folds=None)


@pytest.mark.parametrize(
    ("op", "inputs", "name", "given"),
    [
        ("Concat", "c c", "axis", 2),
        ("Conv", "X v", "group", 1),
        ("Conv", "X v", "strides", [1, 2]),
        ("Conv", "X v", "pads", [1, 0, 1, 0]),
        ("Transpose", "c", "perm", [0, 1, 3, 2]),
        ("Flatten", "c", "axis", 2),
        ("Gemm", "c2 w2", "transB", 1),
        ("Softmax", "c", "axis", 2),
        ("Split", "c", "axis", 3),
        ("LeakyRelu", "c", "alpha", 0.5),
        ("BatchNormalization", "c ps pb pm pv", "epsilon", 0.5),
        ("MaxPool", "c", "kernel_shape", [2, 1]),
        ("ReduceMean", "c", "axes", [2]),
    ],
)
def test_a_node_with_an_argument_for_an_attribute_stays_as_it_is(
    op: str, inputs: str, name: str, given: object
) -> None:
    kinds = {int: AttributeProto.INT, float: AttributeProto.FLOAT, list: AttributeProto.INTS}
    odd = node(op, inputs, "y0")
    odd.attribute.append(_reference(name, kinds[type(given)]))
    weights = {"w": random(4, 3, 1, 1), "v": random(4, 3, 1, 1), "w2": random(4, 4), **norm(4)}
    body = [
        *(_constant(key, np.asarray(value)) for key, value in weights.items()),
        node("Conv", "X w", "c"),
        node("ReduceMean", "c", "c2", axes=[2, 3], keepdims=0),
        odd,
        node("Neg", "y0", "y1"),
        node("Neg", "y1", "Y"),
    ]
    made = _call(body, given)
    first, second = {"x": random(1, 3, 4, 4)}, {"x": 100 * random(1, 3, 4, 4) + 200}
    agree(made, first, second, folds=None)


def test_what_is_around_such_a_node_is_folded() -> None:
    body = [
        _constant("w", random(4, 3, 1, 1)),
        *(_constant(key, value) for key, value in norm(4).items()),
        node("Conv", "X w", "c"),
        batch_norm("c", "b"),
        node("LeakyRelu", "b", "Y"),
    ]
    body[-1].attribute.append(_reference("alpha", AttributeProto.FLOAT))
    made = _call(body, 0.5)
    result = fuse(made, options=Options(check=False))
    assert [fold.kinds for fold in result.report.folds] == [("affine",)]
    assert result.report.before.ops["LeakyRelu"] == 1
    feed = {"x": 100 * random(1, 3, 4, 4) + 200}
    assert result.model is not None
    np.testing.assert_allclose(run(result.model, feed)[0], run(made, feed)[0], rtol=1e-3, atol=1e-1)


CALLS = {
    "one": ([{"p": 1}], True),
    "two alike": ([{"p": 1}, {"p": 1}], True),
    "two that differ": ([{"p": 1}, {"p": 2}], False),
    "the function's default": ([{}, {"p": 1}], True),
    "not the function's default": ([{}, {"p": 2}], False),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("calls", CALLS)
def test_an_argument_that_is_the_same_in_all_calls_is_known(calls: str, inside: bool) -> None:
    """A Conv with a stride for an argument, and a BatchNormalization; some calls are in a subgraph."""
    arguments, is_known = CALLS[calls]
    body = [
        _constant("w", random(3, 3, 1, 1)),
        *(_constant(key, value) for key, value in norm(3).items()),
        node("Conv", "X w", "c"),
        batch_norm("c", "Y"),
    ]
    body[-2].attribute.append(_reference("group", AttributeProto.INT))
    default = [helper.make_attribute("p", 1)]
    function = helper.make_function(
        "local", "F", ["X"], ["Y"], body, [helper.make_opsetid("", 17)], [], attribute_protos=default
    )
    nodes = [helper.make_node("F", ["x"], [f"y{n}"], domain="local", **p) for n, p in enumerate(arguments)]
    last = nodes.pop()
    if inside:
        then, other = (graph([last], [info(last.output[0], None)]) for _ in range(2))
        last = helper.make_node("If", ["true"], ["z"], then_branch=then, else_branch=other)
    made = model(
        graph(
            [*nodes, last],
            [info(last.output[0], None)],
            {"true": np.array(True)},
            [info("x", ["N", 3, 4, 4])],
        )
    )
    made.opset_import.add(domain="local", version=1)
    made.functions.append(function)
    result = fuse(made, options=Options(check=False))
    assert len(result.report.folds) == is_known
    if is_known:
        feed = {"x": random(2, 3, 4, 4)}
        np.testing.assert_allclose(run(result.model, feed)[0], run(made, feed)[0], rtol=1e-4, atol=1e-4)
        assert [fold.kinds for fold in fuse(made).report.folds] == [("affine",)]


def test_an_argument_of_a_function_around_the_call_is_unknown() -> None:
    inner = [_constant("w", random(3, 3, 1, 1)), node("Conv", "X w", "c"), node("Conv", "c w", "Y")]
    inner[1].attribute.append(_reference("group", AttributeProto.INT))
    call = helper.make_node("F", ["A"], ["B"], domain="local")
    call.attribute.append(AttributeProto(name="p", ref_attr_name="q", type=AttributeProto.INT))
    outer = helper.make_node("G", ["x"], ["y"], domain="local", q=1)
    made = model(graph([outer], [info("y", None)], {}, [info("x", ["N", 3, 4, 4])]))
    made.opset_import.add(domain="local", version=1)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made.functions.append(helper.make_function("local", "F", ["X"], ["Y"], inner, opsets, ["p"]))
    made.functions.append(helper.make_function("local", "G", ["A"], ["B"], [call], opsets, ["q"]))
    assert fuse(made, options=Options(check=False)).report.folds == ()
