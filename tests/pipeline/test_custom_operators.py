"""Models with operators that nothing here implements: folds are proved one by one, and the whole is not observed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from onnx_repfuse import Options, fuse, plan, verify
from onnx_repfuse.cli.task import Task
from onnx_repfuse.cli.task import run as run_task
from onnx_repfuse.errors import InputError, UsageError, VerificationError
from onnx_repfuse.pipeline import run
from onnx_repfuse.pipeline.unrun_models import missing_name
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.report.text import show
from tests.build import Net, counts


def custom(domain: str = "my.domain", op: str = "MyOp", **attributes: Any) -> onnx.ModelProto:
    """Conv + BatchNormalization, a node of another domain, Conv + BatchNormalization."""
    net = Net(8, shape=("N", 8, "H", "W"))
    before = net.conv_bn("x", 8, 8, 3)
    net.nodes.append(helper.make_node(op, [before], ["c"], "own", domain=domain, **attributes))
    after = net.conv_bn("c", 8, 8, 3)
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(net.graph((after,)), ir_version=9, opset_imports=imports)


def test_folds_around_an_unknown_operator_are_made_and_proved_one_by_one() -> None:
    result = fuse(custom())
    assert counts(result.model) == {"Conv": 2, "MyOp": 1}
    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.NOT_OBSERVED
    assert [fold.status for fold in verification.folds] == [Status.PASSED] * 2
    (verdict,) = verification.outputs
    assert verdict.status is Status.NOT_OBSERVED
    assert verdict.message == (
        "nothing could be compared, each fold was proved alone: ONNX Runtime has no operator my.domain:MyOp, and no "
        "library was given by --custom-ops that has it"
    )


def test_an_operator_without_a_kernel_is_such_an_operator() -> None:
    """ONNX Runtime's own BiasSplitGelu, which only GPUs have; onnx's reference evaluator does not know the domain."""
    nodes = [helper.make_node("BiasSplitGelu", ["x", "b"], ["y"], domain="com.microsoft")]
    info = helper.make_tensor_value_info
    bias = helper.make_tensor("b", TensorProto.FLOAT16, [16], np.zeros(16, np.float16).tobytes(), raw=True)
    inputs = [info("x", TensorProto.FLOAT16, [1, 4, 16])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", TensorProto.FLOAT16, [1, 4, 8])], [bias])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    from onnx_repfuse.verifier.session import NoImplementation, open_session

    with pytest.raises(NoImplementation):
        open_session(helper.make_model(graph, ir_version=9, opset_imports=imports))


def test_on_the_command_line_the_verdict_is_said_and_the_exit_code_is_0(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(custom(), path)
    outcome = run_task(Task("fuse", str(path), str(output), Options()))
    assert (outcome.exit_code, outcome.status) == (0, "not observed")
    assert output.exists()
    console = Console(file=io.StringIO(), width=200)
    show(console, outcome)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "max |diff|" not in shown
    assert "No whole model was run:" in shown
    strict = run_task(Task("fuse", str(path), str(tmp_path / "strict.onnx"), Options(strict=True)))
    assert strict.exit_code == 3
    assert not (tmp_path / "strict.onnx").exists()
    compared = run_task(Task("compare", str(path), str(output), Options()))
    assert compared.exit_code == 1
    assert "--custom-ops" in compared.error


def test_strict_writes_nothing() -> None:
    with pytest.raises(VerificationError, match=r"my\.domain:MyOp"):
        fuse(custom(), options=Options(strict=True))


def test_a_result_that_breaks_the_rules_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be run is at least looked at: here the result lacks a node."""
    real = run.save

    def save(document: Any, edits: Any, place: Path, **options: Any) -> int:
        size = real(document, edits, place, **options)
        model = onnx.load(place)
        del model.graph.node[0]
        onnx.save(model, place)
        return size

    monkeypatch.setattr(run, "save", save)
    with pytest.raises(VerificationError, match="which nothing before it computes"):
        fuse(custom())


def test_names_are_followed_into_subgraphs() -> None:
    info = helper.make_tensor_value_info("i", TensorProto.FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Add", ["x", "late"], ["i"])], "b", [], [info])
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    late = helper.make_node("Relu", ["x"], ["late"])

    def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
        return helper.make_graph(nodes, "g", ends[:1], ends[1:])

    assert missing_name(graph(late, choice)) == ""
    assert missing_name(graph(choice, late)) == "late"
    assert missing_name(graph(late)) == "y"


def test_an_unknown_operator_of_onnx_itself_is_an_invalid_model() -> None:
    model = custom()
    model.graph.node[2].domain = ""
    with pytest.raises(InputError, match="MyOp"):
        fuse(model)


def test_libraries_are_registered_wherever_models_run(tmp_path: Path) -> None:
    """One that is none is refused by the runtime, by name: in fuse, verify, compare and the benchmark."""
    library = tmp_path / "ops.so"
    library.write_bytes(b"no library")
    path = tmp_path / "m.onnx"
    onnx.save(custom("", "Relu"), path)
    options = Options(custom_ops=(library,))
    with pytest.raises(InputError, match=r"ops\.so"):
        fuse(path, options=options)
    with pytest.raises(InputError, match=r"ops\.so"):
        verify(path, path, custom_ops=[library])
    outcome = run_task(Task("compare", str(path), str(path), options))
    assert "ops.so" in outcome.error
    plan(path, options)  # runs nothing
    with pytest.raises(UsageError):
        Options(custom_ops="ops.so")  # type: ignore[arg-type]
