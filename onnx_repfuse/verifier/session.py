"""Opening and running a model: ONNX Runtime, or onnx's reference evaluator where ONNX Runtime has no kernel.

Models are opened by path whenever there is one, so that only the runtime reads the weights. A `Session` is a context
manager: leave it before opening the next, and two sets of weights are never held at once.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.quiet_runtime import RUNTIME_VERSION, SILENT, ort
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.legacy_broadcast import NUMPY_BROADCAST_SINCE, legacy_operators
from onnx_repfuse.verifier.stopping import stoppable

__all__ = [
    "Dim",
    "DoesNotRun",
    "Model",
    "NoImplementation",
    "Session",
    "ValueInfo",
    "all_nodes",
    "file_size",
    "input_at",
    "input_names",
    "input_values",
    "load",
    "one_line",
    "open_session",
    "output_values",
    "reads",
    "release_heap",
    "subgraphs",
]

Dim = int | str | None
Model = Path | str | bytes | onnx.ModelProto
# ONNX Runtime's words for "valid, but not for me": no kernel for an operator or type, or a version that is too new
_NO_KERNEL = ("NOT_IMPLEMENTED", "Could not find an implementation")
_MISSING_KERNEL = (*_NO_KERNEL, "guarantees* support", "IR version")
# And for an operator of a domain that it does not know; of ONNX's own domains, an unknown operator is an invalid model.
_UNKNOWN_OPERATOR = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")
_DUPLICATE_NODE_NAME = "two nodes with same node name"
_LARGE_MODEL = 16 << 20  # bytes; the memory of a closed session is given back to the system from here on
_LONGEST_MESSAGE = 300  # characters


class DoesNotRun(InputError):  # noqa: N818 - an outcome, like Inexact
    """The runtime refuses the model or this input; `str()` is its reason in one line."""


class NoImplementation(DoesNotRun):
    """The model may be right, but it has an operator that nothing here implements, as one of another domain."""


_OF_A_FILE = re.compile(r"Load model from .*? failed:\s*")
_BFLOAT16 = "tensor(bfloat16)"
_EVALUATES_BFLOAT16 = tuple(int(part) for part in onnx.__version__.split(".")[:2]) >= (1, 19)
_TAKES_A_FOLDER = RUNTIME_VERSION >= (1, 22)  # of the external data of a model in memory


class ValueInfo(NamedTuple):
    """A graph input or output: `type` as ONNX Runtime writes it ("tensor(float)"), dims as int, name or None."""

    name: str
    type: str
    shape: tuple[Dim, ...]


@dataclass(eq=False)
class Session:
    """An opened model.

    Attributes:
        engine: onnxruntime's InferenceSession or onnx's ReferenceEvaluator; None once closed.
        backend: "onnxruntime" or "reference".
        inputs, outputs: of the graph, without overridable initializers.
        large: whether closing it frees so much memory that the system should have it back.
        reuses_memory: whether outputs lie in memory that goes with the last of them, and are copied for that.
    """

    engine: Any
    backend: str
    inputs: list[ValueInfo]
    outputs: list[ValueInfo]
    large: bool = False
    reuses_memory: bool = False

    def run(self, feed: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
        """Values of all outputs, or of `names` among them, by name. Raises DoesNotRun."""
        wanted = list(names) if names is not None else [output.name for output in self.outputs]
        if not wanted:  # an empty list means all outputs to the runtime
            return {}
        arguments: list[Any] = [wanted, dict(feed)]
        options = ort.RunOptions()
        options.log_severity_level = SILENT  # its reasons reach the user through DoesNotRun
        if self.backend == "onnxruntime":
            arguments.append(options)
        try:
            with stoppable(options):
                values = self.engine.run(*arguments)
        except Exception as error:  # the exceptions of kernels share no base
            raise DoesNotRun(one_line(error)) from error
        if self.reuses_memory:
            values = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
        return dict(zip(wanted, values, strict=True))

    def without_outputs(self, names: Collection[str]) -> Session:
        """The same session, which gives these outputs only where they are asked for by name."""
        return replace(self, outputs=[output for output in self.outputs if output.name not in names])

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine = None
        if self.large:
            release_heap()


def open_session(
    model: Model, runtime: Runtime = DEFAULT_RUNTIME, *, folder: Path | None = None, fallback: bool = True
) -> Session:
    """Open a model: the only place that makes a session.

    Args:
        model: a path, or a model in memory (serialized, or as a ModelProto; below 2 GB).
        runtime: providers, threads, optimization level and custom operators.
        folder: the folder of the external data of a model in memory.
        fallback: use onnx's reference evaluator where the runtime lacks a kernel.

    Raises:
        NoImplementation: it has operators that neither implements.
        DoesNotRun: neither can open it.
    """
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    # ONNX Runtime is asked first, and its reason decides: what it cannot run may still be right.
    try:
        session = _open_onnxruntime(model, runtime, folder)
    except Exception as error:  # onnxruntime's exceptions share no base
        return _open_refused(model, runtime, folder, error, fallback=fallback)
    if fallback and any(_BFLOAT16 in value.type for value in (*session.inputs, *session.outputs)):
        # It would compute them, but its Python interface neither takes such values nor gives them out.
        return _open_reference(model, folder, "ONNX Runtime's Python interface has no bfloat16")
    if isinstance(model, bytes) and len(model) > _LARGE_MODEL:
        model = b""  # the session holds a copy of its own
        release_heap()
    return session


def _open_refused(
    model: Path | str | bytes, runtime: Runtime, folder: Path | None, error: Exception, *, fallback: bool
) -> Session:
    """As `open_session`, of a model that ONNX Runtime refuses as it is."""
    reason = str(error)
    if _DUPLICATE_NODE_NAME in reason:
        if not isinstance(model, bytes):
            folder = folder or Path(model).parent
        return open_session(_without_node_names(load(model, weights=False)), runtime, folder=folder)
    unknown = _UNKNOWN_OPERATOR.search(reason)
    if unknown:
        raise NoImplementation(
            f"ONNX Runtime has no operator {unknown[1]}, and no library was given by --custom-ops that has it"
        ) from error
    has_no_kernel = any(mark in reason for mark in _MISSING_KERNEL)
    if not fallback or not has_no_kernel:
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
    except Exception as error:  # protobuf's, the file system's, onnx's checker's
        raise DoesNotRun(one_line(error)) from error


def file_size(model: Model) -> int:
    """Bytes of a model's file, without external data; 0 for one in memory, or where there is no such file."""
    if not isinstance(model, Path | str):
        return 0
    try:
        return Path(model).stat().st_size
    except OSError:  # the session says what is wrong with it
        return 0


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, and of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    # The path may be one of ours, of a result in a work folder or of a model from memory.
    text = _OF_A_FILE.sub("", text.replace("[ONNXRuntimeError] : ", ""))
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def input_names(graph: onnx.GraphProto) -> list[str]:
    """The inputs that have no initializer. Before IR version 4, every initializer is also declared as an input."""
    initializers = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in initializers]


