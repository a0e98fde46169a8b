"""Random graphs whose only oracle is ONNX Runtime: `python -m tests.runtime_graphs --graphs 1000 --seed 7`.

`random_graphs` knows what its graphs compute, so it has the operators that `reference` has. Here a step may use any
operator: it is kept if ONNX Runtime runs it. The planner alone has to be right, as nothing is checked: at every size
that the original runs at, small ones above all, the result has to run and to compute the same.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_repfuse import Options, fuse
from tests.runtime_builder import Array, CannotRunError, Graph, factors, session, weight
from tests.runtime_laws import LAWS

SPACES = ((6, 8), (1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (4, 4), (5, 4), (7, 9), (8, 8))
TO_THE_END = 1 << 40
OPSETS = (13, 17, 18, 21)
AVOIDED = (
    "Add", "BatchNormalization", "Div", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LayerNormalization",
    "LeakyRelu", "Mul", "Neg", "PRelu", "Sub", "Sum",
)  # fmt: skip


def conv(g: Graph, r: random.Random, x: str = "", kernel: int = 0) -> str:
    x = x or g.pick(r, 3)
    c, rank = g.shape(x)[1], len(g.shape(x)) - 2
    taps = [kernel or r.choice([1, 1, 2, 3])] * rank
    group = r.choice([1, 1, 1, c])
    attrs: dict[str, Any] = {"group": group}
    if not kernel:
        attrs["strides"] = [r.choice([1, 1, 2]) for _ in taps]
        attrs["pads"] = [r.choice([0, k // 2]) for k in taps * 2]
    bias = [g.const(weight(r, group * 2))] if r.random() < 0.5 else []
    return str(g.op("Conv", x, g.const(weight(r, group * 2, c // group, *taps)), *bias, **attrs))


def norm(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    c = g.shape(x)[1]
    rows = [factors(r, c), weight(r, c), weight(r, c), np.abs(factors(r, c))]
    g.op("BatchNormalization", x, *map(g.const, rows))


def arithmetic(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    shape = [r.choice([1, n]) for n in g.shape(x)[r.randrange(len(g.shape(x)) + 1) :]]
    names = [x, g.const(factors(r, *shape))]
    op = r.choice(["Add", "Mul", "Sub", "Div"])
    g.op(op, *(names if op == "Div" or r.random() < 0.7 else names[::-1]))


def sum_of_two(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    others = [n for n in g.tensors if g.values[n].dtype == np.float32]
    alike = [n for n in others if g.shape(n) == g.shape(x)]
    g.op(r.choice(["Add", "Sub", "Mul", "Max", "Sum"]), x, r.choice(alike if r.random() < 0.8 else others))


def transposed_conv(g: Graph, r: random.Random) -> None:
    x = g.pick(r, 3)
    c, rank = g.shape(x)[1], len(g.shape(x)) - 2
    strides = [r.choice([1, 2, 3]) for _ in range(rank)]
    g.op(
        "ConvTranspose",
        x,
        g.const(weight(r, c, 2, *[r.choice([1, 2, 3])] * rank)),
        strides=strides,
        pads=[r.choice([0, 1]) for _ in range(2 * rank)],
        output_padding=[r.randrange(stride) for stride in strides],
    )


def pool(g: Graph, r: random.Random) -> None:
    x = g.pick(r, 3)
    rank = len(g.shape(x)) - 2
    op = r.choice(["AveragePool", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"])
    if op.startswith("Global"):
        g.op(op, x)
        return
    taps = [r.choice([1, 2, 3]) for _ in range(rank)]
    attrs: dict[str, Any] = {"kernel_shape": taps, "strides": [r.choice([1, 2, 3]) for _ in taps]}
    attrs |= {"pads": [r.randrange(k) for k in taps * 2]} if r.random() < 0.4 else {}
    attrs |= {"ceil_mode": 1} if r.random() < 0.2 else {}
    g.op(op, x, **attrs, **({"count_include_pad": 1} if op == "AveragePool" and r.random() < 0.5 else {}))


def resize(g: Graph, r: random.Random) -> None:
    x = g.pick(r, 3)
    shape, rank = g.shape(x), len(g.shape(x)) - 2
    mode = r.choice(["nearest", "linear", "cubic"])
    where = r.choice(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    attrs = {"mode": mode, "coordinate_transformation_mode": where}
    attrs |= {"nearest_mode": r.choice(["floor", "ceil", "round_prefer_ceil"])} if mode == "nearest" else {}
    by = [r.choice([1, 2, 3, 0.5, 1.5]) for _ in range(rank)]
    if r.random() < 0.6:
        y = g.op("Resize", x, "", g.const(np.array([1, 1, *by], np.float32)), **attrs)
    else:
        images = r.choice([shape[0], shape[0], 1, 4])
        sizes = [max(1, int(n * f)) for n, f in zip(shape[2:], by, strict=True)]
        y = g.op("Resize", x, "", "", g.ints(images, shape[1], *sizes), **attrs)
    if r.random() < 0.6:
        conv(g, r, y, 1)


def cut(g: Graph, r: random.Random) -> None:
    """A Slice along any axis, the batch among them, from either end, forwards or backwards."""
    x = g.pick(r)
    shape = g.shape(x)
    axes = r.sample(range(len(shape)), r.choice([1, 2]))
    rows = []
    for axis in axes:
        n = shape[axis]
        if r.random() < 0.3:
            rows.append((r.choice([-1, n - 1, n + 3]), r.choice([-n - 1, 0, TO_THE_END]), -r.choice([1, 2])))
        else:
            rows.append((r.choice([0, 0, 1, -2]), r.choice([n, TO_THE_END, -1, 2]), r.choice([1, 1, 2])))
    starts, ends, steps = zip(*rows, strict=True)
    named = [axis - len(shape) if r.random() < 0.4 else axis for axis in axes]
    g.op("Slice", x, g.ints(*starts), g.ints(*ends), g.ints(*named), g.ints(*steps))


def choose(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    axis = r.randrange(len(g.shape(x)))
    n = g.shape(x)[axis]
    places = np.array([r.randrange(-n, n) for _ in range(r.choice([1, 2, n]))], np.int64)
    if axis == 0:
        g.op("GatherND", x, g.const(places[:, None]))
    else:
        g.op("Gather", x, g.const(places if r.random() < 0.8 else places[0]), axis=axis)


def parts(g: Graph, r: random.Random) -> None:
    """A product, whose parts are read apart, one of them under a factor."""
    x = g.pick(r)
    y = g.op("MatMul", x, g.const(weight(r, g.shape(x)[-1], 6)))
    rank = len(g.shape(y))
    if r.random() < 0.5:
        y = g.op("Reshape", y, g.ints(*[0] * (rank - 1), 2, 3))
        y = g.op("Transpose", y, perm=r.sample(range(rank + 1), rank + 1))
    axis = r.randrange(len(g.shape(y)))
    size = g.shape(y)[axis]
    if r.random() < 0.5 and size > 1:
        pieces = list(g.op("Split", y, g.ints(1, size - 1), outputs=2, axis=axis))
    else:
        bounds = [(lo, r.randrange(lo + 1, size + 1)) for lo in (0, r.randrange(size))]
        pieces = [g.op("Slice", y, g.ints(lo), g.ints(hi), g.ints(axis)) for lo, hi in bounds]
    for piece in pieces:
        scaled = g.op("Mul", piece, g.const(np.float32(r.choice([0.5, -1, 3]))))
        g.op("Relu", scaled if r.random() < 0.6 else piece)


def rows(g: Graph, r: random.Random) -> None:
    """Channels last, a product, and mostly back."""
    x = g.pick(r, 3)
    rank = len(g.shape(x))
    y = g.op("Transpose", x, perm=[0, *range(2, rank), 1])
    y = g.op("MatMul", y, g.const(weight(r, g.shape(y)[-1], r.choice([1, 2, 4]))))
    y = g.op("Add", y, g.const(weight(r, g.shape(y)[-1])))
    if r.random() < 0.7:
        g.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)])


def repeat(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    if r.random() < 0.5:
        g.op("Tile", x, g.ints(*[r.choice([1, 1, 2]) for _ in g.shape(x)]))
    else:
        g.op("Expand", x, g.ints(*[r.choice([1, n]) for n in g.shape(x)]))


def normalize(g: Graph, r: random.Random) -> None:
    """No InstanceNormalization: of an empty image, ONNX Runtime ends the process."""
    x = g.pick(r, 3)
    n = g.shape(x)[-1]
    if r.random() < 0.5:
        g.op("LpNormalization", x, axis=1)
    else:
        g.op("LayerNormalization", x, g.const(factors(r, n)), g.const(weight(r, n)), epsilon=0.1)


def other(g: Graph, r: random.Random) -> None:
    x = g.pick(r)
    rank, small = len(g.shape(x)), g.const(np.float32(r.choice([0, 0.3, -0.2])))
    letters = "abcdef"[:rank]
    way = r.randrange(8)
    if way == 0:
        g.op("CumSum", x, g.const(np.array(rank - 1, np.int64)))
    elif way == 1:
        w = g.const(weight(r, g.shape(x)[1], 2))
        g.op("Einsum", x, w, equation=f"{letters},bz->{letters.replace('b', 'z')}")
    elif way == 2:
        g.op("Where", g.const(np.arange(g.shape(x)[-1]) % 2 == 0), x, small)
    elif way == 3:
        g.op("DepthToSpace", conv(g, r, g.pick(r, 4), 1), blocksize=1, mode=r.choice(["DCR", "CRD"]))
    elif way == 4:
        op, keepdims = r.choice(["ReduceMax", "ReduceMean"]), r.choice([0, 1])
        if g.opset < 18:
            g.op(op, x, axes=[-1], keepdims=keepdims)
        else:
            g.op(op, x, g.ints(-1), keepdims=keepdims)
    elif way == 5:
        g.op("Clip", x, small, g.const(np.float32(2)))
    elif way == 6:
        g.op("Concat", x, x, axis=r.randrange(rank))
    else:
        g.op(r.choice(["Relu", "Sigmoid", "LeakyRelu", "Softmax", "Flatten", "Abs"]), x)


def quantized(g: Graph, r: random.Random) -> None:
    """What a quantizer writes: of the input, of a Conv's weights, per tensor or per channel; or one half of a pair."""
    x = g.pick(r, 3)
    signed = r.random() < 0.5
    zero = g.const(np.int8(r.choice([0, 3])) if signed else np.uint8(128))
    step = g.const(np.float32(r.choice([0.02, 0.05])))
    y = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    if r.random() < 0.6:
        c, rank = g.shape(x)[1], len(g.shape(x)) - 2
        taps = [r.choice([1, 3])] * rank
        levels = (
            np.random.default_rng(r.randrange(1 << 30)).integers(-127, 128, (2, c, *taps)).astype(np.int8)
        )
        if r.random() < 0.5:
            scale, at = g.const(np.array([0.01, 0.02], np.float32)), g.const(np.zeros(2, np.int8))
            w = g.op("DequantizeLinear", g.const(levels), scale, at, axis=0)
        else:
            w = g.op("DequantizeLinear", g.const(levels), g.const(np.float32(0.01)), g.const(np.int8(1)))
        y = g.op(
            "Conv",
            y,
            w,
            *([g.const(weight(r, 2))] if r.random() < 0.5 else []),
            pads=[taps[0] // 2] * 2 * rank,
        )
    if r.random() < 0.5:
        y = g.op("Mul", y, g.const(factors(r, g.shape(y)[1], *[1] * (len(g.shape(y)) - 2))))
    if r.random() < 0.5:
        g.op("DequantizeLinear", g.op("QuantizeLinear", y, step, zero), step, zero)


def recurrent(g: Graph, r: random.Random) -> None:
    """A recurrent layer over the last axis but one, with a linear part before it and mostly one behind."""
    x = g.pick(r, 3)
    op, hidden, ways = r.choice(["LSTM", "GRU", "RNN"]), r.choice([2, 3]), r.choice([1, 2])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    if len(g.shape(x)) > 3:
        x = g.op("Reshape", x, g.ints(0, 0, -1))
    x = g.op("Transpose", x, perm=[2, 0, 1])  # (T, N, C)
    c = g.shape(x)[2]
    if r.random() < 0.6:
        x = g.op("MatMul", x, g.const(weight(r, c, 3)))
        x, c = g.op("Add", x, g.const(weight(r, 3))), 3
    if r.random() < 0.4:
        x = g.op("Mul", x, g.const(factors(r, c)))
    w, u = (g.const(weight(r, ways, gates * hidden, n)) for n in (c, hidden))
    direction = "bidirectional" if ways == 2 else r.choice(["forward", "reverse"])
    bias = [g.const(weight(r, ways, 2 * gates * hidden))] if r.random() < 0.5 else []
    y = g.op(op, x, w, u, *bias, hidden_size=hidden, direction=direction)  # (T, ways, N, hidden)
    if r.random() < 0.7:
        y = g.op("Transpose", y, perm=[0, 2, 1, 3])
        y = g.op("Reshape", y, g.ints(0, 0, ways * hidden))
        y = g.op("Mul", y, g.const(factors(r, ways * hidden)))
        y = g.op("MatMul", y, g.const(weight(r, ways * hidden, 2)))
        g.op("Add", y, g.const(weight(r, 2)))


def scan(g: Graph, r: random.Random) -> None:
    """A running sum along an axis, whose body is linear, and may read a weight of the graph around."""
    x = g.pick(r, 3)
    axis = r.randrange(1, len(g.shape(x)))
    inner = tuple(n for a, n in enumerate(g.shape(x)) if a != axis)
    zero = g.op("ReduceSum", x, g.ints(axis), keepdims=0)
    k = g.const(factors(r, inner[-1]))
    float_type = onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "f"], ["m"]),
            helper.make_node("Mul", ["m", "f"], ["m2"]),
            helper.make_node("Add", ["m2", "row"], ["next"]),
            helper.make_node("Mul", ["next", k if r.random() < 0.5 else "f"], ["scaled"]),
            helper.make_node("Add", ["scaled", "f"], ["out"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, float_type, [None] * len(inner)) for n in ("state", "row")],
        [helper.make_tensor_value_info(n, float_type, [None] * len(inner)) for n in ("next", "out")],
        [numpy_helper.from_array(np.asarray(factors(r, inner[-1]) / 2, np.float32), "f")],
    )
    reverse = {"scan_input_directions": [1]} if r.random() < 0.3 else {}
    _, y = g.op(
        "Scan", zero, x, outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[axis],
        scan_output_axes=[axis], also=(k,), **reverse,
    )  # fmt: skip
    if r.random() < 0.6:
        g.op("Mul", y, g.const(factors(r, g.shape(y)[-1])))


