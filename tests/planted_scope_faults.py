"""Faults planted in folds of branches, bodies and functions: `python -m tests.planted_scope_faults [SEEDS]`.

No input of a run may lead there. Each model has one fold, a Conv with its BatchNormalization, in a scope: a branch that
is taken or not, bodies of Loops and Scans that run or do not, functions that are called twice with other sizes or
attributes, and these in each other. Of its Conv one weight, one bias, the padding or two channels are wrong. Three
judges have to see it: the proof of the fold alone, the run of the scope alone, and `verify` of the original against the
spoilt file. A short form is in the suite.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnx_repfuse import fuse, verify
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.plan_model import ModelPlan, make_plan
from onnx_repfuse.planner.folds.fold_models import fold_models
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.outputs.baseline import measure_original
from onnx_repfuse.verifier.scopes.check import check_scopes

__all__ = ["FAULTS", "PLACES", "Seen", "model_of", "seen_by", "spoil"]

Array = NDArray[Any]
C = 6  # channels
DOMAIN = "own"


class Body:
    """The nodes of a scope: a Conv and a BatchNormalization of a tensor."""

    def __init__(self, seed: int, *, in_function: bool = False, is_leaky: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.in_function = in_function
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.is_leaky = is_leaky

    def const(self, value: Array, stem: str) -> str:
        tensor = numpy_helper.from_array(value.astype(np.float32), stem)
        if self.in_function:
            self.nodes.append(helper.make_node("Constant", [], [stem], value=tensor))
        else:
            self.tensors.append(tensor)
        return stem

    def made(self, x: str, y: str, tail: str = "Relu") -> Body:
        """Conv, BatchNormalization and what hides nothing."""
        weight = self.const(self.rng.standard_normal((C, C, 3, 3)) / 7, f"{y}_w")
        values = [
            self.rng.uniform(0.5, 1.5, C),
            *self.rng.standard_normal((2, C)),
            self.rng.uniform(0.5, 2, C),
        ]
        statistics = [self.const(value, f"{y}_s{number}") for number, value in enumerate(values)]
        conv = helper.make_node("Conv", [x, weight], [f"{y}_c"], pads=[1] * 4)
        norm = helper.make_node("BatchNormalization", [f"{y}_c", *statistics], [f"{y}_n"])
        last = helper.make_node("LeakyRelu" if self.is_leaky else tail, [f"{y}_n"], [y])
        if self.is_leaky:
            last.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
        self.nodes += [conv, norm, last]
        return self

    def graph(self, y: str, inputs: list[onnx.ValueInfoProto] | None = None) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, "inner", inputs or [], [_float(y)], self.tensors)

    def function(self, name: str, y: str) -> onnx.FunctionProto:
        attributes = ["alpha"] if self.is_leaky else []
        return helper.make_function(
            DOMAIN, name, ["x"], [y], self.nodes, [helper.make_opsetid("", 17)], attributes
        )


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def _other(x: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", [x], [f"{x}_e"])], "other", [], [_float(f"{x}_e")])


def _if(body: onnx.GraphProto, x: str, y: str, taken: str) -> onnx.NodeProto:
    return helper.make_node("If", [taken], [y], then_branch=body, else_branch=_other(x))


def _loop_body(
    inner: Callable[[str, str], tuple[list[onnx.NodeProto], list[onnx.TensorProto]]], stem: str
) -> onnx.GraphProto:
    nodes, tensors = inner(f"{stem}_v", f"{stem}_o")
    inputs = [
        helper.make_tensor_value_info(f"{stem}_i", onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info(f"{stem}_g", onnx.TensorProto.BOOL, []),
        _float(f"{stem}_v"),
    ]
    outputs = [helper.make_tensor_value_info(f"{stem}_q", onnx.TensorProto.BOOL, []), _float(f"{stem}_o")]
    return helper.make_graph(
        [helper.make_node("Identity", [f"{stem}_g"], [f"{stem}_q"]), *nodes], "body", inputs, outputs, tensors
    )


class Made(NamedTuple):
    """Nodes of the main graph, further constants and functions."""

    nodes: list[onnx.NodeProto]
    functions: list[onnx.FunctionProto] = []  # noqa: RUF012 - never changed


def branch(seed: int, taken: str) -> Made:
    return Made([_if(Body(seed).made("x", "t").graph("t"), "x", "y", taken)])


def branch_in_branch(seed: int, taken: str) -> Made:
    inner = _if(Body(seed).made("x", "i").graph("i"), "x", "t", taken)
    return Made([_if(helper.make_graph([inner], "outer", [], [_float("t")]), "x", "y", taken)])


def loop(seed: int, rounds: str) -> Made:
    body = Body(seed)
    graph = _loop_body(lambda v, o: (body.made(v, o, "Tanh").nodes, body.tensors), "l")
    return Made([helper.make_node("Loop", [rounds, "", "x"], ["y"], body=graph)])


def loop_in_loop(seed: int, rounds: str) -> Made:
    body = Body(seed)
    inner = _loop_body(lambda v, o: (body.made(v, o, "Tanh").nodes, body.tensors), "m")
    outer = _loop_body(lambda v, o: ([helper.make_node("Loop", [rounds, "", v], [o], body=inner)], []), "l")
    return Made([helper.make_node("Loop", [rounds, "", "x"], ["y"], body=outer)])


def loop_beside_fold(seed: int, rounds: str) -> Made:
    """A branch with a fold, and a Loop beside it."""
    body = Body(seed).made("x", "a")
    inner = _loop_body(lambda v, o: ([helper.make_node("Neg", [v], [o])], []), "m")
    body.nodes.append(helper.make_node("Loop", [rounds, "", "a"], ["t"], body=inner))
    return Made([_if(body.graph("t"), "x", "y", "never")])


def branch_in_loop(seed: int, rounds: str) -> Made:
    body = Body(seed)

    def inner(v: str, o: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        return [_if(body.made(v, "t").graph("t"), v, o, "never")], []

    return Made([helper.make_node("Loop", [rounds, "", "x"], ["y"], body=_loop_body(inner, "l"))])


def scan(seed: int, _: str) -> Made:
    body = Body(seed).made("v", "t")
    body.nodes.append(helper.make_node("Identity", ["s"], ["so"]))
    graph = helper.make_graph(
        body.nodes, "body", [_float("s"), _float("v")], [_float("so"), _float("t")], body.tensors
    )
    start = helper.make_node(
        "Constant", [], ["start"], value=numpy_helper.from_array(np.zeros(1, np.float32))
    )
    five = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros(1, np.int64)))
    nodes = [start, five, helper.make_node("Unsqueeze", ["x", "zero"], ["xs"])]
    return Made(
        [*nodes, helper.make_node("Scan", ["start", "xs"], ["last", "y"], num_scan_inputs=1, body=graph)]
    )


def function(seed: int, _: str) -> Made:
    return Made([_call("f", "x", "y")], [Body(seed, in_function=True).made("x", "t").function("f", "t")])


def function_twice(seed: int, _: str) -> Made:
    """At two sizes."""
    small = helper.make_node(
        "MaxPool", ["x"], ["small"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[3, 3]
    )
    calls = [_call("f", "x", "a"), small, _call("f", "small", "b")]
    return Made(
        [*calls, *_sum_of_means("a", "b")], [Body(seed, in_function=True).made("x", "t").function("f", "t")]
    )


def function_of_attributes(seed: int, _: str) -> Made:
    """Called with two slopes."""
    calls = [_call("f", "x", "a", alpha=0.5), _call("f", "x", "b", alpha=2.0)]
    body = Body(seed, in_function=True, is_leaky=True).made("x", "t")
    return Made([*calls, *_sum_of_means("a", "b")], [body.function("f", "t")])


def function_in_branch(seed: int, taken: str) -> Made:
    call = helper.make_graph([_call("f", "x", "t")], "then", [], [_float("t")])
    return Made(
        [_if(call, "x", "y", taken)], [Body(seed, in_function=True).made("x", "t").function("f", "t")]
    )


def function_in_function(seed: int, _: str) -> Made:
    inner = Body(seed, in_function=True).made("x", "t").function("f", "t")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), _call("f", "r", "t")]
    outer = helper.make_function(DOMAIN, "g", ["x"], ["t"], nodes, imports)
    return Made([_call("g", "x", "y")], [inner, outer])


def branch_in_function(seed: int, taken: str) -> Made:
    never = helper.make_node("Constant", [], ["inside"], value=numpy_helper.from_array(np.array([False])))
    where = [never, helper.make_node("Size", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["b"], to=9)]
    where += [helper.make_node("And", ["inside", "b"], ["taken"])]
    body = Body(seed, in_function=True).made("x", "t")
    nodes = [*where, _if(body.graph("t"), "x", "y", "taken")]
    return Made(
        [_call("g", "x", "y")],
        [helper.make_function(DOMAIN, "g", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])],
    )


def function_in_loop(seed: int, rounds: str) -> Made:
    def inner(v: str, o: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        return [_call("f", v, o)], []

    body = Body(seed, in_function=True).made("x", "t", "Tanh").function("f", "t")
    return Made([helper.make_node("Loop", [rounds, "", "x"], ["y"], body=_loop_body(inner, "l"))], [body])


def scan_beside_fold(seed: int, taken: str) -> Made:
    """A branch with a fold, and a Scan behind it."""
    body = Body(seed).made("x", "a")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["so"]), helper.make_node("Neg", ["v"], ["m"])],
        "body", [_float("s"), _float("v")], [_float("so"), _float("m")],
    )  # fmt: skip
    start = helper.make_node(
        "Constant", [], ["start"], value=numpy_helper.from_array(np.zeros(1, np.float32))
    )
    body.nodes += [
        start,
        helper.make_node("Scan", ["start", "a"], ["last", "t"], num_scan_inputs=1, body=graph),
    ]
    return Made([_if(body.graph("t"), "x", "y", taken)])


def scan_in_branch(seed: int, taken: str) -> Made:
    inside = scan(seed, "").nodes
    inside[-1].output[1] = "t"
    graph = helper.make_graph(inside, "then", [], [_float("t")])
    return Made([_if(graph, "x", "y", taken)])


def loop_in_function(seed: int, _: str) -> Made:
    body = Body(seed)
    graph = _loop_body(lambda v, o: (body.made(v, o, "Tanh").nodes, body.tensors), "l")
    none = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0)))
    size = [none, helper.make_node("Size", ["x"], ["n"]), helper.make_node("Mul", ["zero", "n"], ["rounds"])]
    nodes = [*size, helper.make_node("Loop", ["rounds", "", "x"], ["t"], body=graph)]
    imports = [helper.make_opsetid("", 17)]
    return Made([_call("g", "x", "y")], [helper.make_function(DOMAIN, "g", ["x"], ["t"], nodes, imports)])


def _call(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(name, [x], [y], domain=DOMAIN, **attributes)


def _sum_of_means(a: str, b: str) -> list[onnx.NodeProto]:
    pools = [helper.make_node("GlobalAveragePool", [name], [f"{name}_p"]) for name in (a, b)]
    return [*pools, helper.make_node("Concat", [f"{a}_p", f"{b}_p"], ["y"], axis=1)]


# Where a fold stands, and the tensor that says whether it is entered, or how often.
PLACES: dict[str, tuple[Callable[[int, str], Made], str]] = {
    "branch that is taken": (branch, "always"),
    "branch that is not taken": (branch, "never"),
    "branch in a branch, not taken": (branch_in_branch, "never"),
    "loop": (loop, "two"),
    "loop without a round": (loop, "none"),
    "loop in a loop": (loop_in_loop, "two"),
    "loop in a loop without a round": (loop_in_loop, "none"),
    "branch with a loop beside, not taken": (loop_beside_fold, "two"),
    "branch in a loop, not taken": (branch_in_loop, "two"),
    "branch in a loop without a round": (branch_in_loop, "none"),
    "scan": (scan, ""),
    "function": (function, ""),
    "function at two sizes": (function_twice, ""),
    "function with two slopes": (function_of_attributes, ""),
    "function in a branch, not taken": (function_in_branch, "never"),
    "function in a function": (function_in_function, ""),
    "branch of a function, not taken": (branch_in_function, ""),
    "function in a loop": (function_in_loop, "two"),
    "function in a loop without a round": (function_in_loop, "none"),
    "scan in a branch, not taken": (scan_in_branch, "never"),
    "branch with a scan behind, not taken": (scan_beside_fold, "never"),
    "loop of a function, without a round": (loop_in_function, ""),
}


def model_of(place: str, seed: int) -> onnx.ModelProto:
    """A model with one fold there; conditions and rounds are computed, so that none is a constant."""
    make, entered = PLACES[place]
    made = make(seed, entered)
    computed = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Abs", ["top"], ["size"]),
        helper.make_node("Less", ["size", "zero_f"], ["never"]),  # |x| < 0
        helper.make_node("Not", ["never"], ["always"]),
        helper.make_node("Cast", ["never"], ["none"], to=onnx.TensorProto.INT64),
        helper.make_node("Cast", ["always"], ["one"], to=onnx.TensorProto.INT64),
        helper.make_node("Add", ["one", "one"], ["two"]),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero_f")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", C, "H", "W"])
    graph = helper.make_graph([*computed, *made.nodes], "g", [x], [_float("y")], [zero])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=imports, functions=made.functions)


def _one_weight(conv: onnx.NodeProto, w: Array, b: Array, rng: np.random.Generator) -> None:
    w.flat[rng.integers(w.size)] *= 1.5


def _one_bias(conv: onnx.NodeProto, w: Array, b: Array, rng: np.random.Generator) -> None:
    b[rng.integers(len(b))] += 0.1


def _padding(conv: onnx.NodeProto, w: Array, b: Array, rng: np.random.Generator) -> None:
    (pads,) = (attribute for attribute in conv.attribute if attribute.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]


def _channels(conv: onnx.NodeProto, w: Array, b: Array, rng: np.random.Generator) -> None:
    w[[1, 2]] = w[[2, 1]]


FAULTS: dict[str, Callable[[onnx.NodeProto, Array, Array, np.random.Generator], None]] = {
    "one weight": _one_weight,
    "one bias": _one_bias,
    "padding": _padding,
    "two channels": _channels,
}


def _graphs(owner: Any) -> Iterator[Any]:
    """A graph or function and all in it."""
    yield owner
    for node in owner.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def spoil(model: onnx.ModelProto, fault: str, seed: int) -> onnx.ModelProto:
    """The model with its one Conv made wrong."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    owners = [graph for owner in (result.graph, *result.functions) for graph in _graphs(owner)]
    (conv,) = [node for owner in owners for node in owner.node if node.op_type == "Conv"]
    tensors = {t.name: t for owner in owners for t in getattr(owner, "initializer", ())}
    tensors |= {
        node.output[0]: node.attribute[0].t
        for owner in owners
        for node in owner.node
        if node.op_type == "Constant"
    }
    weight, bias = (numpy_helper.to_array(tensors[name]).copy() for name in conv.input[1:3])
    FAULTS[fault](conv, weight, bias, np.random.default_rng(seed))
    for name, array in zip(conv.input[1:3], (weight, bias), strict=True):
        stored = numpy_helper.from_array(array, tensors[name].name)
        tensors[name].CopyFrom(stored)
    return result


