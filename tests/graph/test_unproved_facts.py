"""Facts that a file states and a runtime does not hold to prove nothing; models that are odd, but run, still run."""

from __future__ import annotations

import warnings
from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import InputError, VerificationError
from tests.build import run
from tests.parts import agree, batch_norm, graph, info, model, node, norm, random, rarely
from tests.versions import since

# names that stand for two things


def _scan() -> onnx.GraphProto:
    return graph(
        [node("Conv", "xi w", "t"), batch_norm("t", "o")],
        [info("o", ["n", 4, "h", "w_"])],
        {},
        [info("xi", ["n", 3, "h", "w_"]), info("w", [4, 3, 1, 1])],
    )


def test_an_input_of_a_body_hides_the_weight_of_its_name_around_it() -> None:
    nodes = [node("Scan", "xs ws", "y", num_scan_inputs=2, body=_scan()), node("Reshape", "w all", "z")]
    outputs = [info("y", ["s", "n", 4, "h", "w_"]), info("z", [12])]
    inputs = [info("xs", ["s", "n", 3, "h", "w_"]), info("ws", ["s", 4, 3, 1, 1])]
    weights = {"w": random(4, 3, 1, 1), "all": [-1], **norm(4)}
    made = model(graph(nodes, outputs, weights, inputs))
    agree(made, {"xs": random(2, 1, 3, 4, 4), "ws": random(2, 4, 3, 1, 1)})


@pytest.mark.parametrize("inside", [True, False])
def test_a_branch_weight_with_the_name_of_one_around_it_computes_the_same(inside: bool) -> None:
    """ONNX Runtime takes the inner one, unless another branch reads the outer one."""
    dims = ["n", 4, "h", "w_"]
    nodes = [node("Conv", "x w", "a"), batch_norm("a", "o")]
    then = graph(nodes, [info("o", dims)], {"w": random(4, 3, 1, 1)})
    other = graph([node("Conv", "x w" if inside else "x u", "o2")], [info("o2", dims)])
    made = rarely(then, other, {"w": random(4, 3, 1, 1), "u": random(4, 3, 1, 1), **norm(4)})
    agree(made, {"x": random(1, 3, 4, 4)}, {"x": 100 * random(1, 3, 2, 2) + 200}, folds=None)


# initializers that a caller may override by others of another shape


def test_an_initializer_that_a_caller_may_override_is_not_proved_not_to_broadcast() -> None:
    nodes = [
        node("Add", "x v", "a"),
        node("Conv", "a k1", "b", pads=[1] * 4),
        node("Conv", "x k2", "c", pads=[1] * 4),
        node("Add", "b c", "y"),
    ]
    weights = {"v": random(1, 3, 4, 4), "k1": random(3, 3, 3, 3), "k2": random(3, 3, 3, 3)}
    inputs = [info("x", [1, 3, 4, 4]), info("v", ["p", "q", "r", "s"])]
    made = model(graph(nodes, [info("y", None)], weights, inputs))
    agree(made, {"x": random(1, 3, 4, 4)}, {"x": random(1, 3, 4, 4), "v": random(1, 3, 1, 1)})


def test_the_shape_of_an_initializer_that_a_caller_may_override_proves_nothing() -> None:
    nodes = [
        node("Shape", "v", "sh"),
        node("Conv", "x k", "a"),
        node("Reshape", "a sh", "b"),
        batch_norm("b", "y"),
    ]
    weights = {"v": random(1, 4, 16), "k": random(4, 4, 1, 1), **norm(4)}
    inputs = [info("x", [1, 4, 4, 4]), info("v", ["p", "q", "r"])]
    made = model(graph(nodes, [info("y", None)], weights, inputs))
    agree(made, {"x": random(1, 4, 4, 4)}, {"x": random(1, 4, 4, 4), "v": random(2, 4, 8)})


# models that are odd, but run


@pytest.mark.parametrize("check", [True, False])
def test_before_ir_4_a_branch_folds_weights_that_are_inputs_too(check: bool) -> None:
    weights = {"w": random(4, 3, 1, 1), **norm(4)}
    then = graph([node("Conv", "x w", "a"), batch_norm("a", "o")], [info("o", None)])
    other = graph([node("Conv", "x w", "o2")], [info("o2", None)])
    inputs = [info("x", ["n", 3, "h", "w_"]), info("c", [], TensorProto.BOOL)]
    inputs += [info(name, value.shape) for name, value in weights.items()]
    nodes = [node("If", "c", "y", then_branch=then, else_branch=other)]
    made = model(graph(nodes, [info("y", ["n", 4, "h", "w_"])], weights, inputs), opset=9, ir=3)
    result = fuse(made, options=Options(check=check))
    assert len(result.report.folds) == 1
    assert result.model is not None
    for taken in (True, False):
        feed = {"x": random(1, 3, 4, 4), "c": np.array(taken)}
        np.testing.assert_allclose(run(result.model, feed)[0], run(made, feed)[0], rtol=1e-4, atol=1e-4)