def image_norm(g: Graph, r: random.Random) -> None:
    """Of images that are not empty: of an empty one, ONNX Runtime's InstanceNormalization ends the process."""
    x = g.pick(r, 3)
    c, rank = g.shape(x)[1], len(g.shape(x)) - 2
    x = g.op("Pad", x, g.ints(*[0] * (rank + 2), 0, 0, *[1] * rank))
    if r.random() < 0.6:
        x = g.op("Mul", x, g.const(factors(r, *([c] + [1] * rank if r.random() < 0.7 else []))))
    if r.random() < 0.6:
        x = g.op("Add", x, g.const(weight(r, c, *[1] * rank)))
    rows = [g.const(factors(r, c)), g.const(weight(r, c))]
    epsilon = r.choice([1e-5, 0.3])
    if g.opset >= 21 and r.random() < 0.5:
        y = g.op("GroupNormalization", x, *rows, num_groups=r.choice([1, c]), epsilon=epsilon)
    else:
        y = g.op("InstanceNormalization", x, *rows, epsilon=epsilon)
    if r.random() < 0.5:
        y = g.op("Mul", y, g.const(factors(r, c, *[1] * rank)))
    conv(g, r, y)


def einsum(g: Graph, r: random.Random) -> None:
    """A product with a weight over any axis, the result's axes in any order; or of two activations."""
    x = g.pick(r)
    rank = len(g.shape(x))
    letters = "abcdef"[:rank]
    over = r.randrange(rank)
    kept = letters[over] if r.random() < 0.3 else ""  # then it is a factor for each
    new = "" if kept else r.choice(["z", "", "zy"])
    end = [*(c for c in letters if c != letters[over]), *kept, *new]
    if r.random() < 0.6:
        r.shuffle(end)
    w = g.const(weight(r, g.shape(x)[over], *[2] * len(new)))
    terms, read = (letters, letters[over] + new), (x, w)
    if r.random() < 0.3:
        terms, read = terms[::-1], read[::-1]
    y = g.op("Einsum", *read, equation=f"{','.join(terms)}->{''.join(end)}")
    if r.random() < 0.7:
        y = g.op(r.choice(["Add", "Mul"]), y, g.const(factors(r, *g.shape(y)[-1:])))
    if r.random() < 0.4 and len(g.shape(y)) >= 2:
        g.op("MatMul", y, g.const(weight(r, g.shape(y)[-1], 2)))


