"""Tiny models with random weights, and `check`, which folds one and checks all that we promise of the result.

Weights have mixed signs, and biases and statistics are far from zero, so that no term vanishes by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_repfuse import Options, fuse
from onnx_repfuse.api import Result
from onnx_repfuse.quiet_runtime import ort
from onnx_repfuse.records.reasons import Reason

Array = NDArray[Any]
ONE, MANY = "batch", ("batch", "height", "width")


class Net:
    """A graph under construction. Every method takes and returns tensor names."""

    def __init__(
        self,
        channels: int = 4,
        *,
        shape: tuple[int | str, ...] | None = None,
        opset: int = 17,
        ir: int = 10,
        dtype: Any = np.float32,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.opset, self.ir = opset, ir
        self.shape = shape or ("N", channels, "H", "W")
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.more_inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def const(self, value: Any, dtype: Any = None) -> str:
        """An initializer."""
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(dtype or self.dtype)
        name = self.fresh("w")
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def default(self, value: Any) -> str:
        """An initializer that is also an input, so that its value is known only when the model runs (from IR 4)."""
        name = self.const(value)
        tensor = self.tensors[-1]
        self.more_inputs.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        return name

    def random(self, *shape: int, dtype: Any = None) -> str:
        """A random initializer, scaled by its fan-in."""
        scale = 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.const(self.rng.standard_normal(shape) * scale, dtype or self.dtype)

    def op(self, op: str, *inputs: str, outputs: int = 1, name: str = "", **attrs: Any) -> Any:
        """Any operator; its output names."""
        results = [self.fresh(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name or results[0], **attrs))
        return results[0] if outputs == 1 else results

    def behind_an_if(self) -> str:
        """Relu of the input "x" inside an If, so that shape inference cannot know its type."""
        empty = [helper.make_empty_tensor_value_info("inner")]
        body = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "body", [], empty)
        return str(self.op("If", self.default(np.array(True)), then_branch=body, else_branch=body))

    def conv(
        self, x: str, c_in: int, c_out: int, k: Any, *, bias: bool = True, pad: Any = None, **attrs: Any
    ) -> str:
        """Conv.

        `k` is an int (2-D) or a tuple, `pad` an int or the attribute; by default the output has the input's size.
        """
        kernel = (k, k) if isinstance(k, int) else tuple(k)
        dilations = attrs.get("dilations", [1] * len(kernel))
        if pad is None and "auto_pad" not in attrs:
            pad = [d * (n - 1) // 2 for d, n in zip(dilations, kernel, strict=True)] * 2
        if isinstance(pad, int):
            pad = [pad] * (2 * len(kernel))
        if pad is not None:
            attrs["pads"] = list(pad)
        inputs = [x, self.random(c_out, c_in // attrs.get("group", 1), *kernel)]
        return str(self.op("Conv", *inputs, *([self.random(c_out)] if bias else []), **attrs))

    def statistics(self, channels: int, dtype: Any = None) -> list[str]:
        """The inputs scale, bias, mean and variance of a BatchNormalization."""
        signs = np.where(self.rng.random(channels) < 0.3, -1, 1)
        values = (
            signs * self.rng.uniform(0.5, 1.5, channels),
            self.rng.standard_normal(channels),
            self.rng.standard_normal(channels),
            self.rng.uniform(0.3, 2.0, channels),
        )
        return [self.const(v, dtype) for v in values]

    def bn(self, x: str, channels: int, *, dtype: Any = None, **attrs: Any) -> str:
        """BatchNormalization."""
        return str(self.op("BatchNormalization", x, *self.statistics(channels, dtype), **attrs))

    def conv_bn(self, x: str, c_in: int, c_out: int, k: Any, **attrs: Any) -> str:
        """Conv without bias, then BatchNormalization."""
        return self.bn(self.conv(x, c_in, c_out, k, bias=False, **attrs), c_out)

    def add(self, *names: str) -> str:
        """A chain of Add."""
        total, *rest = names
        for name in rest:
            total = str(self.op("Add", total, name))
        return total

    def channel(self, channels: int, space: int = 2) -> str:
        """A constant per channel."""
        value = self.rng.uniform(0.5, 1.5, channels) * np.where(self.rng.random(channels) < 0.3, -1, 1)
        return self.const(value.reshape(channels, *(1,) * space))

    def graph(self, outputs: tuple[str, ...], x: str = "x") -> onnx.GraphProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        inputs = [helper.make_tensor_value_info(x, kind, self.shape), *self.more_inputs]
        if self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.tensors]
        results = [helper.make_tensor_value_info(o, kind, None) for o in outputs]
        return helper.make_graph(self.nodes, "g", inputs, results, self.tensors)

    def model(self, *outputs: str, x: str = "x") -> onnx.ModelProto:
        """The finished model; output types are inferred."""
        imports = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(f.domain, 1) for f in self.functions),
        ]
        model = helper.make_model(
            self.graph(outputs, x),
            ir_version=self.ir,
            opset_imports=list({i.domain: i for i in imports}.values()),
            functions=self.functions,
        )
        inferred = onnx.shape_inference.infer_shapes(model)
        for output, typed in zip(model.graph.output, inferred.graph.output, strict=True):
            output.CopyFrom(typed)
        for output in model.graph.output:
            if not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.ClearField("shape")
        return model


def counts(model: onnx.ModelProto) -> dict[str, int]:
    """Op counts of the main graph, Constant nodes left out."""
    return dict(Counter(n.op_type for n in model.graph.node if n.op_type != "Constant"))


def weight(result: Result) -> onnx.TensorProto:
    """The first weight of a fused model."""
    return next(t for t in result.model.graph.initializer if len(t.dims) > 1)


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """The outputs in ONNX Runtime, without its graph optimizations."""
    return runner(model)(feeds)


def runner(model: onnx.ModelProto) -> Callable[[dict[str, Array]], list[Array]]:
    """As `run`, of one model at several inputs."""
    if any(v.type.tensor_type.elem_type == TensorProto.DOUBLE for v in model.graph.input):
        return lambda feeds: list(
            ReferenceEvaluator(model).run(None, feeds)
        )  # ONNX Runtime: no Conv of doubles
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: list(session.run(None, feeds))


def equal(first: onnx.ModelProto, second: onnx.ModelProto, largest: int = 4, tolerance: float = 2e-5) -> int:
    """Compare two models at every free size from 1 to `largest`; returns how many sizes ran."""
    rng = np.random.default_rng(7)
    weights = {i.name for i in first.graph.initializer}
    inputs = [i for i in first.graph.input if i.name not in weights]
    ran = 0
    run_first, run_second = runner(first), runner(second)
    for size in range(1, largest + 1):
        feeds = {}
        for value in inputs:
            kind = value.type.tensor_type
            dims = [d.dim_value or (2 if i == 0 else size + (i == 3)) for i, d in enumerate(kind.shape.dim)]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            draw = rng.standard_normal(dims) if dtype.kind == "f" else np.ones(dims)
            feeds[value.name] = draw.astype(dtype)
        try:
            before = run_first(feeds)
        except Exception:
            continue
        if not any(output.size for output in before):
            continue  # nothing is left of the image, which a Conv does not take
        after = run_second(feeds)
        ran += 1
        for a, b in zip(before, after, strict=True):
            assert a.shape == b.shape, (a.shape, b.shape)
            assert a.dtype == b.dtype
            a, b = a.astype(np.float64), b.astype(np.float64)
            same = np.isclose(
                a, b, rtol=0, atol=tolerance * (1 + np.abs(a[np.isfinite(a)]).max(initial=0)), equal_nan=True
            )
            assert same.all(), f"size {size}: {np.abs(a - b).max()} of {np.abs(a).max()}"
    return ran


def check(
    model: onnx.ModelProto,
    ops: dict[str, int] | None = None,
    *reasons: Reason,
    largest: int = 4,
    tolerance: float = 2e-5,
    options: Options | None = None,
    again: bool = True,
    more_nodes: int = 0,
) -> Result:
    """Fold `model` and assert all that we promise.

    The result has these op counts and is a valid model with no more nodes and multiply-adds. It computes the same in
    ONNX Runtime. The refusals have these reasons, the argument is unchanged, and a second run changes nothing.

    Args:
        ops: nodes by operator after the fold; None if nothing may be folded.
        more_nodes: by how many there may be more, where that pays.
    """
    original = model.SerializeToString(deterministic=True)
    result = fuse(model, options=options)
    fused = result.model
    assert model.SerializeToString(deterministic=True) == original, "the input was changed"
    if ops is None:
        assert fused.SerializeToString(deterministic=True) == original
        assert not result.report.folds
    else:
        assert counts(fused) == ops, (counts(fused), ops, [r.message for r in result.report.refusals])
    missing = set(reasons) - {r.reason for r in result.report.refusals}
    assert not missing, (missing, [(r.reason.value, r.message) for r in result.report.refusals])
    onnx.checker.check_model(fused, full_check=True)
    assert equal(model, fused, largest, tolerance) > 0
    report = result.report
    if report.before.macs is not None and report.after.macs is not None:
        assert report.after.macs <= report.before.macs
    if report.before.macs == report.after.macs:  # else fewer multiply-adds may take more nodes
        assert len(fused.graph.node) <= len(model.graph.node) + more_nodes
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert not types or {t.data_type for t in fused.graph.initializer} <= {*types.values(), TensorProto.INT64}
    if again and ops is not None:
        second = fuse(fused, options=options)
        assert not second.report.folds, second.report.folds
        assert second.model.SerializeToString(deterministic=True) == fused.SerializeToString(
            deterministic=True
        )
    return result
