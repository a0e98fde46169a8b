"""The command line's options, each declared once.

A field of `CliArguments` is an option. Its declaration has the flags, the default, the meaning, the field of `Options`
it becomes, the key of the JSON report it fills, and the runs it has no meaning in. The click command, `to_options`,
the tables of docs/cli.md and the sentences about contradictions (`cli/contradictions.py`) are all made from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from onnx_repfuse.cli import values
from onnx_repfuse.errors import UsageError
from onnx_repfuse.options import Options

__all__ = [
    "CONTRADICTIONS",
    "GROUPS",
    "TWO_OUTPUTS",
    "USELESS",
    "CliArguments",
    "Option",
    "declared",
    "flag_of",
    "to_options",
]

_Default = TypeVar("_Default")

# The groups of `--help`, in order; docs/cli.md has a table for each.
GROUPS = {
    "run": "Runs",
    "output": "Output",
    "folds": "Folds",
    "check": "Check and timing",
    "batch": "Several models",
    "terminal": "Terminal",
}

# What some runs do not do: the error for an option that is declared `useless=(run, ...)`.
USELESS = {
    "compare": "--compare fuses and writes nothing, so {} has no meaning",
    "fuse": "{} is for --compare",
    "explain": "--explain only prints, so {} has no meaning",
    "list_nodes": "--list-nodes only prints, so {} has no meaning",
    "plan": "--plan runs nothing, so {} has no meaning",
    "fail_on_folds": "--fail-on-folds writes nothing, so {} has no meaning",
    "in_place": "{} needs both files, and --in-place overwrites one: give an output instead",
    "no_check": "--no-check runs no comparison, so {} has no meaning",
}
TWO_OUTPUTS = "--in-place overwrites one input, so no output can be given besides it"
_TWO_RUNS = "{} and {} contradict each other: each is a run of its own"
CONTRADICTIONS = (
    ("plan", "explain", _TWO_RUNS.format("--plan", "--explain")),
    ("plan", "list_nodes", _TWO_RUNS.format("--plan", "--list-nodes")),
    ("explain", "list_nodes", _TWO_RUNS.format("--explain", "--list-nodes")),
    ("compare", "list_nodes", _TWO_RUNS.format("--compare", "--list-nodes")),
    ("plan", "compare", _TWO_RUNS.format("--plan", "--compare")),
    ("explain", "compare", _TWO_RUNS.format("--explain", "--compare")),
    ("output", "out_dir", "-o and --out-dir contradict each other: give one of them"),
    ("in_place", "output", TWO_OUTPUTS),
    ("in_place", "suffix", TWO_OUTPUTS),
    ("output", "suffix", "-o and --suffix contradict each other: give one of them"),
    ("in_place", "out_dir", TWO_OUTPUTS),
    ("quiet", "verbose", "-q and -v contradict each other"),
)
_FUSING_ONLY = ("compare", "explain", "list_nodes")
_COMPARING_ONLY = ("fuse", "explain", "list_nodes", "plan")


@dataclass(frozen=True)
class Option:
    """What the table says of an option besides its default and type.

    Attributes:
        flags: as click takes them; "--check/--no-check" is a switch and its opposite, "json_file" the field's name.
        help: the sentence of `--help`.
        table: the group of `--help`, and the table of docs/cli.md, it stands in: a key of `GROUPS`.
        more: what docs/cli.md says after `help`, in Markdown.
        metavar: how `--help` calls its value.
        type: of the value, for click; None where the default tells it. A list holds the choices.
        bare: the value that the flag alone stands for; "" if it needs one.
        library: the field of `Options`, "" if it has none.
        parse: the value of that field from the words given; they are the value without it.
        complete: what a shell completes its value with, a key of `completion.VALUES`; "" for nothing.
        report: the key of the JSON report that holds what it asks for, "" if there is none.
        useless: the runs it has no meaning in, keys of `USELESS`.
    """

    flags: list[str]
    help: str
    table: str
    more: str = ""
    metavar: str | None = None
    type: Any = None
    bare: str = ""
    library: str = ""
    parse: Callable[[Any], Any] | None = None
    complete: str = ""
    report: str = ""
    useless: tuple[str, ...] = ()


def _option(flags: str, default: _Default, help: str, **rest: Any) -> _Default:
    return field(default=default, metadata={"option": Option(flags.split(), help, **rest)})


@dataclass(frozen=True)
class CliArguments:
    """The words of a command line; the fields after `models` are the options."""

    models: tuple[str, ...]
    # fmt: off
    output: str | None = _option(
        "-o --output", None, "Write here [default: MODEL.fused.onnx, beside the input]; - is standard output.",
        more="An older file is replaced. Of a model on standard input, standard output is the default. The report "
        "goes to standard error then.",
        complete="file", table="output", metavar="FILE", useless=_FUSING_ONLY,
    )
    out_dir: str | None = _option(
        "--out-dir", None, "Fuse several models into this folder, under their own names.",
        complete="dir", table="output", metavar="DIR", useless=_FUSING_ONLY,
    )
    in_place: bool = _option(
        "--in-place", False, "Overwrite the input.",
        more="A link is replaced, not the file it points to. Without this option no model is ever overwritten.",
        table="output", useless=_FUSING_ONLY,
    )
    suffix: str | None = _option(
        "--suffix", None, "Write each model beside itself with this in its name [default: .fused].",
        more="All files named are models then. With `--out-dir`, the names there get it.",
        table="output", metavar=".TEXT", useless=_FUSING_ONLY,
    )
    force: bool = _option(
        "--force", False, "Replace a second file that exists.",
        table="output", useless=_FUSING_ONLY,
    )
    save_as_external_data: bool = _option(
        "--save-as-external-data", False, "Store large weights in a file beside the output.",
        more="Without it, this is done if the input did so, or if the size demands it.",
        table="output", useless=_FUSING_ONLY, library="external", parse=lambda given: True if given else None,
    )
    plan: bool = _option(
        "--plan", False, "Dry run: say what would be folded, what not and why; write nothing.",
        more="No model is run. Constants of up to 64 MB may be evaluated, and weights scanned as a stream.",
        table="run",
    )
    explain: str | None = _option(
        "--explain", None, "Say why this node was or was not fused.",
        more="NODE is a node's name, a tensor it computes, a glob on names, or an input or weight: then the nodes that "
        "read it are explained. Prints its region, the forms considered with their "
        "multiply-adds and estimated cost, and the reason.",
        table="run", metavar="NODE",
    )
    list_nodes: bool = _option(
        "--list-nodes", False, "Print every node: operator, name, and what would become of it.",
        more="One line a node; the names are those that `--explain` and `--keep` take.",
        table="run",
    )
    compare: bool = _option(
        "--compare", False, "Compare two models numerically: --compare A.onnx B.onnx.",
        more="As in [verification](verification.md); prints the tolerance that would have passed.",
        table="run",
    )
    by_order: bool = _option(
        "--by-order", False, "Match inputs and outputs by order, not by name, with --compare.",
        more="For exporters that name them differently. Without it, names that differ are an error that says which.",
        table="check", useless=_COMPARING_ONLY,
    )
    layers: bool = _option(
        "--layers", False, "Compare every tensor that both models have, with --compare.",
        more="In topological order, a slice at a time, and says which is the first that diverges.",
        table="check", useless=_COMPARING_ONLY,
    )
    json_file: str | None = _option(
        "--json json_file", None, "Write the report as JSON; - is standard output.",
        more="[The JSON report](json-schema.md), key by key. Standard output then carries nothing else.",
        complete="file", table="output", metavar="FILE|-", useless=("explain", "list_nodes",),
    )
    report_file: str | None = _option(
        "--report report_file", None, "Write the report as one HTML page.",
        more="It needs no other file, and shows the verdict, a map of the whole graph before and after, sizes, "
        "latency, the folds with pictures of their blocks, the refusals by reason, error against noise, and the "
        "environment.",
        complete="file", table="output", metavar="FILE.html", useless=("explain", "list_nodes",),
    )
    bench: bool = _option(
        "--bench", False, "Time the original and the fused model, interleaved.",
        more="With ONNX Runtime's optimizations on, in one thread unless `--threads` says otherwise. One word says "
        "whether the result is faster, equal or slower. On the CPU provider, also says what the session's setting "
        "`session.set_denormal_as_zero` would gain: more than nothing if weights or activations are subnormal.",
        table="check", report="bench", useless=("explain", "list_nodes", "plan", "fail_on_folds", "in_place"),
    )
    check: bool = _option(
        "--check/--no-check", True, "Verify with ONNX Runtime before writing [default: yes].",
        table="check", library="check", report="verification", useless=("compare",),
    )
    strict: bool = _option(
        "--strict", False, "Exit 3, and write nothing, unless everything was observed.",
        more="Without it, what cannot show a fault is reported as *not observed*, and the exit code is 0.",
        table="check", library="strict", useless=("compare", "explain", "list_nodes", "no_check"),
    )
    rtol: float | None = _option(
        "--rtol", None, "Relative tolerance, instead of one measured from noise.",
        more="The difference allowed is then `atol + rtol * abs(y)`.",
        table="check", metavar="X", type=float, library="rtol", useless=("no_check",),
    )
    atol: float | None = _option(
        "--atol", None, "Absolute tolerance, likewise.",
        table="check", metavar="X", type=float, library="atol", useless=("no_check",),
    )
    input_shape: tuple[str, ...] = _option(
        "--input-shape", (), "Size of an input (repeatable).",
        more="To verify and time with; `NAME:scalar` for a scalar.",
        table="check", metavar="NAME:1,3,224,224", library="input_shapes", parse=values.input_shapes,
    )
    overwrite_input_shape: tuple[str, ...] = _option(
        "--overwrite-input-shape", (), "Write this size of an input into the result (repeatable).",
        more="What the file says of inner tensors is dropped, and outputs get the sizes that follow. The result is "
        "compared with the same nodes at this size. `--input-shape` only verifies.",
        table="folds", metavar="NAME:1,3,224,224", library="overwrite_input_shapes", parse=values.overwritten_shapes,
        useless=("compare", "explain", "list_nodes"),
    )
    input_data: tuple[str, ...] = _option(
        "--input-data", (), "Real inputs: NAME:FILE.npy, FILE.npz or an ONNX test_data_set folder (repeatable).",
        more="They replace the random ones.",
        complete="file", table="check", metavar="[NAME:]PATH", library="input_data", parse=values.input_data,
    )
    provider: str | None = _option(
        "--provider", None, "Execution provider of ONNX Runtime to compare and time on [default: CPU].",
        more="Any that the installed ONNX Runtime has; `openvino` is `OpenVINOExecutionProvider`. Folds are proved "
        "one by one on the CPU, whatever the provider.",
        complete="providers", table="check", metavar="NAME", library="provider",
        useless=("explain", "list_nodes", "plan"),
    )
    threads: int = _option(
        "--threads", 1, "Threads to compare and time with [default: 1]; 0 is one per core.",
        table="check", metavar="N", type=int, library="threads", useless=("explain", "list_nodes", "plan"),
    )
    custom_ops: tuple[str, ...] = _option(
        "--custom-ops", (), "A library with custom operators for ONNX Runtime (repeatable).",
        more="Without it, the folds of a model that needs them are proved one by one, and its outputs are *not "
        "observed*.",
        complete="file", table="check", metavar="LIB.so", library="custom_ops", parse=values.libraries,
        useless=("explain", "list_nodes", "plan"),
    )
    precision_study: bool = _option(
        "--precision-study", False, "Compare both models with the original in float64 (small models).",
        table="check", library="precision_study", report="precision",
        useless=("compare", "explain", "list_nodes", "plan", "fail_on_folds", "in_place", "no_check"),
    )
    skip: tuple[str, ...] = _option(
        "--skip", (), "Leave out folds of these kinds.",
        complete="kinds", table="folds", metavar="KIND,..", useless=("compare",),
        library="skip", parse=values.skip_kinds,
    )
    only: tuple[str, ...] = _option(
        "--only", (), "Make only folds of these kinds.", more="A fold that absorbs several kinds needs all of them.",
        complete="kinds", table="folds", metavar="KIND,..", useless=("compare",),
        library="only", parse=values.only_kinds,
    )
    avoid: tuple[str, ...] = _option(
        "--avoid", (), "Write none of these operators, which the target cannot run.",
        more="Those that are there become others where there is a way: BatchNormalization becomes Mul and Add "
        "(a depthwise Conv, if one of these is to be avoided, too), Gemm becomes MatMul and Add, and Sum, Sub, Neg, "
        "Div by constants, HardSwish, HardSigmoid, PRelu, LeakyRelu, GlobalAveragePool, Gelu and LayerNormalization "
        "have one. The report says what stays, and why (reason `avoided`); `--fail-on-remaining` exits with 4 then.",
        complete="operators", table="folds", metavar="OP,..", useless=("compare",),
        library="avoid", parse=values.operators,
    )
    keep: tuple[str, ...] = _option(
        "--keep", (), "Leave nodes alone whose name matches.",
        more="For example `--keep '/head/*'`.",
        table="folds", metavar="GLOB,..", useless=("compare",), library="keep", parse=values.words,
    )
    fail_on_folds: bool = _option(
        "--fail-on-folds", False, "With --plan: prove it, and exit 4 if there is anything left to fold or change.",
        more="For continuous integration: a fused file gives 0. What fails its proof does not count. Nothing is "
        "written.",
        table="check", report="left", useless=("no_check",),
    )
    fail_on_remaining: tuple[str, ...] = _option(
        "--fail-on-remaining", (), "Exit 4 if any of these operators remain.",
        more="The result is written nevertheless. For targets that reject, say, BatchNormalization.",
        complete="operators", table="check", metavar="OP,..", report="gates", useless=_FUSING_ONLY,
    )
    freeze_initializers: bool = _option(
        "--freeze-initializers", False, "Make constants of weights that are graph inputs too (callers may set them).",
        more="They leave the graph inputs, and fold; a model of IR version 3 becomes one of version 4. Otherwise they "
        "are left alone.",
        table="folds", library="freeze_initializers", useless=("compare",),
    )
    simplify: str | None = _option(
        "--simplify", None, "Let onnxsim or onnxslim run first, if it is installed; without a value: auto.",
        more="`auto` takes the one that gives the faster result by [our prices](cost-model.md), or none. The result is "
        "proved against the original; where the other tool crashes, hangs or writes another model, the run goes on "
        "without it and says so. [More](#other-simplifiers-first).",
        table="folds", type=["onnxsim", "onnxslim", "auto"], library="simplify", report="simplified",
        bare="auto", useless=("compare", "explain", "list_nodes"),
    )
    level: str = _option(
        "-O level", "1", "-O2 also converts to the lowest opset that pays, and does what --simplify does.",
        more="For the fastest result. `--opset` and `--simplify`, if given, win. What cannot be converted or "
        "simplified, or is not proved equal then, is left out and noted. PRelu with a slope for each channel becomes "
        "Relu, Mul and Add, with which ONNX Runtime is faster. The file may grow by up to 4 MB, of constants that ONNX "
        "Runtime would compute in every run (made of a ConstantOfShape). The default is `-O1`.",
        table="folds", type=["1", "2"], library="level", parse=int, useless=("compare", "explain", "list_nodes"),
    )
    opset: int | None = _option(
        "--opset", None, "Convert the model to this ONNX opset first, if it has an older one.",
        more="By onnx's version converter, in memory. The result is proved against the original. Without this option "
        "no opset changes. From 14 on, HardSwish is one operator, which halves the time of some networks.",
        table="folds", metavar="N", type=int, library="opset", useless=("compare",),
    )
    cost: str = _option(
        "--cost", "ort-cpu", "What counts as cheaper.",
        more="[Measured prices](cost-model.md) of ONNX Runtime on a CPU, or multiply-adds alone. Multiply-adds "
        "never rise under either, at the sizes that the file proves, or else assumed: a batch of 1, and 224 "
        "for an unknown height or width.",
        table="folds", type=["ort-cpu", "macs"], library="cost",
    )
    jobs: int | None = _option(
        "--jobs", None, "Models at once, with --out-dir or --suffix; -1 is one per core.",
        table="batch", metavar="N", type=int, useless=_FUSING_ONLY,
    )
    quiet: bool = _option(
        "-q --quiet", False, "Print errors only.",
        table="terminal", useless=("explain", "list_nodes",),
    )
    verbose: int = _option(
        "-v --verbose", 0, "Print everything; twice, also tracebacks.",
        more="Everything is every node, verdict and reason.",
        table="terminal",
    )
    # fmt: on

    @property
    def many(self) -> bool:
        """Whether every positional is a model, and there is a report for each."""
        if self.out_dir is not None or (self.suffix is not None and len(self.models) != 1):
            return True
        return self.plan and (len(self.models) > 2 or self._plans_two)

    @property
    def _plans_two(self) -> bool:
        """Whether the second of two files to plan is a model: it is there, and nobody said that it may be replaced."""
        return len(self.models) == 2 and not self.force and os.path.lexists(self.models[1])

    @property
    def command(self) -> str:
        """The run's kind, as the report names it."""
        return "compare" if self.compare else "plan" if self.plan or self.prints_only else "fuse"

    @property
    def prints_only(self) -> bool:
        """Whether the run prints lines, and has no report."""
        return self.list_nodes or self.explain is not None


def declared() -> Iterator[tuple[Field[Any], Option]]:
    """Every option, with its field of `CliArguments`, in the order of `--help`."""
    for entry in fields(CliArguments):
        if "option" in entry.metadata:
            yield entry, entry.metadata["option"]


def flag_of(option: Option) -> str:
    """The flag that sentences name.

    >>> [flag_of(option) for _, option in declared()][:2]
    ['-o', '--out-dir']
    """
    return option.flags[0].split("/")[-1]


def to_options(given: CliArguments) -> Options:
    """What the library is asked for. Raises UsageError for a word that means nothing."""
    chosen: dict[str, Any] = {}
    for entry, option in declared():
        if option.library:
            value = getattr(given, entry.name)
            chosen[option.library] = value if option.parse is None else option.parse(value)
    both = sorted(str(kind) for kind in chosen["skip"] & (chosen["only"] or frozenset()))
    if both:
        raise UsageError(f"--skip and --only both name '{both[0]}'")
    return Options(**chosen)