def bounded(g: Graph, r: random.Random) -> None:
    """Clip, Where, Min and PRelu, between factors that may be negative."""
    x = g.pick(r)
    n = g.shape(x)[-1]
    if r.random() < 0.5:
        x = g.op("Mul", x, g.const(factors(r, *r.choice([(), (1,), (n,)]))))
    low, high = (g.const(np.float32(v)) for v in (r.choice([-0.5, 0, 0.1]), r.choice([0.4, 6, 1e9])))
    way = r.randrange(5)
    if way == 0:
        y = g.op("Clip", x, *r.choice([(low, high), ("", high), (low,), (low, high)]))
    elif way == 1:
        y = g.op("Where", g.op("Greater", x, low), x, g.op("Mul", x, g.const(factors(r, n))))
    elif way == 2:
        y = g.op("Where", g.const(np.arange(n) % 2 == 0), g.const(factors(r, n)), x)
    elif way == 3:
        y = g.op(r.choice(["Max", "Min"]), x, r.choice([low, high]))
    else:
        y = g.op("PRelu", x, g.const(weight(r, n)))
    if r.random() < 0.6:
        g.op(r.choice(["Mul", "Add"]), y, g.const(factors(r, n)))


STEPS: tuple[Callable[[Graph, random.Random], Any], ...] = (
    conv, norm, arithmetic, sum_of_two, transposed_conv, pool, resize, cut, choose, parts, rows, repeat, normalize,
    other, conv, norm, arithmetic, pool, quantized, recurrent, scan, image_norm, einsum, bounded,
)  # fmt: skip


