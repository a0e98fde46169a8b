"""`--input-shape` and `--input-data` as the verifier's FeedSpec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_repfuse.options import Options
    from onnx_repfuse.verify.feeds import FeedSpec

__all__ = ["feed_spec", "model_spec"]


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
    from onnx_repfuse.verify.feeds import FeedSpec
    from onnx_repfuse.verify.userdata import read_inputs

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


def model_spec(model: str, options: Options) -> FeedSpec:
    """The same for a file, which is only read if the user gave data."""
    inputs: list[str] = []
    if options.input_data:
        from onnx_repfuse.verify.sessions import load

        graph = load(model, weights=False).graph
        constant = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constant]
    return feed_spec(options.input_shapes, options.input_data, inputs)
