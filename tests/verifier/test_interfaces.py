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
    first: onnx.ModelProto, second: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    onnx.save(first, "a.onnx")
    onnx.save(second, "b.onnx")
    code = main(["--compare", "a.onnx", "b.onnx"])
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
    other.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    code, text = compared(net_at(("N", 4, "H", "W")), other, capsys)
    assert code == 3
    assert "the type tensor(float) in the first model and tensor(float16) in the second" in text
    more = net_at(("N", 4, "H", "W"))
    more.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    code, text = compared(net_at(("N", 4, "H", "W")), more, capsys)
    assert code == 3
    assert "the inputs differ: ['x', 'z'] instead of ['x']" in text


def test_inputs_of_other_names_are_paired_by_position(capsys: pytest.CaptureFixture[str]) -> None:
    free, fixed = net_at(("N", 4, "H", "W")), net_at((1, 4, 16, 16), name="input.1")
    assert compared(free, fixed, capsys)[0] == 0


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