def grown(seed: int) -> tuple[onnx.ModelProto, list[Array]]:
    """A model, and inputs of many sizes."""
    r = random.Random(seed)
    rng = np.random.default_rng(seed)
    channels, images = r.choice([1, 2, 3, 4]), r.choice([1, 2])
    graph = Graph(r.choice(OPSETS), rng.standard_normal((images, channels, 6, 8)).astype(np.float32))
    for _ in range(r.choice([2, 3, 4, 6])):
        before = list(graph.nodes), list(graph.tensors)
        try:
            r.choice(STEPS + LAWS)(graph, random.Random(r.randrange(1 << 30)))
        except (CannotRunError, IndexError, ValueError):
            graph.nodes, graph.tensors = before
    dims: list[int | str] = r.choice(
        [
            [images, channels, 6, 8],
            ["N", channels, 6, 8],
            [images, channels, "H", "W"],
            ["N", channels, "H", "W"],
        ]
    )
    feeds = []
    for number, space in enumerate(SPACES):
        wanted = (1 + number % 3, channels, *space)
        size = [want if isinstance(dim, str) else dim for dim, want in zip(dims, wanted, strict=True)]
        feeds.append(rng.standard_normal(size).astype(np.float32))
    model = graph.model(dims)
    if r.random() < 0.2 and graph.nodes:  # what others read is put out, too
        name = r.choice(graph.nodes).output[0]
        if all(value.name != name for value in model.graph.output):
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return model, feeds


