"""Nodes over given values, run by ONNX Runtime, or by onnx's reference evaluator where ONNX Runtime has no kernel.

A table of operators of our own would never be complete, and would round otherwise than the runtime does, in half
precision above all. ONNX Runtime computes these very values, with these very kernels, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.dtypes import numpy_dtype, pack
from onnx_repfuse.records.reasons import Reason

__all__ = ["COMPUTED_TYPES", "evaluate"]

Values = NDArray[Any]
# The types of what can be computed: bfloat16 comes back as float32, which holds every value of it.
COMPUTED_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in (
        *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
        *("FLOAT16", "FLOAT", "DOUBLE", "BFLOAT16"),
    )
)
MAX_INITIALIZER = 1 << 16  # bytes; larger values are not copied into the model
_NO_KERNEL = ("NOT_IMPLEMENTED", "Could not find an implementation", "guarantees* support")
MAX_MESSAGE = 200  # characters of what the runtime says
IR_VERSION = 8  # which every runtime reads that has these operators


def evaluate(
    nodes: Sequence[onnx.NodeProto],
    given: Mapping[str, Values],
    wanted: Mapping[str, int],
    types: Mapping[str, int],
    opset: int,
) -> dict[str, Values]:
    """The values of some tensors.

    Args:
        nodes: in topological order, of ONNX's own domain, without subgraphs.
        given: the values that they read.
        wanted: the tensors to return, with their ONNX data types, all of `COMPUTED_TYPES`.
        types: ONNX data types of `given`.
        opset: version of the ONNX operator set, 7 or more.

    Raises:
        Inexact: neither runtime can compute them.
    """
    graph = onnx.GraphProto(name="constants", node=nodes)
    feed = {}
    for name, value in given.items():
        # ONNX Runtime's Python interface takes no bfloat16 in a feed
        if value.nbytes <= MAX_INITIALIZER or types[name] == onnx.TensorProto.BFLOAT16:
            raw = bytes(pack(types[name], value))
            graph.initializer.add(name=name, data_type=types[name], dims=value.shape, raw_data=raw)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(name, types[name], value.shape))
            feed[name] = value
    for name, data_type in wanted.items():
        _add_output(graph, name, data_type)
    model = onnx.ModelProto(graph=graph, ir_version=IR_VERSION)
    model.opset_import.add(domain="", version=opset)
    values = zip(wanted.items(), _run(model, feed), strict=True)
    return {name: np.asarray(value).astype(numpy_dtype(kind), copy=False) for (name, kind), value in values}


def _add_output(graph: onnx.GraphProto, name: str, data_type: int) -> None:
    """ONNX Runtime's Python interface does not give out bfloat16, but a Cast of it."""
    if data_type == onnx.TensorProto.BFLOAT16:
        wide = f"{name}, in float32"
        graph.node.append(onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT))
        name, data_type = wide, onnx.TensorProto.FLOAT
    graph.output.append(onnx.helper.make_tensor_value_info(name, data_type, None))


def _run(model: onnx.ModelProto, feed: Mapping[str, Values]) -> list[Values]:
    from onnx_repfuse.quiet_runtime import SILENT, ort  # most models are planned without

    options, run_options = ort.SessionOptions(), ort.RunOptions()
    # Node by node, on one thread: sums are added in one order on every machine of a kind.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # what a value is computed from is given back at once
    options.log_severity_level = run_options.log_severity_level = SILENT
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        values: list[Values] = session.run(None, dict(feed), run_options)
    except Exception as error:  # onnxruntime's exceptions share no base
        if any(mark in str(error) for mark in _NO_KERNEL):
            return _run_reference(model, feed)
        raise _cannot(error) from error
    return values


def _run_reference(model: onnx.ModelProto, feed: Mapping[str, Values]) -> list[Values]:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):  # runtimes compute infinities and NaN without a word, too
            values = list(ReferenceEvaluator(model).run(None, dict(feed)))
    except Exception as error:  # the evaluator raises anything
        raise _cannot(error) from error
    return values


def _cannot(error: Exception) -> Inexact:
    why = " ".join(str(error).split())[:MAX_MESSAGE]
    return Inexact(Reason.UNSUPPORTED, f"a constant cannot be computed: {why}")
