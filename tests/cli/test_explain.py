"""`--explain`: the region, the forms, the reason and the figures of one node, in every state a node can be in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse.cli.explain import explain
from onnx_repfuse.cli.list_nodes import list_nodes
from onnx_repfuse.cli.main import main
from onnx_repfuse.errors import InputError
from onnx_repfuse.options import Options
from onnx_repfuse.records.report import Kind
from tests.build import Net

MODELS = Path(__file__).parents[2] / "models"
REPVGG, FASTVIT = MODELS / "repvgg.train.onnx", MODELS / "fastvit.train.onnx"
SQUARE = "/0/square/bn/BatchNormalization"


def test_a_fused_node():
    text = explain(str(MODELS / "acnet.train.onnx"), SQUARE)
    region, forms = text.split("Forms considered")
    assert region.startswith(f"BatchNormalization '{SQUARE}'\nFused (affine, branches)")
    assert region.count("<- this node") == 1
    assert region.count("    Conv") == 4  # three branches, and what they become
    assert "MACs: " in region
    assert "as it is:" in forms
    assert forms.count("- chosen") == 1
    assert "Conv 3x3" in forms.split("- chosen")[0]
    assert "not cheaper" in forms


def test_a_node_by_the_name_of_its_output():
    assert "Fused" in explain(str(MODELS / "acnet.train.onnx"), "/0/square/bn/BatchNormalization_output_0")


def test_a_node_whose_input_has_another_consumer():
    text = explain(str(FASTVIT), "/stages.2/blocks/blocks.0/norm/BatchNormalization")
    assert "Not fused (consumers)" in text
    assert "In general: its input has another consumer" in text
    assert "Into '/stages.2/pos_emb/" in text
    assert "_fused" not in text.split("Forms considered")[0]
    assert "as it is: 0 MACs" in text


def test_a_pair_that_is_more_expensive_as_one():
    text = explain(str(FASTVIT), "/stages.1/blocks/blocks.0/mlp/fc1/Conv")
    assert "Not fused (cost)" in text
    assert "Conv 7x7 16->32" in text
    assert "refused: more multiply-adds" in text


def test_a_linear_node_by_itself_and_one_that_is_not_linear():
    text = explain(str(REPVGG), "/head/fc/Gemm")
    assert "it is linear, but none of the forms" in text
    assert "- chosen" in text
    text = explain(str(REPVGG), "/stages/stages.2/stages.2.2/act/Relu")
    assert "regions end here" in text


def test_the_forms_that_options_rule_out():
    options = Options(skip=frozenset({Kind.BRANCHES}))
    text = explain(str(MODELS / "acnet.train.onnx"), "/0/Add_1", options)
    assert "ruled out by --skip or --only" in text


@pytest.mark.parametrize("cost", ["ort-cpu", "macs"])
def test_costs_have_the_unit_of_their_model(cost):
    text = explain(str(MODELS / "acnet.train.onnx"), SQUARE, Options(cost=cost))
    assert (" us " in text) == (cost == "ort-cpu")


def test_a_misspelt_name():
    with pytest.raises(InputError, match="did you mean '/head/fc/Gemm'"):
        explain(str(REPVGG), "/head/fc/Gem")


def saved(net, output, folder):
    onnx.save(net.model(output), folder / "m.onnx")
    return str(folder / "m.onnx")


def test_a_no_op_is_removed_and_is_no_fold(tmp_path):
    net = Net(4)
    relu = net.op("Relu", net.conv("x", 4, 4, 3))
    same = net.op("Add", relu, net.const(np.zeros((4, 1, 1))))
    text = explain(saved(net, net.op("Sigmoid", same), tmp_path), same)
    assert text.splitlines()[1].startswith("Removed (no-op), which is no fold: Add")
    assert f"equals '{relu}'" in text


def test_a_root_behind_a_no_op_keeps_its_name():
    """It was once said both to be fused, with its name kept, and to stay as it is."""
    text = explain(str(MODELS / "mobileone.train.onnx"), "/stem/Add_1_output_0")
    assert "it computes part of '/stem/Add_1_output_0', whose name stays" in text
    assert "Stays as it is" not in text


def test_a_constant_that_nobody_reads_any_more():
    assert "Removed: no node reads" in explain(str(MODELS / "mobileone.train.onnx"), "/stem/Constant")


def test_what_may_be_linear_is_not_called_nonlinear(tmp_path):
    net = Net(4)
    first, second = net.op("Relu", "x"), net.op("Sigmoid", "x")
    rows = net.op("CumSum", net.op("Mul", first, second), net.const(np.array(1)))
    path = saved(net, rows, tmp_path)
    names = {node.op_type: node.output[0] for node in onnx.load(path).graph.node}
    assert "nothing proves that this Mul is a linear map" in explain(path, names["Mul"])
    assert "CumSum is not among the operators that are read as linear maps" in explain(path, names["CumSum"])
    assert "this Sigmoid is not a linear map" in explain(path, names["Sigmoid"])


@pytest.mark.parametrize("case", ["window", "sizes"])
def test_a_form_that_was_refused_is_not_called_chosen(case, tmp_path):
    net = Net(shape=("N", 8, "H", "W"))
    if case == "window":
        first = net.op("AveragePool", "x", kernel_shape=[2, 2])
        second, why = net.bn(first, 8), "at some size a window would be larger than what it reads"
    else:
        first = net.op("Conv", "x", net.random(6, 8, 1, 1))
        second = net.op("Conv", first, net.random(4, 6, 3, 3), strides=[2, 2], pads=[1] * 4)
        why = "more multiply-adds at some size"
    path = saved(net, second, tmp_path)
    for name in (first, second):
        text = explain(path, name)
        assert "Not fused (shape)" in text
        assert f" - refused: {why}" in text
        assert text.count("- chosen") == text.count("Forms considered")
        assert text.count("as it is") == text.count("- chosen")


def test_what_is_kept_says_so():
    text = explain(str(MODELS / "acnet.train.onnx"), SQUARE, Options(keep=(SQUARE,)))
    assert "Stays as it is: --keep names it." in text


def test_a_glob_explains_every_node_that_it_matches():
    text = explain(str(MODELS / "acnet.train.onnx"), "/0/*/bn/BatchNormalization")
    assert text.startswith("3 nodes:\n\nBatchNormalization '/0/")
    assert text.count("<- this node") == 3
    one = explain(str(MODELS / "acnet.train.onnx"), "/0/square/bn/*")
    assert one == explain(str(MODELS / "acnet.train.onnx"), SQUARE)


def test_an_input_or_a_weight_explains_the_nodes_that_read_it():
    text = explain(str(MODELS / "acnet.train.onnx"), "input")
    assert text.startswith("'input' is read by 3 nodes:\n\nConv '/0/")
    assert text.count("<- this node") == 3
    weight = onnx.load(MODELS / "acnet.train.onnx").graph.node[0].input[1]
    assert f"'{weight}' is read by 1 node:" in explain(str(MODELS / "acnet.train.onnx"), weight)


def test_a_glob_that_matches_nothing_says_where_the_names_are():
    with pytest.raises(InputError, match="--list-nodes prints the names"):
        explain(str(REPVGG), "%%%*")


def test_every_node_is_listed_with_what_becomes_of_it(tmp_path, capsys):
    path = MODELS / "pplcnetv3.train.onnx"
    lines = list_nodes(str(path)).splitlines()
    names = [line.split()[1] for line in lines]
    computed = {node.name for node in onnx.load(path).graph.node}
    assert set(names) == computed
    assert len(names) == len(computed)
    assert any(re.search(r"^Conv .* folds: branches, into '", line) for line in lines)
    assert any(line.endswith(" stays") for line in lines)
    net = Net(4)
    same = net.op("Identity", net.op("Relu", "x", name="relu"), name="same")
    onnx.save(net.model(net.op("Conv", same, net.random(4, 4, 3, 3), name="conv")), tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), "--list-nodes"]) == 0
    assert [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()] == [
        ["Relu", "relu", "stays"], ["Identity", "same", "removed: no-op"], ["Conv", "conv", "stays"]
    ]  # fmt: skip


def test_forms_below_views_are_told_by_what_they_read(tmp_path: Path) -> None:
    net = Net(4)
    parts = [net.op("Transpose", net.conv("x", 4, c, k), perm=[0, 2, 3, 1]) for c, k in ((4, 3), (2, 5))]
    y = net.op("Mul", net.op("Concat", *parts, axis=3), net.channel(6, 0))
    onnx.save(net.model(net.op("Relu", y)), tmp_path / "model.onnx")
    text = explain(str(tmp_path / "model.onnx"), y)
    assert "of 'x', in place of" in text
    assert "Form(" not in text
