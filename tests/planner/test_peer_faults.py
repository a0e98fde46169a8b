"""Faults that other tools have, or had: each a model of ours. Those that a family's own test covers are not repeated.

Constants taken for a channel's (test_families_affine: along space, rank up), training mode and five outputs, float16
with float32 statistics, statistics per position, IR 3, beta of a Gemm, shared weights and aliased statistics, negative
and shared pads, other readers, colliding names: see the families. Here is the rest.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal

TINY = 1e-7


def test_auto_pad_forgets_no_dilation() -> None:
    """A rewriting of auto_pad that leaves dilations out shrinks the output. ONNX Runtime does not run this form."""
    net = Net(shape=(2, 4, 8, 8))
    y = net.conv("x", 4, 6, 3, auto_pad="SAME_UPPER", dilations=[2, 2])
    result = fuse(net.model(net.bn(y, 6)), options=Options(check=False))
    (conv,) = result.model.graph.node
    pads = next(list(a.ints) for a in conv.attribute if a.name == "pads")
    assert pads == [2, 2, 2, 2]


@pytest.mark.parametrize("auto", ["VALID", "SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_beside_pads_says_nothing(auto: str) -> None:
    """Runtimes differ in which of the two they follow."""
    net = Net(4, shape=("N", 4, 6, 6))
    y = net.conv("x", 4, 4, 3, pad=[5, 4, 3, 2], auto_pad=auto, strides=[2, 2])
    result = fuse(net.model(net.bn(y, 4)), options=Options(check=False))
    assert not result.report.folds
    assert Reason.UNSUPPORTED in {refusal.reason for refusal in result.report.refusals}


def test_full_channel_constant_behind_groups() -> None:
    """The constant has as many entries as the Conv has output channels, not as a group has."""
    net = Net(4)
    y = net.op("Add", net.conv("x", 4, 6, 3, group=2, bias=False), net.channel(6))
    check(net.model(net.op("Mul", y, net.channel(6))), {"Conv": 1})


def test_nodes_without_names() -> None:
    net = Net(4)
    out = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))
    out = net.add(net.conv_bn(net.op("Relu", out), 4, 4, 3), net.bn("x", 4))
    for node in net.nodes:
        node.name = ""
    result = check(net.model(out), {"Conv": 2, "Relu": 1, "BatchNormalization": 1, "Add": 1})
    assert len({t.name for t in result.model.graph.initializer}) == len(result.model.graph.initializer)


@pytest.mark.parametrize("wall", ["Relu", "Clip", "Abs", "LRN", "Softmax"])
def test_what_is_not_linear_ends_a_region(wall: str) -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    attrs = {"LRN": {"size": 3}}.get(wall, {})
    check(net.model(net.bn(net.op(wall, y, **attrs), 4)), None)


@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_pad_before_a_pool_that_counts(count_include_pad: int) -> None:
    """Pad, then a pool without pads, divides by the whole window everywhere, whatever the attribute says."""
    net = Net(4, shape=("N", 4, 5, 6))
    padded = net.op("Pad", net.conv("x", 4, 4, 1), net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    pooled = net.op("AveragePool", padded, kernel_shape=[3, 3], count_include_pad=count_include_pad)
    out = net.add(pooled, net.conv("x", 4, 4, 3))
    model = net.model(net.op("Relu", out))
    result = fuse(model)
    assert equal(model, result.model) > 0


def test_pad_before_a_pool_joins_the_branch_beside_it() -> None:
    net = Net(4)
    padded = net.op("Pad", net.conv("x", 4, 4, 1, bias=False), net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    out = net.add(net.op("AveragePool", padded, kernel_shape=[3, 3]), net.conv("x", 4, 4, 3))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


def test_pad_before_a_conv_without_pads_attribute() -> None:
    net = Net(4)
    padded = net.op("Pad", "x", net.const(np.array([0, 0, 1, 2, 0, 0, 2, 1])))
    check(net.model(net.op("Conv", padded, net.random(4, 4, 3, 3))), {"Conv": 1})


@pytest.mark.parametrize("shape", [(3, 6), (1, 3, 6), (2, 1, 1)])
def test_bias_that_no_matrix_product_takes(shape: tuple[int, ...]) -> None:
    """It differs along rows, or adds an axis."""
    net = Net(shape=("N", 3, 4) if shape != (2, 1, 1) else (3, 4))
    y = net.op("MatMul", "x", net.random(4, 6))
    bias = net.const(net.rng.standard_normal(shape))
    check(net.model(net.op("Add", y, bias)), None)


@pytest.mark.parametrize("last", [(), (1,), (6,), (1, 6)])
def test_scalars_and_rows_are_biases(last: tuple[int, ...]) -> None:
    net = Net(shape=("N", 4))
    y = net.op("Gemm", "x", net.random(4, 6), net.random(6))
    y = net.op("Add", y, net.const(net.rng.standard_normal(last)))
    check(net.model(y), {"Gemm": 1})


def test_small_variances_in_half_precision() -> None:
    """The factor is computed in float64 and rounded once."""
    net = Net(4, dtype=np.float16)
    scale, shift, mean = (net.const(net.rng.uniform(0.5, 1, 4)) for _ in range(3))
    variance = net.const(np.full(4, TINY))
    y = net.op("BatchNormalization", net.conv("x", 4, 4, 3, bias=False), scale, shift, mean, variance)
    model = net.model(y)
    result = check(model, {"Conv": 1}, tolerance=2e-3)
    folded = next(numpy_helper.to_array(t) for t in result.model.graph.initializer if len(t.dims) == 4)
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weight = next(v for v in values.values() if v.ndim == 4)
    stored = np.float64(values[variance][0])
    factor = values[scale] / np.sqrt(stored + np.float64(np.float32(1e-5)))
    assert np.array_equal(folded, (weight * factor[:, None, None, None]).astype(np.float16))


def test_transposed_conv_of_unequal_channels() -> None:
    net = Net(3)
    y = net.op("ConvTranspose", "x", net.random(3, 5, 2, 2), strides=[2, 2])
    check(net.model(net.op("Add", net.bn(y, 5), net.channel(5))), {"ConvTranspose": 1})


@pytest.mark.parametrize("position", ["output", "capture"])
def test_a_product_that_is_also_read_elsewhere(position: str) -> None:
    """Conv, Mul: the product is a graph output, or read in a branch, beside its own consumer."""
    net = Net(4)
    y = net.op("Mul", net.conv("x", 4, 4, 3), net.channel(4))
    out = net.op("Relu", y)
    if position == "output":
        check(net.model(out, y), {"Conv": 1, "Relu": 1})
        return
    info = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Abs", [y], ["inner"])], "branch", [], [info])
    net.more_inputs.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    seen = net.op("If", "choice", then_branch=branch, else_branch=branch)
    check(net.model(out, seen), {"Conv": 1, "Relu": 1, "If": 1})


def test_the_interface_is_untouched() -> None:
    """Inputs, outputs, their symbolic sizes, and the tensors' names."""
    net = Net(4)
    out = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))
    model = net.model(net.op("Relu", out), out)
    result = fuse(model).model
    for before, after in ((model.graph.input, result.graph.input), (model.graph.output, result.graph.output)):
        assert [v.SerializeToString() for v in before] == [v.SerializeToString() for v in after]
    assert result.opset_import == model.opset_import
    assert result.ir_version == model.ir_version