class Seen(NamedTuple):
    """Which judges saw a fault; or, without one, which of them did not pass."""

    fold: bool
    scope: bool
    verify: bool


def seen_by(place: str, fault: str | None, seed: int = 0) -> Seen:
    """What the judges say of a model whose fold is spoilt, or of the right one."""
    model = model_of(place, seed)
    plan = make_plan(Document.from_model(model), Options())
    fused = fuse(model, options=Options(check=False)).model
    wrong = fused if fault is None else spoil(fused, fault, seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("original.onnx", "spoilt.onnx")]
        for path, made in zip(paths, (model, wrong), strict=True):
            onnx.save(made, path)
        keys = list(dict.fromkeys(planned.scope.key for planned, _ in plan.folds))
        assert keys
        assert all(keys), "the fold is not in a scope"
        baseline = measure_original(paths[0], defer_noise=True)
        by_scope = [verdict.status for verdict in check_scopes(baseline, paths[1], keys)]
        verification = verify(paths[0], paths[1])
    if fault is None:
        return Seen(
            _by_fold(plan, model, None, seed) is not Status.PASSED,
            any(status is not Status.PASSED for status in by_scope),
            verification.status is not Status.PASSED,
        )
    return Seen(
        _by_fold(plan, model, fault, seed) is Status.FAILED,
        Status.FAILED in by_scope,
        verification.status is Status.FAILED,
    )


def _by_fold(plan: ModelPlan, model: onnx.ModelProto, fault: str | None, seed: int) -> Status:
    for planned, fold in plan.folds:
        layouts = plan.channel_layouts[planned.scope.key]
        before, after = fold_models(planned, fold, layouts, model.ir_version)
        if fault is not None:
            after = spoil(after, fault, seed)
        status = probe(FoldCase(before, after)).status
        if status is not Status.PASSED:
            return status
    return Status.PASSED


if __name__ == "__main__":
    start = time.perf_counter()
    missed: Counter[str] = Counter()
    planted = 0
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 4):
        for place in PLACES:
            for fault in (None, *FAULTS):
                seen = seen_by(place, fault, seed)
                planted += fault is not None
                for judge, sees in seen._asdict().items():
                    if sees is (fault is None):
                        missed[f"{place}: {fault or 'no fault'}, {judge}"] += 1
    for line, count in sorted(missed.items()):
        print(f"{line}: {count}")
    print(
        f"{planted} faults, {missed.total()} verdicts of 3 judges are wrong, {time.perf_counter() - start:.1f} s"
    )
    sys.exit(bool(missed))
