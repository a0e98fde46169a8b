"""What a comparison of two models found besides its verdicts: interfaces, error statistics, and the tensors inside.

The first model is the reference: relative errors are relative to its values, and names are its names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx_repfuse.records.verdict import Verification

__all__ = [
    "Bin",
    "Comparison",
    "ErrorSpread",
    "InterfaceDifference",
    "Layer",
    "LayerStatus",
    "Layers",
    "OutputStatistics",
    "Producer",
    "TensorInfo",
]

LayerStatus = Literal["agrees", "agrees again", "diverges", "not comparable"]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as its file declares it.

    Attributes:
        name: its name.
        type: as ONNX Runtime writes it, "tensor(float16)".
        shape: a size, the name of a size, or None for each dim; empty for a scalar and for an unknown rank.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class InterfaceDifference:
    """One input or output in which the two models are not alike.

    Attributes:
        side: which of the two it is.
        first, second: what each model declares; None where a model has no such input or output.
        differs: what is not alike: "name", "type", "shape", or "missing". Names of sizes do not count.
    """

    side: Literal["input", "output"]
    first: TensorInfo | None
    second: TensorInfo | None
    differs: tuple[str, ...]


@dataclass(frozen=True)
class ErrorSpread:
    """The largest and the mean error of all elements, and percentiles, interpolated linearly as numpy does."""

    max: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Bin:
    """How many elements have an absolute error of at least `low` and below `high`; both are 0 for no error at all."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class OutputStatistics:
    """How far one output of the second model is from that of the first, over all inputs that were run.

    Attributes:
        name, other: its names in the two models (`name[i]` for the parts of a sequence).
        dtypes: its element types, as numpy names them.
        elements: how many were compared; 0 if it is empty, or if shapes differ.
        different: how many of them are not equal. NaN equals NaN.
        only_one_finite: how many of them are NaN or infinite in one model and not the same in the other.
        absolute: |first - second| of the elements that are finite in both; None without such elements, and for text.
        relative: the same over |first|, of the elements where that is not 0.
        at: index of the largest absolute error in its tensor, and `values` the two values there; None without errors.
        cosine: cosine similarity, or None where it means nothing.
        psnr: peak signal-to-noise ratio in dB, the peak being the range (max - min) of the first; infinite if all
            elements are equal, None where it means nothing.
        top_k: k -> share of the k highest of each row that both have in common; empty unless it looks like class
            scores.
        minimum_atol, minimum_rtol: the smallest `--atol`, or `--rtol`, that would pass by itself; infinite if none
            would.
        histogram: the absolute errors, by decades.
    """

    name: str
    other: str
    dtypes: tuple[str, str]
    elements: int
    different: int
    only_one_finite: int
    absolute: ErrorSpread | None
    relative: ErrorSpread | None
    at: tuple[int, ...] | None
    values: tuple[float, float] | None
    cosine: float | None
    psnr: float | None
    top_k: dict[str, float]
    minimum_atol: float
    minimum_rtol: float
    histogram: tuple[Bin, ...]


@dataclass(frozen=True)
class Producer:
    """The node that computes a tensor: its name, or its first output's where it has none, and its op type."""

    name: str
    op: str


@dataclass(frozen=True)
class Layer:
    """One tensor that both models have.

    Attributes:
        tensor: its name in both; of a graph output, in the first.
        first, second: what computes it.
        status: it diverges if it differs by more than the noise of the model explains. "agrees again" differs, too,
            but what is computed from it agrees, so that no output differs because of it: one name may stand for two
            tensors. A tensor that has other shapes or types in the two is not comparable.
        max_abs: largest absolute difference.
        allowed: what was allowed there; 0 for types that are compared exactly.
        max_rel, allowed_rel: the same over the largest value of the first.
        cosine: cosine similarity, or None where it means nothing.
        is_origin: it diverges, and nothing that it is computed from does.
        message: one sentence.
    """

    tensor: str
    first: Producer
    second: Producer
    status: LayerStatus
    max_abs: float
    allowed: float
    max_rel: float
    allowed_rel: float
    cosine: float | None
    is_origin: bool = False
    message: str = ""


@dataclass(frozen=True)
class Layers:
    """All tensors that both models have, in topological order of the first.

    Attributes:
        tensors: see `Layer`; fewer if not all could be read.
        slices: in how many parts they were read, to bound memory.
        shapes: input name -> shape of the one feed they were read on.
        notes: what was left out and why.
    """

    tensors: tuple[Layer, ...]
    slices: int = 0
    shapes: dict[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def first_divergence(self) -> Layer | None:
        """The first tensor that diverges; None if none does."""
        return next((layer for layer in self.tensors if layer.status == "diverges"), None)


@dataclass(frozen=True)
class Comparison:
    """Two models compared. True if all outputs passed.

    Attributes:
        verification: the verdicts. Outputs that only one of the two has have failed.
        outputs: the statistics, in the order of the first model's outputs; empty where the second was not run.
        interface: where inputs and outputs are not alike; empty if they are.
        judged_by: "first" or "second": the model whose noise is the measure. It is the one of coarser precision.
        precisions: the float type of the lowest precision that each model has, as numpy names it.
        layers: the tensors inside, if asked for.
    """

    verification: Verification
    outputs: tuple[OutputStatistics, ...] = ()
    interface: tuple[InterfaceDifference, ...] = ()
    judged_by: Literal["first", "second"] = "first"
    precisions: tuple[str, str] = ("float32", "float32")
    layers: Layers | None = None

    def __bool__(self) -> bool:
        return bool(self.verification)
