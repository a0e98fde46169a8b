"""Two models whose interfaces or fixed sizes differ: that is said, and a size that both accept is tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse import InputError, fuse, verify
from onnx_repfuse.cli.main import main
from tests.build import Net


def net_at(shape: tuple[int | str, ...], name: str = "x", flatten: int = 0) -> onnx.ModelProto:
    net = Net(4, shape=shape)
    y = net.conv("x", 4, 4, 3)
    if flatten:  # runs at one size of the input only
        y = net.op("MatMul", net.op("Flatten", net.op("Relu", y)), net.random(flatten, 3))
    model = net.model(y)
    for node in model.graph.node:
        node.input[:] = [name if read == "x" else read for read in node.input]
    model.graph.input[0].name = name
    return model


def compared(
    first: onnx.ModelProto, second: onnx.ModelProto, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    onnx.save(first, "a.onnx")
    onnx.save(second, "b.onnx")
    code = main(["--compare", "a.onnx", "b.onnx", *more])
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shape", [(1, 4, "H", "W"), (3, 4, 40, 24)])
def test_sizes_that_one_of_the_two_fixes_are_taken(
    shape: tuple[int | str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    free, fixed = net_at(("N", 4, "H", "W")), net_at(shape)
    assert compared(free, fixed, capsys)[0] == 0
    assert compared(fixed, free, capsys)[0] == 0
    assert {sizes["x"][0] for sizes in verify(free, fixed).shapes} == {shape[0]}


def test_fixed_sizes_that_differ_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = compared(net_at((1, 4, 8, 8)), net_at((2, 4, 8, 8)), capsys)
    assert code == 3
    assert "cannot be compared" in text
    assert "the shape [1, 4, 8, 8] in the first model and [2, 4, 8, 8] in the second" in text
    assert "differs by" not in text


def test_types_and_names_that_differ_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    other = net_at(("N", 4, "H", "W"))
    other.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    code, text = compared(net_at(("N", 4, "H", "W")), other, capsys)
    assert code == 3
    assert "the type tensor(float) in the first model and tensor(int32) in the second" in text
    more = net_at(("N", 4, "H", "W"))
    more.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    code, text = compared(net_at(("N", 4, "H", "W")), more, capsys)
    assert code == 3
    assert "the inputs differ: ['x', 'z'] instead of ['x']" in text
    assert "--by-order" not in text  # it would not help
    assert "input 'z' tensor(float) [1] is in the second model only" in text


def test_inputs_of_other_names_are_paired_by_order_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    free, fixed = net_at(("N", 4, "H", "W")), net_at((1, 4, 16, 16), name="input.1")
    code, text = compared(free, fixed, capsys)
    assert code == 3
    assert "the inputs differ: ['input.1'] instead of ['x']; --by-order matches them by their order" in text
    code, text = compared(free, fixed, capsys, "--by-order")
    assert code == 0
    line = "input 'x' tensor(float) [N, 4, H, W] in the first model, 'input.1' tensor(float) [1, 4, 16, 16] in the"
    assert line in text
    assert compared(fixed, free, capsys, "--by-order")[0] == 0


def test_order_is_a_request_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Outputs of the same names in another order are paired by name, unless their order is asked for."""

    def two(first: str, second: str) -> onnx.ModelProto:
        net = Net(4, shape=("N", 4, "H", "W"))
        outputs = net.op("Relu", net.conv("x", 4, 4, 3)), net.op("Neg", "x")
        model = net.model(*outputs)
        by_name = {value.name: value for value in model.graph.output}
        del model.graph.output[:]
        model.graph.output.extend(by_name[outputs[index]] for index in (int(first), int(second)))
        return model

    assert compared(two("0", "1"), two("1", "0"), capsys)[0] == 0
    code, text = compared(two("0", "1"), two("1", "0"), capsys, "--by-order")
    assert code == 3
    assert "the two models differ" in text


def test_outputs_that_both_have_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(4, shape=("N", 4, "H", "W"))
    y = net.conv("x", 4, 4, 3)
    one, two = net.op("Relu", y), net.op("Neg", y)
    both, only = net.model(one, two), net.model(one)
    code, text = compared(both, only, capsys)
    assert code == 3
    assert f"PASSED {one}" in text
    assert f"FAILED {two}" in text
    assert f"output '{two}' tensor(float)" in text
    assert "is in the first model only" in text
    code, text = compared(only, both, capsys)
    assert code == 3
    assert f"PASSED {one}" in text
    assert f"'{two}' is an output of the second model only" in text


def test_a_size_at_which_only_the_second_runs_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """The second model takes 32 x 32 alone, which its interface does not say."""
    shape = ("N", 4, "H", "W")
    first, second = net_at(shape), net_at(shape)
    size = "size"
    second.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 4, 32, 32]), size))
    last = second.graph.node[-1]
    last.output[0] = "before"
    second.graph.node.append(
        onnx.helper.make_node("Reshape", ["before", size], [second.graph.output[0].name])
    )
    code, text = compared(first, second, capsys)
    assert code == 0, text


def test_where_no_size_fits_both_one_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("N", 4, "H", "W")
    code, text = compared(net_at(shape, flatten=4 * 64 * 96), net_at(shape, flatten=4 * 31 * 53), capsys)
    assert code == 3
    assert "no size was found at which both run; give --input-shape x:N,4,H,W" in text


def test_messages_name_no_file_of_ours() -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    with pytest.raises(InputError) as caught:
        fuse(model)
    message = str(caught.value)
    assert "original.onnx" not in message
    assert ".repfuse-" not in message
    assert "/tmp" not in message
