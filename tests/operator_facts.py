"""What we take for a fact of every operator, against ONNX Runtime: shapes and data types, values of constants.

    python -m tests.operator_facts             # all operators of the onnx package, all versions (minutes)
    python -m tests.operator_facts Pad Resize  # some of them

The models are the onnx package's own node tests. Each is tried at every opset at which its operator got a new version,
with what became an input later written as an attribute; then with inputs of unknown sizes and ranks, with its
parameters or all of its inputs constant, with other values of parameters, and with other attributes: see
`operator_variants`. Whatever ONNX Runtime does not run counts for nothing. A model *agrees* where all that the tool
holds proved of its outputs is what ONNX Runtime computes. To know nothing is to agree.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np
import onnx

from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from tests.operator_variants import Case, node_tests, operators, variants

SECONDS = 300  # for all models of one operator
TOLERANCE = {"float32": 1e-5, "float64": 1e-5}  # of half precision and bfloat16, 1e-2


def verdict(case: Case) -> str | None:
    """What is held proved and does not hold; '' if nothing, None if ONNX Runtime does not run the model."""
    results = _run(case)
    if results is None:
        return None
    with Document.from_model(case.model) as document:
        scope = read_scopes(document)[0]
    for value, result in zip(case.model.graph.output, results, strict=True):
        if not isinstance(result, np.ndarray) or result.dtype.kind not in "fiub":
            continue
        shape, data_type = scope.shape(value.name), scope.data_type(value.name)
        if shape is not None and not _allows(shape, result.shape):
            return f"shape {list(shape)}, ONNX Runtime {list(result.shape)}"
        if data_type and onnx.helper.tensor_dtype_to_np_dtype(data_type) != result.dtype:
            return f"data type {data_type}, ONNX Runtime {result.dtype}"
        const = scope.const(value.name)
        computed = None if const is None else const.computed()
        if computed is not None and not _equal(computed, result):
            return "value of a constant"
    return ""


def _run(case: Case) -> list[Any] | None:
    from onnx_repfuse.quiet_runtime import ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        data = case.model.SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        feed = {v.name: case.inputs[v.name] for v in session.get_inputs()}
        return list(session.run(None, feed))
    except Exception:  # ONNX Runtime raises anything: no kernel, or a variant that makes no sense
        return None


def _allows(shape: tuple[int | None, ...], real: tuple[int, ...]) -> bool:
    return len(shape) == len(real) and all(a in (None, b) for a, b in zip(shape, real, strict=True))


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape:
        return False
    if theirs.dtype.kind != "f":
        return bool((ours == theirs).all())
    near = TOLERANCE.get(theirs.dtype.name, 1e-2)
    return bool(np.allclose(ours.astype(float), theirs.astype(float), rtol=near, atol=near, equal_nan=True))


@dataclass
class Survey:
    """What was tried.

    Attributes:
        models: number of models compared.
        tried, ran, failed: (operator, opset) with models; of which some model ran; of which one differs.
        differences: "operator-opset, variant: what differs" -> number of models.
        crashed: operators that ended the process, or never ended.
    """

    models: int = 0
    tried: set[tuple[str, int]] = field(default_factory=set)
    ran: set[tuple[str, int]] = field(default_factory=set)
    failed: set[tuple[str, int]] = field(default_factory=set)
    differences: Counter[str] = field(default_factory=Counter)
    crashed: list[str] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Compare a model."""
        pair = case.operator, case.opset
        self.tried.add(pair)
        found = verdict(case)
        if found is None:
            return
        self.models += 1
        self.ran.add(pair)
        if found:
            self.failed.add(pair)
            self.differences[f"{case.operator}-{case.opset}, {case.variant}: {found}"] += 1

    def join(self, other: Survey) -> None:
        """Add another survey."""
        self.models += other.models
        self.tried |= other.tried
        self.ran |= other.ran
        self.failed |= other.failed
        self.differences += other.differences


def survey_of(operator: str, most: int | None = None) -> Survey:
    """All models of one operator; those of its first `most` node tests."""
    result = Survey()
    for test in node_tests(operator, most):
        for case in variants(test):
            result.add(case)
    return result


def _work(pipe: Connection) -> None:
    """Answer operators by surveys, until None comes."""
    for operator in iter(pipe.recv, None):
        pipe.send(survey_of(operator))


def surveys(names: list[str]) -> Iterator[tuple[str, Survey | None]]:
    """Each operator with its survey, made in a child process; None if that ended or took too long."""
    context = multiprocessing.get_context("spawn")
    child = None
    for name in names:
        if child is None:
            here, there = context.Pipe()
            child = context.Process(target=_work, args=(there,))
            child.start()
            there.close()
        here.send(name)
        try:
            answer = here.recv() if here.poll(SECONDS) else None
        except EOFError:
            answer = None
        yield name, answer
        if answer is None:
            child.kill()
            child.join()
            child = None
    if child is not None:
        here.send(None)
        child.join()


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Compare, and exit with 1 where anything differs."""
    total = Survey()
    for name, found in surveys(list(names) or operators()):
        if found is None:
            total.crashed.append(name)
            click.echo(f"{name}: crashed, or took more than {SECONDS} s")
            continue
        total.join(found)
        for text, count in sorted(found.differences.items()):
            click.echo(f"{text} ({count} models)")
    click.echo(f"{total.models} models of {len(total.ran)} (operator, opset) pairs were compared")
    click.echo(f"{len(total.ran - total.failed)} pairs agree, {len(total.failed)} differ")
    click.echo(f"{len(total.tried - total.ran)} further pairs: ONNX Runtime runs no model")
    sys.exit(bool(total.failed or total.crashed))


if __name__ == "__main__":
    main()
