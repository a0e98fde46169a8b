"""What the command line's strings mean: pure functions that raise UsageError with one sentence.

What was asked for on the command line, and which askings contradict each other.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.report import Kind

__all__ = ["KIND_HELP", "CliArguments", "check", "input_data", "input_shapes", "kinds", "words"]

KIND_HELP = {
    Kind.AFFINE: "BatchNormalization, Mul, Add, Sub, Div or Neg by constants, into a Conv",
    Kind.BRANCHES: "a sum of convolutions of one tensor, into one",
    Kind.SEQUENCE: "a Conv after a Conv, into one",
    Kind.PAD: "a Pad before a Conv, into its pads",
    Kind.POOL: "an AveragePool, as the convolution it is",
    Kind.MATMUL: "Gemm and MatMul, also low-rank pairs",
    Kind.TRANSPOSE: "what surrounds a ConvTranspose, into it",
    Kind.CONCAT: "a Concat, Split or Slice over channels of convolutions",
    Kind.COMMUTE: "an affine or pointwise operator moved past a pool, reshape or resize, to where it folds",
    Kind.ACTIVATION: "an activation written out, as one operator: Clip(x + 3, 0, 6) / 6 as HardSigmoid",
}
LARGEST = 1 << 40  # of a dim
_SHAPE = re.compile(r"(?P<name>.+):(?P<dims>[0-9]+(?:[,x][0-9]+)*|scalar)", re.DOTALL)


def words(values: Iterable[str]) -> tuple[str, ...]:
    """Comma-separated and repeated values as one tuple, in order, without repeats.

    >>> words(["a,b", " c ,a"])
    ('a', 'b', 'c')
    """
    return tuple(
        dict.fromkeys(word for value in values for part in value.split(",") if (word := part.strip()))
    )


def kinds(option: str, values: Iterable[str]) -> frozenset[Kind]:
    """The kinds of folds that `--skip` or `--only` names."""
    names = {kind.value: kind for kind in Kind}
    for word in words(values):
        if word.lower() not in names:
            near = difflib.get_close_matches(word.lower(), names, 1)
            hint = f"did you mean '{near[0]}'?" if near else "--list-kinds shows what there is"
            raise UsageError(f"{option}: there is no kind of fold called '{word}'; {hint}")
    return frozenset(names[word.lower()] for word in words(values))


def input_shapes(values: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`name:1,3,224,224` each, read from the right, so that a name may hold colons, commas and spaces.

    >>> input_shapes(["serving:0:1,3,8,8"])
    {'serving:0': (1, 3, 8, 8)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        match = _SHAPE.fullmatch(value)
        if match is None:
            raise UsageError(f"--input-shape takes NAME:1,3,224,224 (whole numbers), not '{value}'")
        name, dims = match["name"], match["dims"]
        if name in shapes:
            raise UsageError(f"--input-shape names the input '{name}' twice")
        shapes[name] = () if dims == "scalar" else tuple(int(dim) for dim in re.split("[,x]", dims))
        if any(dim > LARGEST for dim in shapes[name]):
            raise UsageError(f"--input-shape: nothing is as large as '{value}'")
    return shapes


def input_data(values: Iterable[str]) -> tuple[tuple[str | None, Path], ...]:
    """`[NAME:]PATH` each: the shortest existing path after a colon, as names and drives may have colons."""
    found: list[tuple[str | None, Path]] = []
    for value in values:
        if Path(value).exists():
            found.append((None, Path(value)))
            continue
        cuts = [index for index, letter in enumerate(value) if letter == ":" and 0 < index < len(value) - 1]
        for cut in reversed(cuts):
            name, path = value[:cut], Path(value[cut + 1 :])
            if path.exists():
                if path.suffix not in (".npy", ".pb"):
                    raise UsageError(
                        f"--input-data '{value}': a name goes with a .npy or .pb file of one input"
                    )
                found.append((name, path))
                break
        else:
            raise UsageError(
                f"--input-data takes NAME:FILE.npy, FILE.npz or a test_data_set folder, not '{value}'"
            )
    return tuple(found)


@dataclass(frozen=True)
class CliArguments:
    """The command line's words; the fields are those of `--help`."""

    models: tuple[str, ...]
    output: str | None = None
    out_dir: str | None = None
    in_place: bool = False
    force: bool = False
    save_as_external_data: bool = False
    plan: bool = False
    explain: str | None = None
    compare: bool = False
    json_file: str | None = None
    report_file: str | None = None
    bench: bool = False
    check: bool = True
    rtol: float | None = None
    atol: float | None = None
    input_shape: tuple[str, ...] = ()
    input_data: tuple[str, ...] = ()
    precision_study: bool = False
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    fail_on_remaining: tuple[str, ...] = ()
    freeze_initializers: bool = False
    cost: str = "ort-cpu"
    jobs: int | None = None
    quiet: bool = False
    verbose: int = 0

    @property
    def many(self) -> bool:
        """Whether every positional is a model."""
        return self.out_dir is not None

    @property
    def command(self) -> str:
        """The run's kind, as the report names it."""
        return "compare" if self.compare else "plan" if self.plan else "fuse"


