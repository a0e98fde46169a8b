"""What was asked for on the command line, and which askings contradict each other."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_repfuse.errors import UsageError

__all__ = ["Given", "check"]


@dataclass(frozen=True)
class Given:
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


def check(given: Given) -> None:
    """Raise UsageError with one sentence if two askings contradict each other."""
    if not given.models:
        raise UsageError("no model was given; --help shows how")
    for problem in (*_names(given), *_modes(given), *_outputs(given), *_checks(given), *_rest(given)):
        raise UsageError(problem)


def _names(given: Given) -> list[str]:
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


def _modes(given: Given) -> list[str]:
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


def _outputs(given: Given) -> list[str]:
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


def _checks(given: Given) -> list[str]:
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


def _rest(given: Given) -> list[str]:
    found = []
    if given.quiet and given.verbose:
        found.append("-q and -v contradict each other")
    if given.jobs == 0:
        found.append("--jobs takes a number of processes, or -1 for one per core; not 0")
    if given.bench and given.jobs not in (None, 1):
        found.append("--bench times one model at a time, so --jobs has no meaning")
    return found
