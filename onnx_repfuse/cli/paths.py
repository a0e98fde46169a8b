"""Which file is written for which model, and what must not be overwritten."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from onnx_repfuse.cli.arguments import CliArguments
from onnx_repfuse.errors import OutputError, UsageError
from onnx_repfuse.modelfile.output_path import check_output, is_same_file
from onnx_repfuse.modelfile.report_file import is_precious

__all__ = ["STREAM", "beside", "check_reports", "targets"]

STREAM = "-"  # standard input or output, as a model
SUFFIX = ".fused"


def beside(model: str, suffix: str = SUFFIX) -> str:
    """The default output; of standard input, standard output. Raises UsageError for what has no name.

    >>> beside("nets/model.onnx").replace(os.sep, "/")
    'nets/model.fused.onnx'
    """
    path = Path(model)
    if model == STREAM:
        return STREAM
    if not path.name:
        raise UsageError(f"'{model}' is not a model file")
    if Path(suffix).name != suffix:
        raise UsageError(f"--suffix is a part of a file's name, not '{suffix}'")
    return str(path.with_name(f"{path.stem}{suffix}{path.suffix}"))


def targets(given: CliArguments) -> list[tuple[str, str]]:
    """(model, output) pairs; raises UsageError before anything is touched."""
    if given.compare:
        return [(given.models[0], given.models[1])]
    if given.in_place:
        return [(given.models[0], given.models[0])]
    pairs = _several(given) if given.many else [_single(given)]
    if given.plan or given.prints_only:  # writes none of them
        return pairs
    models = given.models if given.many else given.models[:1]
    for _, output in pairs:
        _check_output(output, models)
    if not given.many and pairs[0][1] != STREAM:  # the folder of --out-dir is made
        _check_folder(pairs[0][1])
    return pairs


def _single(given: CliArguments) -> tuple[str, str]:
    model, *others = given.models
    second = others[0] if others else None
    output = given.output or second or beside(model, given.suffix or SUFFIX)
    # A second file is more easily a slip (`*.onnx`) than -o is, so it replaces nothing by itself.
    if second is not None and os.path.lexists(second) and not (given.force or given.plan):
        raise UsageError(f"'{second}' exists: --force replaces it; several models need --out-dir")
    return model, output


def check_reports(given: CliArguments, pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse report files that cannot be written, or that are a model, or its weights, or each other."""
    pairs = list(pairs)
    models = [name for pair in pairs for name in pair]
    page, document = given.report_file, given.json_file
    if document == "-":  # standard output
        document = None
    for option, name in (("--json", document), ("--report", page)):
        if name is not None:
            if any(is_same_file(name, model) for model in models):
                raise UsageError(f"{option} would overwrite the model '{name}'")
            if any(_may_be_data_of(name, output) for _, output in pairs):
                raise UsageError(f"{option} would take the name '{name}', which the model's weights may need")
            _check_report(option, name)
    if page is not None and document is not None and is_same_file(page, document):
        raise UsageError(f"--json and --report name one file: '{page}'")


def _may_be_data_of(name: str, output: str) -> bool:
    """Whether a file may become the data file of an output."""
    from onnx_repfuse.modelfile.save import is_data_name  # slow to import; only who asks for a report waits

    path, model = (Path(os.path.normcase(file)) for file in (name, output))
    return is_data_name(path.name, model) and is_same_file(str(path.parent), str(model.parent))


def _check_report(option: str, name: str) -> None:
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{option} takes a file, but '{name}' is a folder")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write '{name}': its folder does not exist; create it first")
    if is_precious(path):
        raise UsageError(f"{option} would overwrite '{name}', which is no report: remove it first")


def _several(given: CliArguments) -> list[tuple[str, str]]:
    """Each model in the folder of --out-dir, or beside itself, under its name with --suffix."""
    if given.out_dir is None and given.suffix is None:  # of --plan, which writes none of them
        return [(model, beside(model)) for model in given.models]
    pairs = [(model, beside(model, given.suffix or "")) for model in given.models]
    if given.out_dir is not None:
        folder = Path(given.out_dir)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out-dir takes a folder, but '{folder}' is a file")
        pairs = [(model, str(folder / Path(output).name)) for model, output in pairs]
    model_of: dict[str, str] = {}  # a/net.onnx and b/net.onnx have one output
    for model, output in pairs:
        # macOS and Windows do not tell upper from lower case in names.
        key = output.casefold() if sys.platform in ("darwin", "win32") else output
        other = model_of.setdefault(os.path.normcase(key), model)
        if other is not model:
            raise UsageError(f"'{other}' and '{model}' would both be written to '{output}'")
    return pairs


def _check_output(output: str, models: Iterable[str]) -> None:
    if output != STREAM:
        check_output(output, models, to_overwrite="--in-place", for_folder=", or --out-dir")


def _check_folder(output: str) -> None:
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise OutputError(f"cannot write '{output}': there is no folder '{folder}'; create it first")