def input_at(node: onnx.NodeProto, place: int) -> str:
    """The name of a node's input number `place`, "" where it is left out."""
    return str(node.input[place]) if len(node.input) > place else ""


def input_values(graph: onnx.GraphProto) -> list[ValueInfo]:
    """The inputs of `input_names`, as the file declares them."""
    names = set(input_names(graph))
    return [_value_info(value) for value in graph.input if value.name in names]


def output_values(graph: onnx.GraphProto) -> list[ValueInfo]:
    """The outputs, as the file declares them."""
    return [_value_info(value) for value in graph.output]


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes: branches of an If, the body of a Loop or Scan."""
    graphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        graphs.extend(attribute.graphs)
    return graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """Inputs, and what the node's subgraphs capture from outside."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names += _captures(graph)
    return names


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a model, those of its functions and subgraphs included."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        pending += [inner for graph in subgraphs(node) for inner in graph.node]


def _captures(graph: onnx.GraphProto) -> list[str]:
    inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names = []
    for node in graph.node:
        inner.update(node.output)
        names += reads(node)
    names += [value.name for value in graph.output]
    return [name for name in names if name not in inner]


def _options(runtime: Runtime, folder: Path | None) -> Any:
    """The options of a session of ONNX Runtime."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, runtime.optimization)
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    # Both keep what a run took, or would take, for the next. Models that are timed have them, as they are deployed.
    options.enable_cpu_mem_arena = runtime.is_optimized or runtime.reuses_memory
    options.enable_mem_pattern = runtime.is_optimized
    options.log_severity_level = SILENT  # its reasons reach the user through DoesNotRun
    # Two sessions are timed by turns. Threads that wait by spinning would take time from the other session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if runtime.denormal_as_zero:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(folder).resolve())
        )
    for library in runtime.custom_ops:
        options.register_custom_ops_library(str(library))
    return options


def _open_onnxruntime(model: Path | str | bytes, runtime: Runtime, folder: Path | None) -> Session:
    options = _options(runtime, folder)
    source = model if isinstance(model, bytes) else str(model)
    if folder is not None and isinstance(source, bytes) and not _TAKES_A_FOLDER:
        source = _with_its_data(source, folder)
    engine = ort.InferenceSession(source, options, providers=list(runtime.providers), enable_fallback=0)
    # A provider whose libraries are missing is left out without a word, and all runs on the CPU.
    missing = set(runtime.providers).difference(engine.get_providers())
    if missing:
        raise DoesNotRun(f"ONNX Runtime cannot load the provider {min(missing)}: its libraries are missing")
    # Weights beside a path may be external, so the size of the file says nothing.
    large = not isinstance(model, bytes) or len(model) > _LARGE_MODEL
    inputs, outputs = (
        [ValueInfo(arg.name, arg.type, tuple(arg.shape)) for arg in args]
        for args in (engine.get_inputs(), engine.get_outputs())
    )
    return Session(engine, "onnxruntime", inputs, outputs, large, runtime.reuses_memory)


def _with_its_data(model: bytes, folder: Path) -> bytes:
    """The same model with its external data inside."""
    proto = load(model)
    onnx.load_external_data_for_model(proto, str(folder))
    return bytes(proto.SerializeToString())


def _open_reference(model: Path | str | bytes, folder: Path | None, reason: str) -> Session:
    """The reference evaluator; `reason` is what ONNX Runtime said, and what the user is told if this fails, too."""
    from onnx.reference import ReferenceEvaluator

    proto = load(model)
    if not _EVALUATES_BFLOAT16 and _has_bfloat16(proto):
        raise NoImplementation(
            f"ONNX Runtime has no kernel for it in bfloat16, which onnx {onnx.__version__} does not compute, "
            "as onnx 1.19 and newer do"
        )
    try:
        if folder is not None:
            onnx.load_external_data_for_model(proto, str(folder))
        opset = max((entry.version for entry in proto.opset_import if not entry.domain), default=1)
        new_ops = legacy_operators() if opset < NUMPY_BROADCAST_SINCE else None
        engine = ReferenceEvaluator(proto, new_ops=new_ops)
    except Exception as error:  # the evaluator raises anything
        kind = NoImplementation if any(mark in reason for mark in _NO_KERNEL) else DoesNotRun
        raise kind(one_line(RuntimeError(reason))) from error
    names = set(input_names(proto.graph))
    inputs = [_value_info(value) for value in proto.graph.input if value.name in names]
    return Session(engine, "reference", inputs, output_values(proto.graph))


def _has_bfloat16(model: onnx.ModelProto) -> bool:
    kind, graph = onnx.TensorProto.BFLOAT16, model.graph
    values = (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info))
    attributes = [a for node in all_nodes(model) for a in node.attribute]
    weights = [*graph.initializer, *(a.t for a in attributes)]
    casts = (a.i for a in attributes if a.name in ("to", "dtype"))
    return kind in values or kind in casts or any(tensor.data_type == kind for tensor in weights)


def _value_info(value: onnx.ValueInfoProto) -> ValueInfo:
    if not value.type.HasField("tensor_type"):
        return ValueInfo(value.name, value.type.WhichOneof("value") or "", ())
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return ValueInfo(value.name, f"tensor({element})", tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    """Some exporters write -1 for a size they do not know; ONNX Runtime reads that as None, too."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _without_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with unnamed nodes. ONNX Runtime refuses duplicate node names, which change no value."""

    def clear(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.ClearField("name")
            for subgraph in subgraphs(node):
                clear(subgraph)

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    clear(copy.graph)
    return copy


def release_heap() -> None:
    """Return free memory to the system, where the C library can.

    glibc keeps freed memory below the top of its heap for later. A closed session leaves holes of most of its
    weights, and the next session, whose weights have other sizes, fills them only in part.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
