"""A document as another simplifier leaves it: onnxsim or onnxslim, if it is installed.

It runs in a process of its own (`peer_process`) with a time limit, on the model in memory, or on a copy in a folder of
ours if the model is large. Nothing is believed here but that the result is a model with the same inputs and outputs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_repfuse.errors import RepfuseError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.node_order import all_nodes
from onnx_repfuse.modelfile.opset import opset_of
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.modelfile.serialize import serialize

__all__ = ["PEERS", "PeerError", "PeerResult", "installed", "run_peer"]

PEERS = ("onnxslim", "onnxsim")  # of two results that are equally good, the first counts
SECONDS = 300.0  # for one model; then it counts as hanging
IN_MEMORY_BYTES = 1 << 30  # a larger model is handed over as a file
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from onnx_repfuse.modelfile.peer_process import main
main()
"""
# What stands in their bodies may never run, so that no comparison of outputs would show what became of it.
_LOOPS = ("Loop", "Scan", "SequenceMap")


class PeerError(Exception):
    """Why there is no result, in a clause; `version` is the simplifier's, if it got that far."""

    def __init__(self, why: str, version: str = "") -> None:
        super().__init__(why)
        self.version = version


@dataclass(frozen=True)
class PeerResult:
    """What a simplifier made of a document.

    Attributes:
        peer, version: which it was.
        document: its result. `original` is the document that it was made from; to be closed by the caller.
    """

    peer: str
    version: str
    document: Document


def installed() -> tuple[str, ...]:
    """Those of `PEERS` that can be imported; none is imported for that."""
    return tuple(name for name in PEERS if importlib.util.find_spec(name) is not None)


def run_peer(document: Document, peer: str, folder: Path) -> PeerResult:
    """Simplify a document.

    Args:
        document: the model.
        peer: one of `installed()`.
        folder: of our own; the result may lie there.

    Raises:
        PeerError: it cannot be asked, fails, takes too long, or gives what is no model with the same interface.
        OutputError: there is no room for a copy of a large model.
    """
    for why in _not_to_be_proved(document.model):
        raise PeerError(why)
    octets, source, target = b"", "", ""
    rope = serialize(document, {})
    if rope.size <= IN_MEMORY_BYTES:
        octets = rope.to_bytes()
    else:
        place = folder / peer
        place.mkdir()
        source, target = str(place / "model.onnx"), str(place / "result.onnx")
        save(document, {}, source, external=True)
    version, answer = _ask(peer, source, target, octets)
    try:
        result = Document.open(target) if target else Document.from_bytes(answer)
    except RepfuseError as error:
        raise PeerError(f"it wrote what is no model: {error}", version) from error
    for why in _differences(document.model, result.model):
        result.close()
        raise PeerError(why, version)
    result.original, result.given = document, document.given
    return PeerResult(peer, version, result)


def _ask(peer: str, source: str, target: str, octets: bytes) -> tuple[str, bytes]:
    """The version of the simplifier and the bytes of its result; none if that is at `target`."""
    command = [sys.executable, "-c", _START, json.dumps(sys.path), peer, source, target]
    # Its products are small, and threads that wait by spinning take time from everybody. It imports ONNX Runtime, which
    # would send events (`quiet_runtime`).
    environment = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", **os.environ}
    try:
        done = subprocess.run(
            command, input=octets, capture_output=True, timeout=SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        version, _ = _parts(error.stdout or b"")
        raise PeerError(f"it did not end within {SECONDS:g} s", version) from error
    except OSError as error:
        raise PeerError(f"it could not be started: {error.strerror or error}") from error
    version, answer = _parts(done.stdout)
    if done.returncode:
        raise PeerError(f"it failed: {_last_words(done)}", version)
    return version, answer


def _parts(answer: bytes) -> tuple[str, bytes]:
    line, _, rest = answer.partition(b"\n")
    try:
        return str(json.loads(line)["version"]), rest
    except (ValueError, KeyError, TypeError):
        return "", rest


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    lines = done.stderr.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last[:200] or f"exit code {done.returncode}"


def _not_to_be_proved(model: onnx.ModelProto) -> Iterator[str]:
    """What a comparison of outputs would not show, or what simplifiers forget."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    if any(value.name in initialized for value in model.graph.input):
        yield "it would take weights that are graph inputs for constants"
    if model.training_info:
        yield "it would forget the model's training information"
    bodies = (function.node for function in model.functions)
    if any(node.op_type in _LOOPS for nodes in (model.graph.node, *bodies) for node in all_nodes(nodes)):
        yield "what it does inside of a loop could not be proved"


def _differences(original: onnx.ModelProto, result: onnx.ModelProto) -> Iterator[str]:
    """What no simplifier may change; inputs and outputs are as the original declares them."""
    if opset_of(original) != opset_of(result):
        yield f"it changed the opset from {opset_of(original)} to {opset_of(result)}"
    if result.functions and not original.functions:
        yield "it added functions"
