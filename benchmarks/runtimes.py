"""A model opened in a runtime, as a function without arguments that runs it once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Given = tuple[int, ...] | float
FEWEST = 64  # size of a symbolic axis that the shape does not give


def feeds(
    path: Path, shape: tuple[int, ...] | None, given: Mapping[str, Given] | None = None
) -> list[np.ndarray[Any, Any]]:
    """Mixed-sign noise for the inputs of a model, in their order.

    Args:
        path: the model.
        shape: of the first input.
        given: of others, by name: the shape or, for a scalar, the value.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {item.name for item in graph.initializer}
    rng = np.random.default_rng(0)
    result: list[np.ndarray[Any, Any]] = []
    for value in graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        dims: Given = tuple(d.dim_value if d.dim_value > 0 else FEWEST for d in kind.shape.dim)
        dims = shape if shape and not result else (given or {}).get(value.name, dims)
        noise = rng.standard_normal(dims) if isinstance(dims, tuple) else np.array(dims)
        result.append(noise.astype(dtype))
    return result


def onnxruntime(
    path: Path, inputs: list[np.ndarray[Any, Any]], threads: int, *, optimized: bool = True
) -> Callable[[], object]:
    """ONNX Runtime with all its optimizations, or none."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # sessions are interleaved: threads of an idle session that spin would slow down the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {port.name: value for port, value in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


_CORE: list[Any] = []
_LOCK = threading.Lock()


def openvino(path: Path, inputs: list[np.ndarray[Any, Any]], threads: int) -> Callable[[], object]:
    """OpenVINO's CPU plugin, one stream, float32."""
    import openvino as ov

    with _LOCK:
        if not _CORE:
            _CORE.append(ov.Core())
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = _CORE[0]
    model = core.read_model(str(path))
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, inputs, strict=True)})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(inputs)


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
