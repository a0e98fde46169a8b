"""What the words after an option mean. Every function raises UsageError with one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.report import Kind

__all__ = [
    "KIND_HELP",
    "input_data",
    "input_shapes",
    "libraries",
    "only_kinds",
    "operators",
    "overwritten_shapes",
    "skip_kinds",
    "words",
]

KIND_HELP = {
    Kind.AFFINE: "BatchNormalization, Mul, Add, Sub, Div or Neg by constants, into a Conv or into each other",
    Kind.BRANCHES: "a sum of convolutions of one tensor, into one",
    Kind.SEQUENCE: "a Conv after a Conv, into one",
    Kind.PAD: "a Pad before a Conv, into its pads",
    Kind.POOL: "an AveragePool, as the convolution it is",
    Kind.MATMUL: "Gemm and MatMul, also low-rank pairs",
    Kind.TRANSPOSE: "the operators around a ConvTranspose, into it",
    Kind.CONCAT: "a Concat, Split or Slice over channels of convolutions",
    Kind.COMMUTE: "an affine or pointwise operator moved past a pool, reshape or resize, to where it folds",
    Kind.INDEX: "channels that Gather, Slice or a shuffle chooses, and positions that a Slice with steps takes",
    Kind.ACTIVATION: "a decomposed activation, as one operator: Clip(x + 3, 0, 6) / 6 as HardSigmoid; PRelu",
    Kind.STRIDE: "the stride of a 1x1 Conv or Slice, moved up to the Conv that computes what it skips",
    Kind.DEAD: "channels that are zero, or that no node reads, left out",
    Kind.PRODUCT: "a factor of a product of two tensors, moved to the operator that computes one of them",
    Kind.FLUSH: "not a fold: weights so small that processors are slow with them, and too small to show, become zero",
    Kind.CONSTANT: "not a fold: nodes that compute a constant, as an initializer; an If that always takes one branch",
    Kind.EQUAL: "not a fold: a node that computes what an equal one computes, which is read instead",
    Kind.NO_OP: "not a fold: a node whose output equals its input (Identity, Add of 0), removed",
    Kind.FROZEN: "not a fold: a graph input taken for its initializer, which --freeze-initializers alone asks for",
}
MAX_DIM = 1 << 40  # a larger dimension is a slip; it would overflow the tensor's size in bytes
# `serving:0:1,3,8,8` or `x:1x3x8x8`: the name is greedy, so that the last colon ends it.
_SHAPE = re.compile(r"(?P<name>.+):(?P<dims>[0-9]+(?:[,x][0-9]+)*|scalar)", re.DOTALL)


def words(given: Iterable[str]) -> tuple[str, ...]:
    """Comma-separated and repeated values as one tuple, in order, without repeats.

    >>> words(["a,b", " c ,a"])
    ('a', 'b', 'c')
    """
    parts = [part.strip() for value in given for part in value.split(",")]
    return tuple(dict.fromkeys(filter(None, parts)))


def operators(given: Iterable[str]) -> frozenset[str]:
    """The operators that `--avoid` names."""
    return frozenset(words(given))


def skip_kinds(given: tuple[str, ...]) -> frozenset[Kind]:
    """The kinds of folds that `--skip` names."""
    return _kinds("--skip", given)


def only_kinds(given: tuple[str, ...]) -> frozenset[Kind] | None:
    """The kinds of folds that `--only` names, None without the option."""
    if not given:
        return None
    chosen = _kinds("--only", given)
    if not chosen:  # `--only ,`
        raise UsageError("--only names no kind of fold; --list-kinds shows what there is")
    return chosen


def _kinds(option: str, given: tuple[str, ...]) -> frozenset[Kind]:
    try:
        return frozenset(map(Kind.named, words(given)))
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error


def overwritten_shapes(given: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """As `input_shapes`, of `--overwrite-input-shape`."""
    return input_shapes(given, "--overwrite-input-shape")


def input_shapes(given: Iterable[str], flag: str = "--input-shape") -> dict[str, tuple[int, ...]]:
    """`name:1,3,224,224` each, read from the right, so that a name may hold colons, commas and spaces.

    >>> input_shapes(["serving:0:1,3,8,8"])
    {'serving:0': (1, 3, 8, 8)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in given:
        match = _SHAPE.fullmatch(value)
        if match is None:
            raise UsageError(f"{flag} takes NAME:1,3,224,224 (whole numbers), not '{value}'")
        name, dims = match["name"], match["dims"]
        if name in shapes:
            raise UsageError(f"{flag} names the input '{name}' twice")
        shapes[name] = () if dims == "scalar" else tuple(int(dim) for dim in re.split("[,x]", dims))
        if any(dim > MAX_DIM for dim in shapes[name]):
            raise UsageError(f"{flag}: '{value}' is too large for a size")
    return shapes


def libraries(given: Iterable[str]) -> tuple[Path, ...]:
    """The files that `--custom-ops` names. ONNX Runtime would be asked for them only after planning."""
    paths = tuple(map(Path, given))
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--custom-ops takes a library, and there is no file '{path}'")
    return paths


def input_data(given: Iterable[str]) -> tuple[tuple[str | None, Path], ...]:
    """(name or None, path) for each `[NAME:]PATH`."""
    return tuple(_named_path(value) for value in given)


def _named_path(value: str) -> tuple[str | None, Path]:
    """Split at the last colon that leaves an existing path: names (`x:0`) and paths (`C:`) have colons, too."""
    if Path(value).exists():
        return None, Path(value)
    head = value[:-1]  # a colon at the end would leave no path
    while ":" in head[1:]:
        head = head[: head.rindex(":")]
        path = Path(value[len(head) + 1 :])
        if path.exists():
            if path.suffix not in (".npy", ".pb"):
                raise UsageError(f"--input-data '{value}': a name goes with a .npy or .pb file of one input")
            return head, path
    raise UsageError(
        f"--input-data: no such file or folder: '{value}'; it takes NAME:FILE.npy, FILE.npz or a test_data_set folder"
    )
