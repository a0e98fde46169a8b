"""Equal nodes are merged before anything is planned: the same operator of the same tensors, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from onnx_repfuse import Options, Result, fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from onnx_repfuse.records.verdict import Status
from tests.build import Net, check, counts, run
from tests.parts import Weights, agree, batch_norm, graph, info, model, node, norm, random, rarely

X = {"x": random(2, 4, 6, 7)}


def _model(
    nodes: list[NodeProto], weights: Weights | None = None, *outputs: str, **options: Any
) -> onnx.ModelProto:
    body = graph(nodes, [info(name, None) for name in outputs or ("y",)], weights, [info("x", [2, 4, 6, 7])])
    return model(body, **options)


def _left(made: onnx.ModelProto, **options: Any) -> dict[str, int]:
    """The operators of the result, which computes the same, bit for bit, and which a second run leaves alone."""
    result = fuse(made, options=Options(**options))
    assert result.model is not None
    for want, got in zip(run(made, X), run(result.model, X), strict=True):
        np.testing.assert_array_equal(got, want)
    again = fuse(result.model, options=Options(**options)).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()
    return counts(result.model)


def test_branches_behind_equal_casts_merge() -> None:
    """As a converter to half precision writes them, one for each consumer."""
    half = {"w": random(4, 4, 3, 3).astype(np.float16), "u": random(4, 4, 1, 1).astype(np.float16)}
    nodes = [
        node("Cast", "x", "a", to=10),
        node("Cast", "x", "b", to=10),
        node("Conv", "a w", "c", pads=[1] * 4),
    ]
    nodes += [
        node("Conv", "b u", "d"),
        node("Add", "c d", "s"),
        node("Relu", "s", "r"),
        node("Cast", "r", "y", to=1),
    ]
    result = fuse(_model(nodes, half))
    assert result.model is not None
    assert counts(result.model) == {"Cast": 2, "Conv": 1, "Relu": 1}
    (change,) = result.report.changes
    assert (change.kind, change.nodes) == (Kind.EQUAL, ("b",))
    assert change.claim == "Cast 'b' computes the same as Cast 'a': 'b' equals 'a', which is read instead"
    (verdict,) = result.report.verification.changes
    assert verdict.status is Status.PASSED
    (fold,) = result.report.verification.folds
    assert fold.status is Status.PASSED


@pytest.mark.parametrize("constants", [("k", "k"), ("k", "k2")])
def test_chains_of_equal_nodes_become_one(constants: tuple[str, str]) -> None:
    """Also where each has constants of its own."""
    first, second = constants
    nodes = [node("Sin", "x", "a"), node("Mul", f"a {first}", "b"), node("Cos", "b", "c")]
    nodes += [
        node("Sin", "x", "a2"),
        node("Mul", f"a2 {second}", "b2"),
        node("Cos", "b2", "c2"),
        node("Add", "c c2", "y"),
    ]
    weights = {"k": np.float32(3), "k2": np.float32(3)}
    assert _left(_model(nodes, weights)) == {"Sin": 1, "Mul": 1, "Cos": 1, "Add": 1}


def test_a_node_with_several_outputs_merges_as_a_whole() -> None:
    nodes = [node("Split", "x", "a b", axis=1), node("Split", "x", "c d", axis=1)]
    nodes += [node("Mul", "a d", "p"), node("Mul", "b c", "q"), node("Sub", "p q", "y")]
    made = _model(nodes)
    assert _left(made)["Split"] == 1
    assert [change.nodes for change in fuse(made).report.changes if change.kind is Kind.EQUAL] == [("c",)] * 2


def test_nodes_that_are_equal_only_behind_an_identity_merge() -> None:
    nodes = [
        node("Identity", "x", "i"),
        node("Sin", "i", "a"),
        node("Sin", "x", "b"),
        node("Sub", "a b", "y"),
    ]
    assert _left(_model(nodes)) == {"Sin": 1, "Sub": 1}


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        # other attributes, constants, tensors, or places of inputs
        ([node("Elu", "x", "a", alpha=1.0), node("Elu", "x", "b", alpha=2.0)], {}),
        ([node("Pow", "x p", "a"), node("Pow", "x q", "b")], {"p": np.float32(2), "q": np.float32(3)}),
        ([node("Mod", "x p", "a", fmod=1), node("Mod", "p x", "b", fmod=1)], {"p": np.float32(2)}),
        ([node("Sin", "x", "t"), node("Cos", "t", "a"), node("Cos", "x", "b")], {}),
        # as many bytes, but another type
        ([node("Slice", "x s t", "a"), node("Slice", "x s u", "b")],
         {"s": [0], "t": [2], "u": [1]}),
        # random, whatever the seed
        ([node("RandomUniformLike", "x", "a", seed=1.0), node("RandomUniformLike", "x", "b", seed=1.0)], {}),
        # with subgraphs, which decide what it computes
        ([node("If", "t", "a", then_branch=graph([node("Sin", "x", "u")], [info("u", None)]),
               else_branch=graph([node("Cos", "x", "v")], [info("v", None)])),
          node("If", "t", "b", then_branch=graph([node("Cos", "x", "w")], [info("w", None)]),
               else_branch=graph([node("Sin", "x", "z")], [info("z", None)]))],
         {"t": np.array(True)}),
    ],
)  # fmt: skip
def test_what_differs_stays(nodes: list[NodeProto], weights: Weights) -> None:
    made = _model([*nodes, node("Concat", "a b", "y", axis=1)], weights)
    result = fuse(made, options=Options(check=False, skip=frozenset((Kind.CONSTANT,))))
    assert not [change for change in result.report.changes if change.kind is Kind.EQUAL]


def test_large_constants_are_equal_only_if_they_are_one() -> None:
    """To compare their values would read every weight while planning."""
    w = random(4, 4, 9, 9)
    nodes = [
        node("Conv", "x w", "a", pads=[4] * 4),
        node("Conv", "x u", "b", pads=[4] * 4),
        node("Mul", "a b", "y"),
    ]
    assert _left(_model(nodes, {"w": w, "u": w}))["Conv"] == 2
    nodes[1] = node("Conv", "x w", "b", pads=[4] * 4)
    assert _left(_model(nodes, {"w": w})) == {"Conv": 1, "Mul": 1}


@pytest.mark.parametrize(
    "options", [{"skip": frozenset((Kind.EQUAL,))}, {"keep": ("b",)}, {"only": frozenset((Kind.AFFINE,))}]
)
def test_it_may_be_left_out(options: dict[str, Any]) -> None:
    nodes = [node("Sin", "x", "a"), node("Sin", "x", "b"), node("Sub", "a b", "y")]
    assert _left(_model(nodes), **options) == {"Sin": 2, "Sub": 1}


def test_an_output_of_the_graph_keeps_its_node() -> None:
    nodes = [node("Sin", "x", "a"), node("Sin", "x", "y"), node("Cos", "a", "z")]
    assert _left(_model(nodes, {}, "y", "z")) == {"Sin": 1, "Cos": 1}
    nodes = [node("Sin", "x", "a"), node("Sin", "x", "y"), node("Sin", "x", "z")]
    assert _left(_model(nodes, {}, "y", "z")) == {"Sin": 3}  # `a` is for nobody, and not ours to remove


def test_in_a_branch() -> None:
    nodes = [node("Sin", "x", "a"), node("Sin", "x", "b"), node("Conv", "a w", "d"), node("Conv", "b w", "e")]
    then = graph([*nodes, node("Add", "d e", "s"), batch_norm("s", "o")], [info("o", None)])
    other = graph([node("Conv", "x w", "o2")], [info("o2", None)])
    made = rarely(then, other, {"w": random(4, 3, 1, 1), **norm(4)})
    x = random(2, 3, 5, 5)
    report = agree(made, {"x": x}, {"x": x + 60}, folds=1)
    assert [change.kind for change in report.changes] == [Kind.EQUAL, Kind.EQUAL]


def test_long_chains_are_merged_in_linear_time() -> None:
    """Two thousand equal pairs, each behind the one before."""
    nodes, last = [], ["x", "x"]
    for number in range(2000):
        last = [f"a{number}", f"b{number}"]
        below = ["x", "x"] if number == 0 else [f"a{number - 1}", f"b{number - 1}"]
        nodes += [helper.make_node("Sin", [name], [out]) for name, out in zip(below, last, strict=True)]
    made = _model([*nodes, node("Sub", " ".join(last), "y")])
    result = fuse(made, options=Options(check=False))
    assert result.model is not None
    assert counts(result.model) == {"Sin": 2000, "Sub": 1}


@pytest.mark.parametrize("swapped", [False, True])
def test_views_that_two_folds_create_of_one_tensor_are_one(swapped: bool) -> None:
    """Both products take the doubled and transposed tensor in, and view `x` each for itself."""
    ends = [node("MatMul", "t v", "p"), node("MatMul", "t w", "q")]
    nodes = [
        node("Add", "x x", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        *(ends[::-1] if swapped else ends),
        node("Sin", "p", "s"),
        node("Mul", "s q", "y"),
    ]
    made = _model(nodes, {"v": random(4, 5), "w": random(4, 5)})
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == {"Transpose": 1, "MatMul": 2, "Sin": 1, "Mul": 1}
    agree(made, X, folds=2)
    again = fuse(result.model).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()


def test_a_fold_may_read_what_an_equal_node_behind_it_computes() -> None:
    """The second Slice is an output of the graph and stays; the fold stands where the first Conv was."""
    ends = {"lo": np.array([0]), "hi": np.array([2]), "axis": np.array([2])}
    nodes = [
        node("Slice", "x lo hi axis", "a"),
        node("Conv", "a w", "c"),
        batch_norm("c", "d"),
        node("Slice", "x lo hi axis", "z"),
        node("Sin", "d", "y"),
    ]
    made = _model(nodes, {**ends, "w": random(4, 4, 1, 1), **norm(4)}, "z", "y")
    agree(made, X, folds=1)
    result = fuse(made).model
    assert result is not None
    assert counts(result) == {"Slice": 1, "Conv": 1, "Sin": 1}
    assert result.graph.node[0].op_type == "Slice"


def test_two_nodes_that_write_one_tensor_are_not_merged() -> None:
    """An invalid model; planning once looked for the end of a chain of names that has none."""
    made = _model([node("Sin", "x", "a"), node("Sin", "x", "a"), node("Cos", "a", "y")])
    result = fuse(made, options=Options(check=False)).model
    assert result is not None
    assert counts(result) == {"Sin": 2, "Cos": 1}


VIEW = {"perm": [0, 2, 3, 1]}
# What the file, or a fold, computes of `x` by the same Transpose as a fold does for itself.
EQUAL_VIEWS = {
    "a node of the file": [node("Transpose", "x", "u", **VIEW), node("MatMul", "u w", "z")],
    "an output": [node("Transpose", "x", "z", **VIEW)],
    "an output, read": [node("Transpose", "x", "z", **VIEW), node("MatMul", "z w", "unread")],
    "the root of a fold": [node("Neg", "x", "m"), node("Neg", "m", "n"), node("Transpose", "n", "u", **VIEW),
                           node("Sin", "u", "z")],
    "an inner one": [node("Mul", "x two", "m"), node("Transpose", "m", "u", **VIEW), node("MatMul", "u w", "z")],
    "one of another fold": [node("Transpose", "x", "u", **VIEW), node("Add", "u b", "k"), node("MatMul", "k w", "z")],
}  # fmt: skip


@pytest.mark.parametrize("is_behind", [True, False])
@pytest.mark.parametrize("kind", EQUAL_VIEWS)
def test_a_view_that_a_fold_creates_may_be_one_of_others(kind: str, is_behind: bool) -> None:
    """The fold's proof gives neither side the view that it took from elsewhere."""
    own = [
        node("Mul", "x two", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        node("MatMul", "t v", "q"),
        node("Transpose", "q", "y", perm=[0, 3, 1, 2]),
    ]
    nodes = [*own, *EQUAL_VIEWS[kind]] if is_behind else [*EQUAL_VIEWS[kind], *own]
    weights = {"v": random(4, 4), "w": random(4, 4), "b": random(4), "two": np.array(2, np.float32)}
    made = _model(nodes, weights, "y", "z")
    result = fuse(made)
    assert [one.message for one in result.report.refusals if one.reason is Reason.VERIFICATION] == []
    agree(made, X, folds=len(result.report.folds))
    assert counts(result.model)["Transpose"] == 2
    for options in (Options(), Options(check=False)):
        first = fuse(made, options=options).model
        again = fuse(first, options=options).model
        assert again.SerializeToString() == first.SerializeToString()


def test_equal_nodes_that_do_nothing_are_each_proved() -> None:
    """The one that is read instead goes, too, as a no-op."""
    net = Net(4)
    x = net.op("Relu", "x")
    first, second = (net.op("Cast", x, to=onnx.TensorProto.FLOAT) for _ in range(2))
    made = net.add(net.conv(first, 4, 4, 3), net.conv(second, 4, 4, 1))
    result = check(net.model(net.op("Relu", made)), {"Relu": 2, "Conv": 1})
    assert {str(change.kind) for change in result.report.changes} == {"equal", "no-op"}
    assert Reason.VERIFICATION not in {refusal.reason for refusal in result.report.refusals}


def _twice(made: onnx.ModelProto) -> Result:
    """The result, which is proved, and which a second run leaves alone."""
    result = fuse(made)
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED
    assert result.model is not None
    assert not [refusal for refusal in result.report.refusals if refusal.reason is Reason.VERIFICATION]
    again = fuse(result.model).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()
    return result


@pytest.mark.parametrize("behind", ["m3 = ReduceMean <axes = [1]> (x) a3 = Relu (m3)", "a3 = Relu (a1)"])
def test_what_equals_a_node_that_equals_another_is_proved(behind: str) -> None:
    """a3 equals a1, and this equals a2, which is found one reading later: both are proved of what is left."""
    made = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 1] y, float[N, 1] a2) {{
            m1 = ReduceMean <axes = [1]> (x)
            a1 = Relu (m1)
            {behind}
            m2 = ReduceMean <axes = [1]> (x)
            a2 = Relu (m2)
            s1 = Sigmoid (a1)
            s3 = Tanh (a3)
            y = Mul (s1, s3)
        }}""")
    result = fuse(made)
    assert result.report.refusals == ()
    assert counts(result.model) == {"ReduceMean": 1, "Relu": 1, "Sigmoid": 1, "Tanh": 1, "Mul": 1}


def test_normalizations_that_two_folds_create_of_one_tensor_are_one() -> None:
    """For padded Convs that read what a BatchNormalization gives out, and cannot take its shift in."""
    net = Net(3)
    y = net.bn(net.conv("x", 3, 3, 1, group=3), 3)
    ends = [net.op("Relu", net.conv(y, 3, 3, 3, pads=[2] * 4)) for _ in range(2)]
    result = _twice(
        net.model(net.op("Mul", net.op("Mul", *ends), net.op("Relu", net.add(y, net.conv("x", 3, 3, 1)))))
    )
    assert counts(result.model) == {"BatchNormalization": 1, "Conv": 3, "Relu": 3, "Mul": 2}


@pytest.mark.parametrize(
    ("readers", "is_shared", "left"),
    [
        (("Sin", "Cos"), False, {"Mul": 2, "Sin": 1, "Cos": 1}),
        (("Sin", "Conv"), False, {"Mul": 2, "Sin": 1, "Conv": 1}),
        (("Conv", "Conv"), False, {"Mul": 1, "Conv": 1}),
        (("Sin", "Cos"), True, {"Mul": 2, "Sin": 1, "Cos": 1, "Elu": 1, "Add": 2}),
        (("Conv", "Sin"), True, {"Mul": 2, "Sin": 1, "Conv": 1, "Elu": 1, "Add": 2}),
        (("Conv", "Conv"), True, {"Mul": 2, "Conv": 1, "Elu": 1, "Add": 1}),
    ],
)
def test_two_folds_that_compute_the_same_are_one(
    readers: tuple[str, str], is_shared: bool, left: dict[str, int]
) -> None:
    """Chains of other factors, with the same product."""
    nodes = [node("Sqrt", "x", "r")]
    for place, (first, second) in enumerate((("four", "half"), ("half", "four"))):
        nodes += [node("Mul", f"r {first}", f"a{place}"), node("Mul", f"a{place} {second}", f"b{place}")]
        nodes += [node(readers[place], f"b{place}" + " w" * (readers[place] == "Conv"), f"c{place}")]
        nodes += [node("Elu", f"b{place}", f"d{place}"), node("Add", f"c{place} d{place}", f"e{place}")][
            : 2 * is_shared
        ]
    nodes += [node("Mul", "e0 e1" if is_shared else "c0 c1", "y")]
    weights = {"four": np.float32(4), "half": np.float32(0.5), "w": random(4, 4, 1, 1)}
    result = _twice(_model(nodes, weights))
    assert counts(result.model) == {"Sqrt": 1, **left}
