"""What the user says of the inputs, as a FeedSpec.

On the command line `--input-shape` and `--input-data`: real inputs from .npy, .npz, TensorProto .pb, ONNX test data.
In the library, arrays.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from onnx_repfuse.errors import InputError, UsageError
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.session import Model, input_names, load, one_line

__all__ = ["Feeds", "feed_spec", "given_feeds", "read_inputs"]

_Run: TypeAlias = Mapping[str, npt.ArrayLike]
# The names in quotes: `|` of these types does not exist at run time.
Feeds: TypeAlias = "FeedSpec | _Run | Sequence[_Run] | np.ndarray[Any, Any]"

_SINGLE_INPUT = (".npy", ".pb")  # files that hold one tensor and no input's name


def feed_spec(
    model: Model, shapes: Mapping[str, Sequence[int]], data: Sequence[tuple[str | None, Path]]
) -> FeedSpec:
    """What the user said about the inputs.

    Args:
        model: whose inputs; it is only read if the user gave data.
        shapes: input name -> shape.
        data: (input name or None, file or folder). Files of single inputs are combined into runs: the second file
            for one input belongs to the second run.

    Raises:
        InputError: a file is missing, unreadable, or does not say which input it is for.
    """
    inputs = input_names(load(model, weights=False).graph) if data else []
    # Runs put together from files of single inputs, and runs that come complete (.npz, folders).
    combined: list[dict[str, Any]] = []
    complete: list[dict[str, Any]] = []
    for name, path in data:
        runs = read_inputs(path, inputs, name)
        if path.suffix not in _SINGLE_INPUT:
            complete += runs
            continue
        for values in runs:
            run = next((run for run in combined if not run.keys() & values.keys()), None)
            if run is None:
                run = {}
                combined.append(run)
            run.update(values)
    return FeedSpec(shapes=dict(shapes), data=(*combined, *complete))


def given_feeds(model: Model, feeds: Feeds | None) -> FeedSpec | None:
    """What a caller of the library feeds a model.

    Args:
        model: whose inputs.
        feeds: a dict of arrays by input name for one run, a list of such dicts for several, an array for the only
            input, or a FeedSpec. None means random data. A list of arrays in a dict is a sequence of tensors.

    Raises:
        UsageError: it is none of these, or names an input that the model does not have.
        InputError: the model cannot be read.
    """
    if feeds is None or isinstance(feeds, FeedSpec):
        return feeds
    inputs = input_names(load(model, weights=False).graph)
    if hasattr(feeds, "shape"):  # an array, of whatever library
        if len(inputs) != 1:
            raise UsageError(
                f"an array alone is for a model of one input, and this one has {', '.join(inputs) or 'none'}: "
                "feeds takes a dict of arrays by input name"
            )
        return FeedSpec(data=({inputs[0]: np.asarray(feeds)},))
    runs = [feeds] if isinstance(feeds, Mapping) else feeds
    if isinstance(runs, str) or not isinstance(runs, Sequence) or not runs:
        raise UsageError(f"{_WANTED}, not {'an empty list' if runs == [] else type(feeds).__name__}")
    return FeedSpec(data=tuple(_given_run(run, inputs) for run in runs))


_WANTED = (
    "feeds takes a dict of arrays by input name, a list of such dicts (one for each run), an array for the only input, "
    "or a FeedSpec"
)


def _given_run(run: object, inputs: Sequence[str]) -> dict[str, Any]:
    """One run of `given_feeds`, as arrays. Raises UsageError."""
    if not isinstance(run, Mapping):
        raise UsageError(f"{_WANTED}, not a list of {type(run).__name__}")
    for name in run:
        if name not in inputs:
            raise UsageError(
                f"feeds has an array for '{name}', but the model has no such input{_meant(str(name), inputs)}"
            )
    return {name: _given_value(name, value) for name, value in run.items()}


def _given_value(name: str, value: Any) -> Any:
    if isinstance(value, list) and value and all(hasattr(part, "shape") for part in value):
        return [np.asarray(part) for part in value]
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # lists of unequal lengths
        raise UsageError(f"what feeds has for '{name}' is no array: {one_line(error)}") from error
    if array.dtype == object and not all(isinstance(element, str) for element in array.flat):
        raise UsageError(
            f"what feeds has for '{name}' is no array of numbers or strings, but {type(value).__name__}"
        )
    return array


def _meant(name: str, inputs: Sequence[str]) -> str:
    """The end of a sentence on an input that is not there: the nearest name, or all there are."""
    near = difflib.get_close_matches(name, inputs, 1)
    return f"; did you mean '{near[0]}'?" if near else f", only {', '.join(inputs) or 'none'}"


def read_inputs(path: Path, inputs: Sequence[str], name: str | None = None) -> list[dict[str, Any]]:
    """Read one source of inputs, as `FeedSpec.data` wants it.

    Args:
        path: a .npy (one input), a .npz (one run, arrays by input name), a .pb (one input), a folder with
            input_0.pb, input_1.pb, ... (one run), or a folder of such folders (one run each).
        inputs: the model's input names, in order; input_0.pb is the first.
        name: the input a .npy, a .pb, or a .npz with one array is for; needed if the model has several.

    Returns:
        one dict per run, input name -> value.

    Raises:
        InputError: the file is missing, unreadable, does not say which input it is for, or names one that is not there.
    """
    path = Path(path)
    # The input of a file that does not name one: the user's word, or the model's only input.
    target = name if name is not None or len(inputs) != 1 else inputs[0]
    try:
        if path.is_dir():
            return [_read_folder(folder, inputs) for folder in _test_data_sets(path)]
        if path.suffix == ".npz":
            return [_read_npz(path, inputs, name)]
        # No pickles: loading one runs code of the file's author.
        value = _read_tensor(path) if path.suffix == ".pb" else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the inputs in '{path}': {one_line(error)}") from error
    if target is None:
        raise InputError(f"say which input '{path}' is for: name:{path.name}, one of {', '.join(inputs)}")
    return [{target: value}]


def _read_npz(path: Path, inputs: Sequence[str], name: str | None) -> dict[str, Any]:
    """The arrays by name. A single array is for `name`, if that was said, whatever its own name; arrays without names
    are for the inputs in order.

    Raises:
        InputError: an array has the name of no input.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    if name is not None and len(arrays) == 1:
        return {name: next(iter(arrays.values()))}
    # numpy's own names, of np.savez(file, a, b)
    if arrays.keys() == {f"arr_{index}" for index in range(len(arrays))} and len(arrays) <= len(inputs):
        arrays = {
            key if key in inputs else inputs[int(key.removeprefix("arr_"))]: value
            for key, value in arrays.items()
        }
    for key in arrays:
        if key not in inputs:
            raise InputError(
                f"'{path}' has an array '{key}', but the model has no such input{_meant(key, inputs)}"
            )
    return arrays