def test_folded_weights_are_plain_initializers() -> None:
    """No node computes them, and nothing is left over."""
    net = Net(4)
    result = check(net.model(net.conv_bn("x", 4, 4, 3)), {"Conv": 1})
    (conv,) = result.model.graph.node
    assert {t.name for t in result.model.graph.initializer} == set(conv.input[1:])


def test_every_fold_reports_the_names_of_what_it_absorbed() -> None:
    net = Net(4)
    out = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))
    names = {node.name for node in net.nodes}
    (fold,) = fuse(net.model(out)).report.folds
    assert {ref.name for ref in fold.absorbed} == names


def test_inputs_in_the_place_of_weights_by_name_only() -> None:
    """An initializer that no graph input names, in a file that has others which one does."""
    net = Net(4)
    model = net.model(net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1)))
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    result = fuse(model)
    assert Reason.OVERRIDABLE in {r.reason for r in result.report.refusals}
    assert equal(model, result.model) > 0
    assert weight.name in {i.name for i in result.model.graph.input}


def test_a_model_that_gives_nan_before_gives_nan_after() -> None:
    net = Net(4)
    y = net.conv_bn("x", 4, 4, 3)
    bad = net.op("Div", net.op("Sub", y, y), net.op("Sub", y, y))
    model = net.model(bad)
    result = fuse(model, options=Options(check=False))
    assert counts(result.model)["Conv"] == 1
    assert equal(model, result.model) > 0


def test_train_mode_says_what_to_do() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    out = net.op("BatchNormalization", y, *net.statistics(4), outputs=3, training_mode=1)
    result = fuse(net.model(out[0]), options=Options(check=False))
    (refusal,) = [r for r in result.report.refusals if r.reason is Reason.TRAINING]
    assert "model.eval()" in refusal.message


def test_twice_is_once() -> None:
    """convert_to_deploy, run again, must do nothing."""
    net = Net(4)
    model = net.model(net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1), net.bn("x", 4)))
    once = fuse(model).model
    assert fuse(once).model.SerializeToString() == once.SerializeToString()


def test_strange_initializers_are_left_alone() -> None:
    """Empty ones, ones nobody reads, strings: not ours to tidy."""
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    strange = [
        onnx.TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0]),
        numpy_helper.from_array(np.ones(3, np.float32), "unused"),
        helper.make_tensor("text", TensorProto.STRING, [1], [b"\xff"]),
    ]
    model.graph.initializer.extend(strange)
    kept = {t.name: t.SerializeToString() for t in fuse(model).model.graph.initializer}
    assert all(kept[t.name] == t.SerializeToString() for t in strange)
