"""Options that contradict each other, or that a run has no use for: one sentence that names them."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_repfuse.cli.arguments import (
    CONTRADICTIONS,
    TWO_OUTPUTS,
    USELESS,
    CliArguments,
    Option,
    declared,
    flag_of,
)
from onnx_repfuse.cli.paths import STREAM
from onnx_repfuse.errors import UsageError

__all__ = ["check"]


def check(given: CliArguments) -> None:
    """Raise UsageError with one sentence if two options contradict each other."""
    if not given.models:
        raise UsageError("no model was given; --help shows how")
    # The run is checked before its files: "--compare writes nothing" says more than a count of files.
    for rule in (_empty_names, _streams, _contradictions, _useless, _file_count, _jobs, _gate):
        for problem in rule(given):
            raise UsageError(problem)


def _given(given: CliArguments) -> dict[str, Option]:
    """The options that are not at their default, by field."""
    return {entry.name: option for entry, option in declared() if getattr(given, entry.name) != entry.default}


def _empty_names(given: CliArguments) -> Iterator[str]:
    """An empty word is what a shell makes of a variable that is not set."""
    if "" in given.models:
        yield "the name given for the model is empty"
    for name, option in _given(given).items():
        value = getattr(given, name)
        if value == "" or (name == "input_data" and "" in value):
            yield f"the name given for {flag_of(option)} is empty"


def _contradictions(given: CliArguments) -> Iterator[str]:
    present = _given(given).keys()
    for first, second, sentence in CONTRADICTIONS:
        if {first, second} <= present:
            yield sentence


def _useless(given: CliArguments) -> Iterator[str]:
    """Options that the run asked for does not use."""
    present = _given(given)
    runs = {*present, *(() if given.check else ("no_check",))}
    if runs.isdisjoint(("compare", "explain", "list_nodes", "plan")):
        runs.add("fuse")
    if given.fail_on_folds:
        runs.discard("plan")  # it is proved, so models are run
    for run, sentence in USELESS.items():
        if run in runs:
            yield from (
                sentence.format(flag_of(option)) for option in present.values() if run in option.useless
            )
    # With --bench the data has a use: it is what the models are timed on.
    if given.input_data and not (given.check or given.bench):
        yield USELESS["no_check"].format("--input-data")


def _streams(given: CliArguments) -> Iterator[str]:
    """Standard input and standard output carry one thing each."""
    models = list(given.models)
    words = [*models, *([given.output] if given.output else ())]
    if STREAM not in words:
        return
    if given.many or given.in_place:
        flags = {"--in-place": given.in_place, "--out-dir": given.out_dir, "--suffix": given.suffix}
        flag = next((flag for flag, value in flags.items() if value not in (None, False)), "a list of models")
        yield f"{flag} is for files, and - is standard input"
    if given.compare and models.count(STREAM) > 1:
        yield "standard input brings one model, and --compare takes two"
    writes_model = not (given.compare or given.plan or given.prints_only)
    output = models[-1] if given.output is None else given.output
    if writes_model and output == STREAM:
        yield from _model_on_stdout(given)


def _model_on_stdout(given: CliArguments) -> Iterator[str]:
    if given.json_file == STREAM:
        yield "standard output carries the model or the JSON report, not both: give one of them a file"
    if given.save_as_external_data:
        yield "standard output cannot carry external data, so --save-as-external-data has no meaning"


def _file_count(given: CliArguments) -> Iterator[str]:
    count = len(given.models)
    if given.compare:
        if count != 2:
            yield f"--compare takes two models, not {count}"
    elif given.prints_only:
        if count > 1:
            yield USELESS["list_nodes" if given.list_nodes else "explain"].format("an output file")
    elif given.in_place:
        if count > 1:
            yield TWO_OUTPUTS
    elif count > 2 and not given.many:
        yield f"{count} files were given: with more than two, all are models and --out-dir or --suffix is needed"
    elif count == 2 and given.output is not None:
        yield "the output is given twice: by -o and as the second file; give one of them"
    elif count > 2 and given.output is not None:
        yield f"-o names one output, and {count} models were given"


def _gate(given: CliArguments) -> Iterator[str]:
    if given.fail_on_folds and not given.plan:
        yield "--fail-on-folds says what is left to do, and is for --plan"


def _jobs(given: CliArguments) -> Iterator[str]:
    if given.jobs is None:
        return
    if not given.many:
        yield "--jobs is for several models: it needs --out-dir or --suffix"
    if given.jobs == 0:
        yield "--jobs takes a number of processes, or -1 for one per core; not 0"
    if given.bench and given.jobs != 1:
        yield "--bench times one model at a time, so --jobs has no meaning"