def _test_data_sets(path: Path) -> list[Path]:
    """The folders with input_*.pb in `path`; `path` itself if there is none."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and list(p.glob("input_*.pb")))
    return folders or [path]


def _read_folder(folder: Path, inputs: Sequence[str]) -> dict[str, Any]:
    files = {
        int(path.stem.removeprefix("input_")): path
        for path in folder.glob("input_*.pb")
        if path.stem.removeprefix("input_").isdigit()
    }
    if not files:
        raise InputError(f"'{folder}' holds no input_0.pb, input_1.pb, ...")
    for index, path in files.items():
        if index >= len(inputs):
            raise InputError(f"'{path}' is for input {index}, but the model has {len(inputs)} inputs")
    return {inputs[index]: _read_tensor(path) for index, path in sorted(files.items())}


def _read_tensor(path: Path) -> Any:
    """A serialized TensorProto or SequenceProto; the file does not say which it is. Raises ValueError."""
    data = path.read_bytes()
    tensor, sequence = onnx.TensorProto(), onnx.SequenceProto()
    as_tensor = "it has no type"
    try:
        tensor.ParseFromString(data)
        if tensor.data_type:
            return onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # those of protobuf and numpy_helper share no base
        as_tensor = one_line(error)
    try:
        sequence.ParseFromString(data)
        size = sequence.ByteSize()
        sequence.DiscardUnknownFields()
        if sequence.ByteSize() != size:  # a broken tensor would be taken for an empty sequence
            raise ValueError("it has fields that no sequence has")
        return onnx.numpy_helper.to_list(sequence)
    except Exception as error:
        raise ValueError(f"as a tensor: {as_tensor}; as a sequence: {one_line(error)}") from error
