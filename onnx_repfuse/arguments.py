"""What the command line's strings mean: pure functions that raise UsageError with one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from onnx_repfuse.errors import UsageError
from onnx_repfuse.report.record import Kind

__all__ = ["KIND_HELP", "input_data", "input_shapes", "kinds", "words"]

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
