"""Damage models at random, from a seed: flip, cut and move bytes; set fields of the message to invalid values."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
from onnx import TensorProto

Change = Callable[[onnx.ModelProto, random.Random], None]
ODD_SIZES = (0, -1, 1, 2, 3, 5, 1 << 31, -(1 << 31), 1 << 62, -(1 << 63))
NAMES = ("", "x", "input", "output", "\u200b", "a\nb", "../../etc/passwd", "weight", "n" * 5000, "\U0001f600")
OPS = ("Add", "Mul", "Conv", "BatchNormalization", "Identity", "Relu", "Sum", "Concat", "Loop", "If", "Split",
       "Slice", "Pad", "AveragePool", "MatMul", "Gemm", "ConvTranspose", "Nonsense", "Constant", "Dropout")  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a model."""
    if rng.random() < 0.35:
        return _damage_bytes(data, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice(CHANGES)(model, rng)
    return model.SerializeToString()


def _damage_bytes(data: bytes, rng: random.Random) -> bytes:
    broken = bytearray(data)
    size, at = len(data), rng.randrange(len(data))
    if rng.random() < 0.5:
        at = rng.randrange(min(size, 2000))
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.choice([at, size - 1 - at % 50])]
    if kind == 1:
        del broken[at : at + rng.choice([1, 2, 8, 100])]
    elif kind == 2:
        broken[at:at] = rng.randbytes(rng.choice([1, 2, 8, 100]))
    elif kind == 3:
        broken[at:at] = broken[at : at + rng.choice([10, 100, 1000])]
    else:
        for _ in range(rng.choice([1, 1, 1, 4, 30])):
            broken[rng.randrange(at, min(size, at + 500))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _tensor(model: onnx.ModelProto, rng: random.Random) -> TensorProto:
    of_attributes = [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    tensors = [*model.graph.initializer, *of_attributes]
    return rng.choice(tensors) if tensors else model.graph.initializer.add()


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node) if model.graph.node else model.graph.node.add()


def _any_name(model: onnx.ModelProto, rng: random.Random) -> str:
    used = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return rng.choice([*NAMES, *used])


def dims(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    sizes = list(tensor.dims)
    kind = rng.randrange(5)
    if kind == 0 or not sizes:
        sizes.append(rng.choice(ODD_SIZES))
    elif kind == 1:
        sizes[rng.randrange(len(sizes))] = rng.choice(ODD_SIZES)
    elif kind == 2:
        rng.shuffle(sizes)
    elif kind == 3:
        sizes.pop()
    else:
        sizes = [1, *sizes]
    tensor.dims[:] = sizes


def contents(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    raw = bytearray(tensor.raw_data)
    if len(raw) < 4:
        tensor.raw_data = rng.randbytes(rng.choice([0, 3, 4, 64]))
        return
    at = rng.randrange(len(raw) // 4) * 4
    raw[at : at + 4] = rng.choice(
        [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", bytes(4), b"\1\0\0\0"]
    )
    tensor.raw_data = bytes(raw) if rng.random() < 0.8 else bytes(raw[:at])


def data_type(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.choice([*range(26), 99, -1, 1, 10, 11])
    if rng.random() < 0.6:
        _tensor(model, rng).data_type = kind
    elif model.graph.input:
        rng.choice(model.graph.input).type.tensor_type.elem_type = kind


def external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    where = rng.choice(["w.data", "../w.data", "/etc/passwd", "", ".", "mutant.onnx", "a\0b"])
    for key, value in (
        ("location", where),
        ("offset", str(rng.choice(ODD_SIZES))),
        ("length", str(rng.choice(ODD_SIZES))),
    ):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = [n for n in model.graph.node if n.attribute]
    if not nodes:
        return
    node = rng.choice(nodes)
    chosen = rng.choice(node.attribute)
    kind = rng.randrange(7)
    if kind == 0:
        node.attribute.remove(chosen)
    elif kind == 1:
        node.attribute.add().CopyFrom(chosen)
    elif kind == 2:
        chosen.name = rng.choice(["pads", "group", "axis", "strides", "auto_pad", "training_mode", *NAMES])
    elif kind == 3:
        chosen.type = rng.randrange(15)
    elif chosen.ints:
        values = list(chosen.ints)
        values[rng.randrange(len(values))] = rng.choice(ODD_SIZES)
        chosen.ints[:] = values if kind < 6 else values[:-1]
    else:
        chosen.i, chosen.f = rng.choice(ODD_SIZES), rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])


def wires(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = node.output if rng.random() < 0.25 else node.input
    kind = rng.randrange(4)
    if kind == 0 or not names:
        names.append(_any_name(model, rng))
    elif kind == 1:
        names.pop()
    else:
        names[rng.randrange(len(names))] = _any_name(model, rng)


def nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    node = _node(model, rng)
    kind = rng.randrange(5)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1:
        graph.node.add().CopyFrom(node)
    elif kind == 2:
        kept = list(graph.node)
        rng.shuffle(kept)
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(kept)
    elif kind == 3:
        node.op_type = rng.choice(OPS)
    else:
        node.domain = rng.choice(["ai.onnx", "com.microsoft", "ai.onnx.ml", "nowhere", "ai.onnx.training"])


def interface(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    values = rng.choice([graph.input, graph.output, graph.value_info])
    if not values:
        values.add().name = _any_name(model, rng)
        return
    value = rng.choice(values)
    kind = rng.randrange(6)
    if kind == 0:
        values.remove(value)
    elif kind == 1:
        values.add().CopyFrom(value)
    elif kind == 2:
        value.name = _any_name(model, rng)
    elif kind == 3:
        value.ClearField("type")
    else:
        shape = value.type.tensor_type.shape
        if kind == 4 or not shape.dim:
            shape.dim.add().dim_value = rng.choice(ODD_SIZES)
        else:
            rng.choice(shape.dim).dim_value = rng.choice(ODD_SIZES)


def initializers(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    if not graph.initializer:
        return
    tensor = rng.choice(graph.initializer)
    kind = rng.randrange(4)
    if kind == 0:
        graph.initializer.remove(tensor)
    elif kind == 1:
        graph.initializer.add().CopyFrom(tensor)
    elif kind == 2:
        tensor.name = _any_name(model, rng)
    else:
        graph.input.add().name = tensor.name


def header(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        model.ir_version = rng.choice([*range(15), *ODD_SIZES])
    elif kind == 1 and model.opset_import:
        model.opset_import[0].version = rng.choice([*range(1, 30), *ODD_SIZES])
    elif kind == 2:
        del model.opset_import[:]
    elif kind == 3:
        model.opset_import.add(domain="", version=7)
    else:
        model.ClearField("graph")


CHANGES: tuple[Change, ...] = (
    dims, dims, contents, contents, data_type, external, attribute, attribute, attribute, wires, wires, wires,
    nodes, nodes, interface, interface, initializers, header,
)  # fmt: skip
