"""Synthetic outcomes for the tests of the reports: awkward names, failures, infinities, many folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx_repfuse.records.comparison import (
    Bin,
    Comparison,
    ErrorSpread,
    InterfaceDifference,
    Layer,
    Layers,
    LayerStatus,
    OutputStatistics,
    Producer,
    TensorInfo,
)
from onnx_repfuse.records.environment import Environment, FileDigest
from onnx_repfuse.records.graph_map import GraphMaps, MapNode
from onnx_repfuse.records.outcome import Bench, Gate, Outcome
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import (
    Change,
    Counts,
    Flushed,
    Fold,
    Kind,
    NodeRef,
    Refusal,
    Report,
    Simplified,
    Vanished,
)
from onnx_repfuse.records.verdict import (
    FoldVerdict,
    OutputVerdict,
    Precision,
    StageVerdict,
    Status,
    Verification,
)

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def fold(number: int = 0, branches: int = 3, name: str = "out") -> Fold:
    """A sum of Conv + BatchNormalization branches."""
    absorbed = []
    for index in range(branches):
        conv, norm = f"c{number}_{index}", f"n{number}_{index}"
        absorbed.append(NodeRef(conv, "Conv", (f"x{number}",), (conv,), "3x3, 64->64, groups 64, stride 2"))
        absorbed.append(NodeRef(norm, "BatchNormalization", (conv,), (norm,)))
    output = f"{name}{number}"
    absorbed.append(
        NodeRef(f"add{number}", "Sum", tuple(f"n{number}_{i}" for i in range(branches)), (output,))
    )
    created = NodeRef(f"{output}_fused", "Conv", (f"x{number}",), (output,), "3x3, 64->64")
    return Fold(
        output,
        Kind.BRANCHES,
        (Kind.AFFINE, Kind.BRANCHES),
        tuple(absorbed),
        (created,),
        (f"x{number}",),
        "",
        300,
        100,
    )


def maps(folds: Sequence[Fold], evil: str = "") -> GraphMaps:
    """A chain of the blocks of all folds and, of the result, of what they became, each followed by a Relu."""
    before: list[MapNode] = []
    after: list[MapNode] = []
    for number, one in enumerate(folds):
        for nodes, found in ((one.absorbed, before), (one.created, after)):
            above = (len(found) - 1,) if found else ()
            made: dict[str, int] = {}
            for node in nodes:
                inside = tuple(made[name] for name in node.inputs if name in made)
                made.update(dict.fromkeys(node.outputs, len(found)))
                found.append(MapNode(node.name, node.op, "", inside or above, (number,)))
            found.append(MapNode(f"relu{number}{evil}", "Relu", "", (len(found) - 1,)))
    removed = MapNode(f"same{evil}", "Identity", f"If '{evil}' then_branch", (), (), is_changed=True)
    refused = MapNode("bn1", "BatchNormalization", "", ())
    return GraphMaps((*before, removed, refused), (*after, refused))


def environment() -> Environment:
    """A machine of nobody's, and files that nobody has."""
    files = (FileDigest("input", 5_000_000, "0f" * 32), FileDigest("output", 4_000_000, "1e" * 32))
    versions = {"python": "3.12.1", "onnxruntime": "1.20.0"}
    return Environment(
        "2026-01-02T03:04:05+00:00", "Linux x86_64", "A processor", 4, versions, {"opset": "17"}, files
    )


def verdict(name: str = "y", status: Status = Status.PASSED, error: float = 3.1e-7) -> OutputVerdict:
    """The verdict on one output."""
    return OutputVerdict(
        name,
        status,
        "float32",
        error,
        1e-7,
        1.2,
        (2.5e-7, 1e-7),
        1.2e-6,
        error,
        0.9999999,
        1.0,
        2e-7,
        "a sentence",
    )


def layer(name: str = "relu", relative: float = 1e-7, allowed: float = 1e-6) -> Layer:
    """A tensor that both models have; it diverges if its error is beyond what is allowed."""
    status: LayerStatus = "agrees" if relative <= allowed else "diverges"
    producer = Producer(f"node of {name}", "Relu")
    return Layer(name, producer, producer, status, 2 * relative, 2 * allowed, relative, allowed, 0.99)