def options(seed: int) -> Options:
    """How a graph is planned: mostly as by default, else with operators to avoid, or for the fastest result."""
    r = random.Random(seed)
    way = r.choice(["", "", "", "avoid", "level"])
    avoided = frozenset(r.sample(AVOIDED, r.choice([1, 2]))) if way == "avoid" else frozenset()
    return Options(check=False, avoid=avoided, level=2 if way == "level" else 1)


def difference(model: onnx.ModelProto, result: onnx.ModelProto, feeds: list[Array]) -> str:
    """What the result does otherwise; "" if nothing. A Concat of an empty tensor counts for nothing."""
    read = [name for node in model.graph.node if node.op_type == "Concat" for name in node.input]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    extra = [name for name in dict.fromkeys(read) if name not in known]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in extra)
    before, after = session(watched), session(result)
    count = len(model.graph.output)
    for x in feeds:
        try:
            wanted = before.run(None, {"x": x})
        except Exception:
            continue  # the original does not run at this size
        if any(not value.size for value in wanted[count:]):
            continue
        try:
            found = after.run(None, {"x": x})
        except Exception as error:
            return f"does not run at {x.shape}: {error}"
        for a, b in zip(wanted[:count], found, strict=True):
            if a.shape != b.shape:
                return f"shape {a.shape} became {b.shape} at {x.shape}"
            largest = np.abs(a[np.isfinite(a)]).max(initial=0)
            if not np.allclose(a, b, rtol=0, atol=2e-3 * largest + 1e-5, equal_nan=True):
                return f"off by {np.abs(a - b).max():.3g} of {largest:.3g} at {x.shape}"
    return ""


def finds(graphs: int, seed: int) -> Iterator[str]:
    """What goes wrong, graph by graph."""
    for number in range(graphs):
        model, feeds = grown(1_000_000 * seed + number)
        try:
            session(model)
        except Exception:
            continue  # nodes that run alone, and not together at sizes that are not known
        try:
            problem = difference(model, fuse(model, options=options(number)).model, feeds)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            yield f"graph {1_000_000 * seed + number}: {problem}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count = 0
    for find in finds(arguments.graphs, arguments.seed):
        print(find, flush=True)
        count += 1
    print(f"{arguments.graphs} graphs, {count} finds")
    return int(bool(count))


if __name__ == "__main__":
    raise SystemExit(main())