def check(given: CliArguments) -> None:
    """Raise UsageError with one sentence if two askings contradict each other."""
    if not given.models:
        raise UsageError("no model was given; --help shows how")
    for problem in (*_names(given), *_modes(given), *_outputs(given), *_checks(given), *_rest(given)):
        raise UsageError(problem)


def _names(given: CliArguments) -> list[str]:
    """What a shell makes of a variable that is not set."""
    names = {
        "the model": "" in given.models,
        "-o": given.output == "",
        "--out-dir": given.out_dir == "",
        "--json": given.json_file == "",
        "--report": given.report_file == "",
        "--input-data": "" in given.input_data,
    }
    return [f"the name given for {name} is empty" for name in _on(names)]


def _modes(given: CliArguments) -> list[str]:
    modes = {"--plan": given.plan, "--explain": given.explain is not None, "--compare": given.compare}
    chosen = [name for name, on in modes.items() if on]
    if len(chosen) > 1:
        return [f"{chosen[0]} and {chosen[1]} contradict each other: each is a run of its own"]
    writing = {
        "-o": given.output is not None,
        "--out-dir": given.out_dir is not None,
        "--in-place": given.in_place,
        "--force": given.force,
        "--save-as-external-data": given.save_as_external_data,
        "--fail-on-remaining": bool(given.fail_on_remaining),
        "--precision-study": given.precision_study,
        "--jobs": given.jobs is not None,
    }
    if given.compare:
        if len(given.models) != 2:
            return [f"--compare takes two models, not {len(given.models)}"]
        fusing = {
            "--skip": bool(given.skip),
            "--only": bool(given.only),
            "--keep": bool(given.keep),
            "--freeze-initializers": given.freeze_initializers,
            "--no-check": not given.check,
        }
        return [
            f"--compare fuses and writes nothing, so {name} has no meaning" for name in _on(writing, fusing)
        ]
    if given.explain is not None:
        measuring = {
            "--bench": given.bench,
            "--json": given.json_file is not None,
            "--report": given.report_file is not None,
            "--quiet": given.quiet,
            "an output file": len(given.models) > 1,
        }
        return [f"--explain only prints, so {name} has no meaning" for name in _on(writing, measuring)]
    if given.plan:
        measuring = {"--bench": given.bench, "--precision-study": given.precision_study}
        return [f"--plan runs nothing, so {name} has no meaning" for name in _on(measuring)]
    return []


def _on(*groups: dict[str, bool]) -> list[str]:
    return [name for group in groups for name, on in group.items() if on]


def _outputs(given: CliArguments) -> list[str]:
    if given.compare or given.explain is not None:
        return []
    found = []
    count = len(given.models)
    if given.out_dir is not None and given.output is not None:
        found.append("-o and --out-dir contradict each other: give one of them")
    if given.in_place and (given.output is not None or given.out_dir is not None or count > 1):
        found.append("--in-place overwrites one input, so no output can be given besides it")
    if count > 2 and not given.many:
        found.append(f"{count} files were given: with more than two, all are models and --out-dir is needed")
    if count == 2 and given.output is not None:
        found.append("the output is given twice: by -o and as the second file; give one of them")
    if given.jobs is not None and not given.many:
        found.append("--jobs is for several models: it needs --out-dir")
    if given.in_place:
        found.extend(
            f"{name} needs both files, and --in-place overwrites one: give an output instead"
            for name in _on({"--bench": given.bench, "--precision-study": given.precision_study})
        )
    return found


def _checks(given: CliArguments) -> list[str]:
    found = []
    if not given.check:
        asked = {
            "--rtol": given.rtol is not None,
            "--atol": given.atol is not None,
            "--precision-study": given.precision_study,
            "--input-data": bool(given.input_data) and not given.bench,
        }
        found += [f"--no-check runs no comparison, so {name} has no meaning" for name in _on(asked)]
    return found


def _rest(given: CliArguments) -> list[str]:
    found = []
    if given.quiet and given.verbose:
        found.append("-q and -v contradict each other")
    if given.jobs == 0:
        found.append("--jobs takes a number of processes, or -1 for one per core; not 0")
    if given.bench and given.jobs not in (None, 1):
        found.append("--bench times one model at a time, so --jobs has no meaning")
    return found