def comparison(evil: str = "", layers: int = 0) -> Comparison:
    """A comparison in which everything differs; the last half of `layers` tensors diverge."""
    spread = ErrorSpread(3e-3, 1e-4, 2e-5, 1e-4, 2e-4, 1e-3)
    statistics = OutputStatistics(
        f"y{evil}", f"z{evil}", ("float32", "float16"), 30, 20, 1, spread, spread, (0, 7), (0.5, 0.503), 0.9999,
        60.5, {"1": 1.0, "5": 0.8}, float("inf"), float("inf"), (Bin(0.0, 0.0, 10), Bin(1e-5, 1e-4, 20)),
    )  # fmt: skip
    info = TensorInfo(f"x{evil}", "tensor(float)", ("N", 3, None))
    tensors = tuple(
        layer(f"t{i}{evil}", 1e-8 * 1.1**i if 2 * i < layers else 1e-3, 1e-7 * 1.1**i) for i in range(layers)
    )
    return Comparison(
        Verification((verdict(f"y{evil}"),), seeds=(0,), shapes=({"x": (1, 3)},), runs=(3, 3)),
        (statistics,),
        (
            InterfaceDifference("input", info, replace(info, type="tensor(float16)"), ("type",)),
            InterfaceDifference("output", None, info, ("missing",)),
        ),
        "second",
        ("float32", "float16"),
        Layers(tensors, 1, {"x": (1, 3)}, ("a note",)) if layers else None,
    )


def outcome(folds: int = 3, evil: str = "", status: Status = Status.PASSED, error: float = 3.1e-7) -> Outcome:
    """The outcome of one model, with all its parts."""
    refusals = (
        Refusal(Reason.COST, f"Conv 'a{evil}' stays: it would cost more.", (f"a{evil}",)),
        *(
            Refusal(Reason.CONSUMERS, f"BatchNormalization 'bn{i}' stays: it has readers.", (f"bn{i}",))
            for i in range(5)
        ),
    )
    verification = Verification(
        (verdict(f"y{evil}", status, error),),
        (
            FoldVerdict("out0", stages=(StageVerdict("isolated", Status.PASSED, 1e-7, 1e-6, "onnxruntime"),)),
            FoldVerdict("out1"),
        ),
        (
            FoldVerdict(
                f"same{evil}", stages=(StageVerdict("isolated", Status.PASSED, 0.0, 1e-6, "onnxruntime"),)
            ),
        ),
        seeds=(0, 1, 2),
        shapes=({"x": (1, 3, 32, 32)},),
        runs=(5, 3),
    )
    made = tuple(fold(i, name=f"out{evil}") for i in range(folds))
    report = Report(
        f"net{evil}.onnx", "net.fused.onnx",
        Counts({"Conv": 9, "BatchNormalization": 9, "Sum": 3, f"Op{evil}": 1}, 1_234_567, 5_000_000, 2_000_000),
        Counts({"Conv": 3, f"Op{evil}": 1}, 1_000_000, 4_000_000, 1_000_000),
        made, refusals, verification,
        {"plan": 0.01, "verify": 1.5}, notes=(f"a note {evil}",),
        changes=(
            Change(Kind.NO_OP, (f"same{evil}",), f"Identity 'same{evil}' gives out what it reads"),
            Change(Kind.FLUSH, (f"conv{evil}",), f"3 elements of 'w{evil}' are zero",
                   flushed=Flushed(f"w{evil}", 3, 9, 2e-39, 5e-39, is_times_input=True)),
        ),
        vanished=(Vanished("", (f"same{evil}",)),),
        maps=maps(made, evil),
        simplified=(
            Simplified("onnxsim", "1.0", False, None, f"it failed: no '{evil}'"),
            Simplified("onnxslim", "2.0", True, Counts({"Conv": 9, "Sum": 3}, 1_200_000, 4_900_000, 2_000_000)),
        ),
    )  # fmt: skip
    bench = Bench(
        (10.0, 9.0, 11.0),
        (5.0, 4.5, 5.5),
        (2.0, 1.9, 2.1),
        20,
        1,
        {"x": (1, 3, 32, 32)},
        warm_up=40,
        as_zero=(1.2, 1.1, 1.3),
    )
    return Outcome(
        "fuse",
        f"net{evil}.onnx",
        "net.fused.onnx",
        0,
        "",
        report,
        bench=bench,
        gates=(Gate("BatchNormalization", 0),),
        precision=(Precision("y", 2e-7, 1e-7, 1e-6, 5e-7),),
        environment=environment(),
    )


def compared(evil: str = "", layers: int = 4) -> Outcome:
    """The outcome of a comparison that failed."""
    return Outcome(
        "compare",
        f"a{evil}.onnx",
        f"b{evil}.onnx",
        3,
        "the two models differ",
        comparison=comparison(evil, layers),
    )
