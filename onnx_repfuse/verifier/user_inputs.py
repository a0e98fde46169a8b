"""`--input-shape` and `--input-data` as the verifier's FeedSpec.

Real inputs from files: .npy, .npz, a TensorProto .pb, or an ONNX test_data_set folder.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.verifier.session import one_line

if TYPE_CHECKING:
    from onnx_repfuse.verifier.inputs import FeedSpec

__all__ = ["feed_spec", "model_spec", "read_inputs"]


def feed_spec(
    shapes: Mapping[str, Sequence[int]], data: Sequence[tuple[str | None, Path]], inputs: Sequence[str]
) -> FeedSpec:
    """What the user said about the inputs.

    Args:
        shapes: input name -> shape.
        data: (input name or None, file or folder); files of single inputs are put together into runs.
        inputs: the model's input names, in order.

    Raises:
        InputError: a file is missing, unreadable, or does not say which input it is for.
    """
    from onnx_repfuse.verifier.inputs import FeedSpec
    from onnx_repfuse.verifier.user_inputs import read_inputs

    together: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for name, path in data:
        runs = read_inputs(path, inputs, name)
        if path.suffix not in (".npy", ".pb"):
            whole += runs
            continue
        for run in runs:
            home = next((one for one in together if not one.keys() & run.keys()), None)
            if home is None:
                together.append(dict(run))
            else:
                home.update(run)
    return FeedSpec(shapes=dict(shapes), data=(*together, *whole))


def model_spec(
    model: str, shapes: Mapping[str, Sequence[int]], data: Sequence[tuple[str | None, Path]]
) -> FeedSpec:
    """The same for a file, which is only read if the user gave data."""
    inputs: list[str] = []
    if data:
        from onnx_repfuse.verifier.session import load

        graph = load(model, weights=False).graph
        constant = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constant]
    return feed_spec(shapes, data, inputs)


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
        InputError: the file is missing, unreadable, or does not say which input it is for.
    """
    path = Path(path)
    try:
        if path.is_dir():
            folders = sorted(p for p in path.iterdir() if p.is_dir() and list(p.glob("input_*.pb"))) or [path]
            return [_folder(folder, inputs) for folder in folders]
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
            if name is not None and len(arrays) == 1:
                arrays = {name: next(iter(arrays.values()))}
            elif len(arrays) == 1 and len(inputs) == 1:
                arrays = {inputs[0]: next(iter(arrays.values()))}
            return [arrays]
        value = _tensor(path) if path.suffix == ".pb" else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the inputs in '{path}': {one_line(error)}") from error
    if name is None and len(inputs) != 1:
        raise InputError(f"say which input '{path}' is for: name:{path.name}, one of {', '.join(inputs)}")
    return [{name if name is not None else inputs[0]: value}]


def _folder(folder: Path, inputs: Sequence[str]) -> dict[str, Any]:
    files = {int(p.stem.removeprefix("input_")): p for p in folder.glob("input_*.pb") if p.stem[6:].isdigit()}
    if not files:
        raise InputError(f"'{folder}' holds no input_0.pb, input_1.pb, ...")
    beyond = [index for index in files if index >= len(inputs)]
    if beyond:
        raise InputError(
            f"'{files[beyond[0]]}' is for input {beyond[0]}, but the model has {len(inputs)} inputs"
        )
    return {inputs[index]: _tensor(path) for index, path in sorted(files.items())}


def _tensor(path: Path) -> Any:
    data = path.read_bytes()
    reason = f"'{path.name}' is not a tensor"
    for kind, convert in (
        (onnx.TensorProto, onnx.numpy_helper.to_array),
        (onnx.SequenceProto, onnx.numpy_helper.to_list),
    ):
        proto = kind()
        try:
            proto.ParseFromString(data)
            if kind is onnx.SequenceProto or proto.data_type:
                return convert(proto)
        except Exception as error:  # protobuf's and numpy_helper's; said below, if the other kind fails, too
            reason = one_line(error)
    raise ValueError(reason)