def test_tensors_without_channels_stay_as_they_are() -> None:
    nodes = [batch_norm("x", "a"), node("Conv", "a w", "b"), node("Mul", "a k", "z"), node("Relu", "b", "y")]
    weights = {"w": random(4, 0, 1, 1), "k": random(1, 0, 1, 1), **norm(0)}
    outputs = [info("y", ["n", 4, "h", "w_"]), info("z", ["n", 0, "h", "w_"])]
    made = model(graph(nodes, outputs, weights, [info("x", ["n", 0, "h", "w_"])]))
    agree(made, {"x": random(1, 0, 4, 4)})


def test_a_matrix_product_over_no_channels_stays_as_it_is() -> None:
    nodes = [node("Mul", "x k", "a"), node("MatMul", "a w", "y")]
    weights = {"w": random(0, 4), "k": random(0)}
    agree(model(graph(nodes, [info("y", ["n", 4])], weights, [info("x", ["n", 0])])), {"x": random(3, 0)})


def test_a_weight_that_cannot_be_computed_is_refused() -> None:
    nodes = [node("Gather", "table rows", "w", axis=0), node("Conv", "x w", "a"), batch_norm("a", "y")]
    weights = {"table": random(2, 3, 1, 1), "rows": [0, 1, 5, 0], **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 3, "h", "w_"])]))
    result = fuse(made, options=Options(check=False))
    assert not result.report.folds
    assert any("cannot be computed" in refusal.message for refusal in result.report.refusals)


def test_a_resize_that_may_leave_no_position_still_runs() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Resize", "a  sc", "b", mode="nearest"),
        batch_norm("b", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), "sc": np.array([1, 1, 0.5, 0.5], np.float32), **norm(4)}
    made = model(graph(nodes, [info("y", ["n", 4, "p", "q"])], weights, [info("x", ["n", 3, "h", "w_"])]))
    agree(made, {"x": random(1, 3, 4, 4)}, {"x": random(1, 3, 1, 4)})


def test_weights_that_are_not_finite_are_refused_without_a_warning() -> None:
    weight = random(4, 3, 1, 1)
    weight[1, 1] = np.inf
    weights = {"w": weight, **norm(4)}
    weights["ps"][1] = 0
    made = model(
        graph(
            [node("Conv", "x w", "a"), batch_norm("a", "y")],
            [info("y", None)],
            weights,
            [info("x", ["n", 3, "h", "w_"])],
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fuse(made, options=Options(check=False)).report.folds


@pytest.mark.parametrize(
    "odd",
    [
        node("MaxPool", "x", "a", kernel_shape=[2, 2], strides=[0, 0], ceil_mode=1),
        node("MaxPool", "x", "a", kernel_shape=2, ceil_mode=1),
        node("Resize", "x  nan", "a", mode="nearest"),
        node("Resize", "x  inf", "a", mode="nearest"),
        pytest.param(
            node("Squeeze", "x", "a", axes="no"),
            marks=since("onnx before 1.23 ends the process on a Conv of another rank", onnx="1.23"),
        ),
        node("Cast", "x", "a", to="FLOAT"),
    ],
)
def test_attributes_that_make_no_sense_raise_our_errors_only(odd: NodeProto) -> None:
    weights = {name: np.array([1, 1, float(name), 1], np.float32) for name in ("nan", "inf")}
    nodes = [odd, node("Conv", "a w", "b"), batch_norm("b", "y")]
    weights |= {"w": random(4, 3, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 5, 5])]))
    with suppress(InputError, VerificationError):
        fuse(made)
    with suppress(InputError):
        fuse(made, options=Options(check=False))


def test_strides_of_0_are_refused_before_a_runtime_divides_by_them() -> None:
    nodes = [
        node("MaxPool", "x", "a", kernel_shape=[2, 2], strides=[1, 0]),
        node("Conv", "a w", "b"),
        batch_norm("b", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 5, 5])]))
    with pytest.raises(InputError, match=r"MaxPool 'a' has strides of \[1, 0\]"):
        fuse(made)


def test_a_scalar_that_a_fold_does_not_read_needs_no_probe() -> None:
    """The ratio of a Dropout in inference mode may be an input of the model."""
    nodes = [
        node("Conv", "x w", "c"),
        batch_norm("c", "b"),
        node("Dropout", "b ratio", "d"),
        node("Relu", "d", "y"),
    ]
    inputs = [info("x", ["n", 3, "h", "w_"]), info("ratio", [])]
    weights = {"w": random(4, 3, 1, 1), "ratio": np.float32(0.5), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, inputs))
    report = agree(made, {"x": random(1, 3, 4, 4)}, folds=None)
    assert report.folds
    assert "Dropout" not in report.after.ops
