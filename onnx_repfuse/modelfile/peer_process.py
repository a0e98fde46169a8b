"""What runs another simplifier in a process of its own, since it may crash, hang, or take any amount of memory.

The model comes by standard input, or by a path if it is large. A line of JSON and the result go to standard output; the
result of a large one goes to a path, and its weights beside it. Whatever the simplifier prints is dropped.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import onnx

__all__ = ["main"]

INPUTS_ARE_OPTIONAL = 4  # the IR version since which an initializer need not be a graph input
_PLAIN = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def main() -> None:
    """Run the simplifier that `sys.argv` names; what it raises ends the process, its words on standard error."""
    name, source, target = sys.argv[1:4]
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    peer = importlib.import_module(name)
    answer.write(json.dumps({"version": _version(peer)}).encode() + b"\n")
    answer.flush()  # before it can crash
    model = onnx.load(source, load_external_data=False) if source else onnx.ModelProto()
    if not source:
        model.ParseFromString(sys.stdin.buffer.read())
    head = _head(model)
    result = _simplified(peer, source or model)
    _put_back(result, head)
    if target:
        data = f"{Path(target).name}.data"
        onnx.save(result, target, save_as_external_data=True, location=data)
    else:
        answer.write(result.SerializeToString())
    answer.close()


def _head(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `_put_back` needs of a model: all but its nodes and weights."""
    head = onnx.ModelProto(ir_version=model.ir_version)
    for name in _PLAIN:
        setattr(head, name, getattr(model, name))
    head.metadata_props.extend(model.metadata_props)
    head.graph.name, head.graph.doc_string = model.graph.name, model.graph.doc_string
    head.graph.input.extend(model.graph.input)
    head.graph.output.extend(model.graph.output)
    return head


def _version(peer: ModuleType) -> str:
    try:
        version = getattr(peer, "__version__", "") or importlib.metadata.version(peer.__name__)
        return str(version).removeprefix("v")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _simplified(peer: ModuleType, model: onnx.ModelProto | str) -> onnx.ModelProto:
    """Its result with its defaults, but for checks of its own: the caller has better ones."""
    if peer.__name__ == "onnxsim":
        result, _ = peer.simplify(model, check_n=0)
    else:
        result = peer.slim(model)
    if not isinstance(result, onnx.ModelProto):
        raise TypeError(f"{peer.__name__} returned no model")
    return result


def _put_back(result: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """The interface as the original declares it, and what is no matter of a simplifier."""
    for name in ("input", "output"):
        _keep(getattr(result.graph, name), getattr(original.graph, name))
    if original.ir_version < INPUTS_ARE_OPTIONAL:
        known = {value.name for value in original.graph.input}
        for tensor in result.graph.initializer:
            if tensor.name not in known:
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                result.graph.input.append(value)
    _keep(result.metadata_props, original.metadata_props)
    result.ir_version = max(result.ir_version, original.ir_version)
    result.graph.name, result.graph.doc_string = original.graph.name, original.graph.doc_string
    for name in _PLAIN:
        setattr(result, name, getattr(original, name))


def _keep(messages: object, kept: object) -> None:
    """Let a repeated field hold what another one holds."""
    del messages[:]  # type: ignore[attr-defined]
    messages.extend(kept)  # type: ignore[attr-defined]
