"""--skip, --only and --keep, honoured exactly: one small model for each kind of fold."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, UsageError, fuse, plan
from onnx_repfuse.records.report import Kind
from tests.build import Net, equal


def _affine(net: Net) -> str:
    return net.conv_bn("x", 4, 4, 3)


def _branches(net: Net) -> str:
    return net.add(net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1))


def _sequence(net: Net) -> str:
    return net.conv(net.conv("x", 4, 16, 1, bias=False), 16, 4, 3)


def _pad(net: Net) -> str:
    padded = net.op("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    return net.conv(padded, 4, 4, 3, pad=0)


def _pool(net: Net) -> str:
    pooled = net.op("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return net.add(pooled, net.conv("x", 4, 4, 3))


def _matmul(net: Net) -> str:
    net.shape = ("N", 4)
    first = net.op("MatMul", "x", net.random(4, 32))
    return str(net.op("MatMul", first, net.random(32, 4)))


def _transpose(net: Net) -> str:
    return net.bn(net.op("ConvTranspose", "x", net.random(4, 4, 2, 2), strides=[2, 2]), 4)


def _concat(net: Net) -> str:
    return str(net.op("Concat", net.conv("x", 4, 2, 3), net.conv("x", 4, 2, 3), axis=1))


def _commute(net: Net) -> str:
    return net.bn(net.op("Transpose", net.conv("x", 4, 4, 3), perm=[0, 1, 3, 2]), 4)


def _index(net: Net) -> str:
    return net.conv(net.op("Gather", "x", net.const(np.array([3, 1, 0, 2])), axis=1), 4, 4, 3)


def _activation(net: Net) -> str:
    name = net.op("Relu", "x")
    inner = net.op("Clip", net.op("Add", name, net.const(3.0)), net.const(0.0), net.const(6.0))
    return str(net.op("Div", net.op("Mul", name, inner), net.const(6.0)))


def _stride(net: Net) -> str:
    return net.conv(net.op("Relu", net.conv("x", 4, 4, 3)), 4, 4, 1, strides=[2, 2])


def _dead(net: Net) -> str:
    kernel = net.rng.normal(size=(4, 4, 3, 3))
    kernel[:2] = 0
    first = net.op("Conv", "x", net.const(kernel), pads=[1] * 4)
    return str(net.op("Conv", net.op("Relu", first), net.random(4, 4, 1, 1)))


def _product(net: Net) -> str:
    net.shape = ("N", 4, 4)
    scores = net.op("MatMul", net.op("MatMul", "x", net.random(4, 4)), net.op("Relu", "x"))
    return str(net.op("Mul", scores, net.const(0.6)))


MODELS: dict[Kind, Callable[[Net], str]] = {
    Kind.AFFINE: _affine,
    Kind.BRANCHES: _branches,
    Kind.SEQUENCE: _sequence,
    Kind.PAD: _pad,
    Kind.POOL: _pool,
    Kind.MATMUL: _matmul,
    Kind.TRANSPOSE: _transpose,
    Kind.CONCAT: _concat,
    Kind.COMMUTE: _commute,
    Kind.ACTIVATION: _activation,
    Kind.STRIDE: _stride,
    Kind.INDEX: _index,
    Kind.DEAD: _dead,
    Kind.PRODUCT: _product,
}


CHANGES = {Kind.CONSTANT, Kind.EQUAL, Kind.NO_OP, Kind.FROZEN, Kind.FLUSH}  # no folds


def test_there_is_a_model_for_every_kind() -> None:
    assert set(MODELS) == set(Kind) - CHANGES


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_kind_is_skipped_done_alone_and_kept_node_by_node(kind: Kind) -> None:
    net = Net(4)
    model = net.model(MODELS[kind](net))
    original = model.SerializeToString()

    free = fuse(model).report.folds
    assert [fold.kind for fold in free] == [kind], free
    alone = fuse(model, options=Options(only=frozenset(free[0].kinds)))
    assert [fold.kind for fold in alone.report.folds] == [kind]
    assert equal(model, alone.model) > 0

    skipped = fuse(model, options=Options(skip=frozenset((kind,))))
    assert all(fold.kind is not kind for fold in skipped.report.folds)
    assert not skipped.report.folds
    assert skipped.model.SerializeToString() == original
    others = fuse(model, options=Options(only=frozenset(Kind) - {kind}))
    assert not others.report.folds

    for node in free[0].absorbed:
        kept = fuse(model, options=Options(keep=(node.name,)))
        before = next(n for n in model.graph.node if n.name == node.name)
        assert before in kept.model.graph.node
        assert all(node.name not in [n.name for n in fold.absorbed] for fold in kept.report.folds)
    everything = fuse(model, options=Options(keep=("*",)))
    assert everything.model.SerializeToString() == original


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_fold_needs_every_kind_that_it_absorbs(kind: Kind) -> None:
    net = Net(4)
    model = net.model(MODELS[kind](net))
    (fold,) = fuse(model).report.folds
    for missing in fold.kinds:
        assert not fuse(model, options=Options(skip=frozenset((missing,)))).report.folds
        assert not fuse(model, options=Options(only=frozenset(Kind) - {missing})).report.folds


def test_what_a_joint_step_absorbs_counts() -> None:
    net = Net(4)
    padded = net.op("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    model = net.model(*(net.conv(padded, 4, 4, 3, pad=0) for _ in range(2)))
    assert [fold.kind for fold in fuse(model).report.folds] == [Kind.PAD] * 2
    assert not fuse(model, options=Options(skip=frozenset((Kind.PAD,)))).report.folds


def test_what_is_inlined_counts() -> None:
    net = Net(4)
    link = "x"
    for _ in range(3):
        link = net.add(net.conv(link, 4, 4, 1), link)
    model = net.model(link)
    assert [fold.kind for fold in fuse(model).report.folds] == [Kind.SEQUENCE]
    apart = fuse(model, options=Options(skip=frozenset((Kind.SEQUENCE,))))
    assert [fold.kind for fold in apart.report.folds] == [Kind.BRANCHES] * 3


def _nothing_but_no_ops() -> onnx.ModelProto:
    """An Identity, an Add of zero, a Reshape to the same shape and a Slice of everything, behind Relu or Tanh."""
    net = Net(4, shape=(1, 4, 8, 8))
    y = net.op("Identity", net.op("Relu", "x"))
    y = net.op("Add", net.op("Tanh", y), net.const(np.zeros((4, 1, 1))))
    y = net.op("Reshape", net.op("Relu", y), net.const(np.array([1, 4, 8, 8])))
    y = net.op("Slice", net.op("Tanh", y), *(net.const(np.array([k])) for k in (0, 4, 1)))
    return net.model(net.op("Relu", y))


def test_a_node_that_gives_out_what_it_reads_is_no_fold() -> None:
    model = _nothing_but_no_ops()
    result = fuse(model)
    assert not result.report.folds
    assert [change.kind for change in result.report.changes] == [Kind.NO_OP] * 4
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Tanh", "Relu", "Tanh", "Relu"]
    assert equal(model, result.model) > 0
    for options in (
        Options(skip=frozenset((Kind.NO_OP,))),
        Options(only=frozenset(Kind) - CHANGES),
        Options(keep=("*",)),
    ):
        kept = fuse(model, options=options)
        assert kept.report.changes == ()
        assert kept.report.verification.unchanged
        assert kept.model.SerializeToString() == model.SerializeToString()
    for change in result.report.changes:
        (name,) = change.nodes
        kept = fuse(model, options=Options(keep=(name,))).report
        assert [c.nodes for c in kept.changes] == [c.nodes for c in result.report.changes if c is not change]


def test_an_identity_within_a_fold_is_of_no_kind() -> None:
    net = Net(4)
    model = net.model(net.bn(net.op("Identity", net.conv("x", 4, 4, 3)), 4))
    report = fuse(model, options=Options(only=frozenset((Kind.AFFINE,)))).report
    assert [[node.op for node in fold.absorbed] for fold in report.folds] == [
        ["Conv", "Identity", "BatchNormalization"]
    ]
    report = fuse(model, options=Options(skip=frozenset((Kind.AFFINE,)))).report
    assert report.folds == ()


def test_an_add_of_zero_before_a_graph_output_is_a_change() -> None:
    net = Net(4)
    model = net.model(net.op("Add", net.op("Relu", "x"), net.const(np.zeros((4, 1, 1)))))
    result = fuse(model)
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Identity"]
    (change,) = result.report.changes
    assert "now an Identity" in change.claim
    assert result.report.folds == result.report.vanished == ()


def test_a_kept_node_whose_output_is_sliced_away_stays() -> None:
    net = Net(4)
    kept = net.op("Relu", net.conv("x", 4, 4, 3))
    both = net.op("Concat", kept, net.conv("x", 4, 4, 1), axis=1)
    bounds = [net.const(np.array([value])) for value in (4, 8, 1)]
    model = net.model(net.bn(net.op("Slice", both, *bounds), 4))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    free = fuse(model)
    assert not [n for n in free.model.graph.node if n.op_type == "Relu"]
    result = fuse(model, options=Options(keep=(node.name,)))
    assert node in result.model.graph.node
    assert result.report.folds


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("/Head/*", "did you mean '/head/fc/conv'"),  # in other letters
        ("/haed/*", "did you mean '/head/*'"),
        ("fc/*", "did you mean '*fc/*'"),
        ("/head/fc/cnv", "did you mean '/head/fc/conv'"),
        ("zzzz", "--list-nodes"),
    ],
)
def test_a_glob_to_keep_that_matches_no_node_is_wrong_usage(pattern, meant):
    net = Net(4)
    model = net.model(net.bn(net.op("Conv", "x", net.random(4, 4, 1, 1), name="/head/fc/conv"), 4))
    for call in (fuse, plan):
        with pytest.raises(UsageError, match=re.escape(meant)):
            call(model, options=Options(keep=(pattern,)))


def test_nodes_that_compute_constants_may_be_kept():
    net = Net(4)
    weight = net.op(
        "Constant", value=onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32)), name="weight"
    )
    assert not fuse(net.model(net.op("Conv", "x", weight)), options=Options(keep=("weight",))).report.folds


def test_kinds_may_be_words_and_unknown_ones_are_wrong_usage():
    assert Options(skip=["Pad"], only={"affine", Kind.POOL}) == Options(  # type: ignore[arg-type]
        skip=frozenset({Kind.PAD}), only=frozenset({Kind.AFFINE, Kind.POOL})
    )
    for name in ("skip", "only"):
        with pytest.raises(UsageError, match="did you mean 'affine'"):
            Options(**{name: frozenset({"afine"})})
