"""Running a model: ONNX Runtime's CPU provider, or onnx's reference evaluator where that has no kernel.

Models are opened by path whenever there is one, so that weights are read by the runtime alone. A `Runner` is
a context manager: leave it before opening the next, and two sets of weights are never held at once.

Memory that was freed, given back to the system.

The C library keeps what is freed below its top for later. A closed session leaves holes of most of its weights, which
the next one, with weights of other sizes, fills only in part.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort

from onnx_repfuse.errors import InputError

__all__ = ["DoesNotRun", "Model", "Port", "Runner", "load", "one_line", "open_model", "release_heap"]

Model = Path | str | bytes | onnx.ModelProto
_NO_KERNEL = ("NOT_IMPLEMENTED", "Could not find an implementation", "guarantees* support", "IR version")
_TWICE = "two nodes with same node name"
LARGE = 16 << 20  # bytes


class DoesNotRun(InputError):  # noqa: N818 - an outcome, like Inexact
    """The runtime refuses the model or this input; `str()` is its reason in one line."""


class Port(NamedTuple):
    """A graph input or output: `type` as ONNX Runtime writes it, dims as int, name or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Runner:
    """An opened model.

    Attributes:
        judge: "onnxruntime" or "reference".
        inputs, outputs: the ports, without overridable initializers.
    """

    def __init__(
        self,
        engine: Any,
        judge: str,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        large: bool = False,
    ) -> None:
        self._engine = engine
        self._large = large
        self.judge = judge
        self.inputs = inputs
        self.outputs = outputs

    def run(self, feed: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
        """Values of the outputs (or of `names` among them). Raises DoesNotRun."""
        wanted = list(names) if names is not None else [port.name for port in self.outputs]
        if not wanted:  # to the runtime, no names mean all
            return {}
        try:
            if self.judge == "onnxruntime":
                options = ort.RunOptions()
                options.log_severity_level = 4
                values = self._engine.run(wanted, dict(feed), options)
            else:
                values = self._engine.run(wanted, dict(feed))
        except Exception as error:  # the runtimes raise anything
            raise DoesNotRun(one_line(error)) from error
        return dict(zip(wanted, values, strict=True))

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine = None
        if self._large:
            release_heap()


def open_model(
    model: Model,
    *,
    optimize: bool = False,
    threads: int = 1,
    folder: Path | None = None,
    fallback: bool = True,
) -> Runner:
    """Open a model on the CPU, unoptimized unless asked.

    Args:
        model: a path, or a model in memory (serialized, or as a ModelProto; below 2 GB).
        optimize: ORT_ENABLE_ALL instead of ORT_DISABLE_ALL.
        threads: threads within an operator.
        folder: where the external data of a model in memory lies.
        fallback: use onnx's reference evaluator where the runtime lacks a kernel.

    Raises:
        DoesNotRun: neither can open it.
    """
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    try:
        runner = _open_ort(model, optimize, threads, folder)
        if isinstance(model, bytes) and len(model) > LARGE:
            model = b""  # the runtime has made its own
            release_heap()
        return runner
    except Exception as error:  # onnxruntime's exceptions share no base
        reason = str(error)
        if _TWICE in reason:
            folder = folder or (Path(model).parent if not isinstance(model, bytes) else None)
            return open_model(
                _rename(load(model, weights=False)), optimize=optimize, threads=threads, folder=folder
            )
        if not fallback or not any(mark in reason for mark in _NO_KERNEL):
            raise DoesNotRun(one_line(error)) from error
    return _open_reference(model, folder, reason)


def load(model: Model, weights: bool = True) -> onnx.ModelProto:
    """The model as a proto, with external data unless `weights` is false. Raises DoesNotRun."""
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(str(model), load_external_data=weights)
    except Exception as error:
        raise DoesNotRun(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, source positions and excess length."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace("[ONNXRuntimeError] : ", "")
    return text if len(text) <= 300 else text[:297] + "..."


def _open_ort(model: Path | str | bytes, optimize: bool, threads: int, folder: Path | None) -> Runner:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # two sessions are timed in turns: the threads of one that waits by spinning would take the time of the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(folder).resolve())
        )
    source = model if isinstance(model, bytes) else str(model)
    engine = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    return Runner(
        engine, "onnxruntime", _ports(engine.get_inputs()), _ports(engine.get_outputs()), _is_large(model)
    )


def _is_large(model: Path | str | bytes) -> bool:
    """Whether closing it frees so much that the system should have it; external data lies beside a path."""
    return not isinstance(model, bytes) or len(model) > LARGE


def _ports(args: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(Port(arg.name, arg.type, tuple(arg.shape)) for arg in args)


def _open_reference(model: Path | str | bytes, folder: Path | None, reason: str) -> Runner:
    from onnx.reference import ReferenceEvaluator

    proto = load(model)
    try:
        if folder is not None:
            onnx.load_external_data_for_model(proto, str(folder))
        engine = ReferenceEvaluator(proto)
    except Exception as error:
        raise DoesNotRun(one_line(RuntimeError(reason))) from error
    constant = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_port(value) for value in proto.graph.input if value.name not in constant)
    return Runner(engine, "reference", inputs, tuple(_port(value) for value in proto.graph.output))


def _port(value: onnx.ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(value.name, value.type.WhichOneof("value") or "", ())
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    short = {"float": "float", "double": "double"}.get(element, element)
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
    )
    return Port(value.name, f"tensor({short})", dims)


def _rename(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with unnamed nodes: names mean nothing to the numbers."""

    def clear(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.ClearField("name")
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    clear(inner)

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    clear(copy.graph)
    return copy


def release_heap() -> None:
    """Return free memory to the system, where the C library can."""
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
