"""What follows for the sizes of tensors, against the sizes that ONNX Runtime gives them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnx_repfuse.graph.dims import equal_shapes, known_dims
from onnx_repfuse.graph.extents import Extent, Product, behind, over, plus, quotient, times, value
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.document import Document
from tests.build import Net
from tests.heads import mlp_head, pyramid, shapes_at

N = Extent("x", 2)


def scope_of(model: onnx.ModelProto) -> Scope:
    with Document.from_model(model) as document:
        (scope,) = read_scopes(document)
        return scope


def disagreements(model: onnx.ModelProto, *dims: int) -> Iterator[str]:
    shapes = shapes_at(model, x=dims)
    for name, known in known_dims(scope_of(model)).items():
        if name in shapes:
            told = tuple(value(dim, lambda one: shapes[one.tensor][one.axis]) for dim in known)
            if told != shapes[name]:
                yield f"{name}: {told}, not {shapes[name]}"


@pytest.mark.parametrize("exporter", ["legacy", "new"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_all_sizes_of_a_head_follow_from_those_of_the_image(exporter: str, mode: str) -> None:
    net = Net(3)
    y = mlp_head(net, pyramid(net, (4, 6, 8)), (4, 6, 8), 5, exporter, mode=mode)
    model = net.model(y)
    dims = known_dims(scope_of(model))
    assert {one.tensor for known in dims.values() for dim in known for one in _extents(dim)} <= {"x"}
    assert dims[y] == (Extent("x", 0), 5, Extent("x", 2, 2, -1), Extent("x", 3, 2, -1))
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 17):
        assert not list(disagreements(model, 2, 3, size, size + 1))


def _extents(dim: int | Extent | Product) -> tuple[Extent, ...]:
    return () if isinstance(dim, int) else (dim,) if isinstance(dim, Extent) else dim.extents


def test_products_of_tensors_and_pools() -> None:
    net = Net(4)
    x = net.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    rows = net.op("Reshape", x, net.const(np.array([0, 4, -1])))
    scores = net.op("Softmax", net.op("MatMul", net.op("Transpose", rows, perm=[0, 2, 1]), rows))
    model = net.model(net.op("MatMul", rows, scores))
    for size in (2, 3, 4, 5):
        assert not list(disagreements(model, 3, 4, size, size))
    scope = scope_of(model)
    assert equal_shapes(scope, [rows, model.graph.output[0].name])
    assert not equal_shapes(scope, [rows, scores])


def test_a_size_of_another_tensor_may_copy_one_where_it_is_zero() -> None:
    """A 0 in the target of a Reshape copies a size. So what is asked of z says nothing certain of x."""
    net = Net(4)
    net.more_inputs.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["a", "b"]))
    target = net.op("Concat", net.op("Shape", "z"), net.const(np.array([-1])), axis=0)
    y = net.op("Reshape", "x", target)
    dims = known_dims(scope_of(net.model(y)))
    assert dims[y] == tuple(Extent(y, axis) for axis in range(3))


@pytest.mark.parametrize("axis", [0, 1, 2, 4, -1, -4])
def test_rows_and_columns_of_a_flatten(axis: int) -> None:
    net = Net(shape=("N", 3, 4, "W"))
    y = net.op("Flatten", "x", axis=axis)
    model = net.model(net.op("Tanh", y))
    told = known_dims(scope_of(model))[y]
    assert {one.tensor for dim in told for one in _extents(dim)} <= {"x"}
    assert not list(disagreements(model, 2, 3, 4, 5))


def test_what_a_minus_one_stands_for_is_known() -> None:
    net = Net(6)
    batch = net.op("Slice", net.op("Shape", "x"), *(net.const(np.array([k])) for k in (0, 1)))
    rest = net.op("Slice", net.op("Shape", "x"), *(net.const(np.array([k])) for k in (2, 4)))
    target = net.op("Concat", batch, net.const(np.array([2, -1])), rest, axis=0)
    y = net.op("Reshape", "x", target)
    assert scope_of(net.model(y)).shape(y) == (None, 2, 3, None, None)


@pytest.mark.parametrize(
    "target", [(0, 3, -1, 2, 6), (-1, 9), (0, 18, -1), (-1, 12), (0, 3, -1, 5, 6), (0, 0, 4, -1)]
)
def test_a_minus_one_that_does_not_divide_every_size(target: tuple[int, ...]) -> None:
    """Where the Reshape runs, it does."""
    net = Net(shape=("N", 3, "H", 6))
    y = net.op("Reshape", "x", net.const(np.array(target)))
    model = net.model(net.op("Tanh", y))
    assert any(dim == over(Extent("x", 2), 2) for dim in known_dims(scope_of(model))[y]) == (
        target[3:4] == (2,)
    )
    for rows, height in ((1, 20), (2, 10), (3, 40)):
        assert not list(disagreements(model, rows, 3, height, 6))


def test_windows_sums_and_quotients_are_extents() -> None:
    halved = behind(N, 2, -1)
    assert halved == Extent("x", 2, 2, -1)
    for n in range(1, 40):
        assert value(halved, lambda _, n=n: n) == (n - 1) // 2 + 1
    before = plus(N, -1)
    assert before is not None
    quarter = over(before, 4)
    assert quarter is not None
    assert plus(quarter, 1) == behind(halved, 2, -1)


def test_a_quotient_that_may_be_cut_off_at_zero_is_none() -> None:
    """ONNX Runtime divides -1 by 4 to 0, where the floor is -1."""
    less = plus(N, -2)
    assert less is not None
    assert over(less, 4) is None


def test_products_and_quotients() -> None:
    other = Extent("x", 3)
    area = times((2, N, other))
    assert area == Product(2, (N, other))
    assert quotient(times((6, area)), times((3, other))) == times((4, N))
    assert quotient(area, times((N, N))) is None
    assert quotient(area, 4) is None
    assert quotient(area, 0) is None
    assert times((area, 0)) == 0


def test_lists_with_rows_are_not_taken_for_flat_ones() -> None:
    """The rows of [[n, 4], [h, w]] beside themselves are (n, 4, n, 4, h, w, h, w)."""
    net = Net(4)
    rows = net.op("Reshape", net.op("Shape", "x"), net.const(np.array([2, 2])))
    flat = net.const(np.array([-1]))
    beside = net.op("Reshape", net.op("Concat", rows, rows, axis=1), flat)
    chosen = net.op("Gather", beside, net.const(np.array([0, 1, 4, 5])))
    column = net.op("Reshape", net.op("Shape", "x"), net.const(np.array([4, 1])))
    table = net.op("Reshape", net.op("Mul", column, net.op("Shape", "x")), flat)
    squares = net.op("Gather", table, net.const(np.array([0, 5, 10, 15])))
    row = net.op("Gather", rows, net.const(np.array([0])))
    cut = net.op("Slice", rows, net.const(np.array([0, 0])), net.const(np.array([1, 1])))
    whole = net.op(
        "Slice", net.op("Shape", "x"), net.const(np.array([], np.int64)), net.const(np.array([], np.int64))
    )
    names = [chosen, squares, net.op("Reshape", row, flat), net.op("Reshape", cut, flat), whole]
    model = net.model(*(net.op("ConstantOfShape", name) for name in names))
    for size in (2, 3):
        assert not list(disagreements(model, 2, 4, size, size + 1))


def test_a_product_that_does_nothing_is_no_product() -> None:
    net = Net(4, opset=18)
    sizes = net.op("ReduceProd", net.op("Shape", "x"), noop_with_empty_axes=1)
    y = net.op("Reshape", "x", sizes)
    assert known_dims(scope_of(net.model(y)))[y] != (Product(4, (Extent("x", 0), N, Extent("x", 3))),)


def test_sizes_of_which_one_is_zero_are_not_assumed_from_others() -> None:
    """A Resize of one column by a half has none left; how many rows it has is not known."""
    net = Net(1, shape=(1, 1, "H", "W"))
    x = net.op("MatMul", "x", net.random(8, 1))
    y = net.op("Resize", x, "", net.const(np.array([1, 1, 2, 0.5], np.float32)), mode="nearest")
    scope = scope_of(net.model(y))
    assert y not in scope.assumed


def test_a_rank_follows_from_the_length_of_a_list_of_sizes() -> None:
    """As `x.view(x.size(0), -1)` is exported: inference does not follow it where no size has a name."""
    net = Net(shape=(None, 8, 4, 4))
    rows = net.op("Gather", net.op("Shape", "x"), net.const(np.array(0)))
    sizes = net.op(
        "Concat", net.op("Unsqueeze", rows, net.const(np.array([0]))), net.const(np.array([-1])), axis=0
    )
    flat = net.op("Reshape", "x", sizes)
    scope = scope_of(net.model(net.op("Relu", flat)))
    assert scope.shape(flat) == (None, 128)


def test_axes_that_come_and_go() -> None:
    net = Net(shape=("N", 4, "L", 6))
    zero = net.const(np.array([0]))
    a, b = net.op("Split", "x", outputs=2, axis=3)
    wide = net.op("Unsqueeze", a, zero)
    back = net.op("Squeeze", wide, zero)
    chosen = net.op("Gather", b, net.const(np.array(1)), axis=1)
    two = net.op("Gather", b, net.const(np.array([1, 0])), axis=-3)
    many = net.op("Split", "x", net.const(np.array([2, 4])), outputs=2, axis=-1)
    dims = known_dims(scope_of(net.model(back, chosen, two, *many)))
    assert [dims[part][-1] for part in many] == [2, 4]
    rows, length = Extent("x", 0), Extent("x", 2)
    assert dims[a] == dims[b] == dims[back] == (rows, 4, length, 3)
    assert dims[wide] == (1, rows, 4, length, 3)
    assert dims[chosen] == (rows, length, 3)
    assert dims[two] == (rows, 2, length, 3)
