"""The choices of a caller of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.report import Kind

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Choices of one run; the defaults are the safe ones.

    Attributes:
        cost: what "cheaper" means; multiply-adds never rise under either.
        skip, only: the kinds of folds (`Kind`, or its word) to leave out, or the only ones to make; a fold of several
            kinds needs them all.
        avoid: ONNX operators that the target cannot run: none is written, and those that are there become others
            where there is a way (BatchNormalization becomes Mul and Add).
        keep: globs on node names; matching nodes stay as they are. One that matches no node is an error of the run.
        freeze_initializers: treat initializers that are also graph inputs as constants (IR >= 4).
        opset: convert the model to this version of the ONNX operator set first, if it has an older one.
        simplify: let another simplifier that is installed run first, "auto" for whichever gives the faster result. It
            is left out where it fails, where its result is not proved equal, or where it gains nothing.
        level: 2 also converts to the lowest opset that pays, unless `opset` names one, and simplifies as "auto" does,
            unless `simplify` names one; what fails of that is left out.
        check: compare the result with the original in ONNX Runtime before it is written.
        strict: what could not be observed is a failure, too: nothing is written then.
        rtol, atol: the tolerance of the outputs, `atol + rtol * abs(y)`, instead of the one measured from noise.
        input_shapes: input name -> shape to verify with.
        overwrite_input_shapes: input name -> shape that the result is written with, and compared at.
        input_data: (input name or None, file) to verify with: .npy of an input, .npz, a test_data_set folder.
        provider: the execution provider of ONNX Runtime that whole models run on, to compare and time them; None is its
            CPU provider. Folds are proved one by one on the CPU, whatever the provider.
        threads: of an operator, when whole models run; 0 is one per core.
        custom_ops: shared libraries with custom operators, registered with ONNX Runtime to verify the model. Without
            them, folds of a model that needs them are proved one by one, and its outputs are not observed.
        external: True writes large weights as external data; None does so if the input did, or if protobuf's limit of
            2 GB demands it.
        precision_study: compare both models with the original in float64; on the command line only.

    Raises:
        UsageError: a value cannot have been meant.

    >>> Options(skip=frozenset({Kind.POOL})).allows(Kind.POOL)
    False
    """

    cost: Literal["ort-cpu", "macs"] = "ort-cpu"
    skip: frozenset[Kind] = frozenset()
    only: frozenset[Kind] | None = None
    avoid: frozenset[str] = frozenset()
    keep: tuple[str, ...] = ()
    freeze_initializers: bool = False
    opset: int | None = None
    simplify: Literal["onnxsim", "onnxslim", "auto"] | None = None
    level: Literal[1, 2] = 1
    check: bool = True
    strict: bool = False
    rtol: float | None = None
    atol: float | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overwrite_input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_data: tuple[tuple[str | None, Path], ...] = ()
    provider: str | None = None
    threads: int = 1
    custom_ops: tuple[Path, ...] = ()
    external: bool | None = None
    precision_study: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for slips."""
        # keep="/head/*" would be taken for the globs "/", "h", ... and "*", which keeps every node.
        for name in ("skip", "only", "avoid", "keep", "custom_ops"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"Options.{name} takes a collection, not the text '{getattr(self, name)}'")
        for name in ("skip", "only"):  # words will do, too
            kinds = getattr(self, name)
            if kinds is not None:
                object.__setattr__(self, name, frozenset(map(Kind.named, kinds)))
        if self.strict and not self.check:
            raise UsageError("Options.strict is about the check, which check=False leaves out")
        if self.cost not in ("ort-cpu", "macs"):
            raise UsageError(f"Options.cost is 'ort-cpu' or 'macs', not '{self.cost}'")
        if self.simplify not in (None, "onnxsim", "onnxslim", "auto"):
            raise UsageError(f"Options.simplify is 'onnxsim', 'onnxslim' or 'auto', not '{self.simplify}'")
        if self.level not in (1, 2):
            raise UsageError(f"Options.level is 1 or 2, not {self.level}")
        if self.opset is not None and self.opset < 1:
            raise UsageError(f"opset must be a number > 0, not {self.opset}")
        if self.threads < 0:
            raise UsageError(f"threads must be a number >= 0, not {self.threads}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number >= 0, not {value}")

    def allows(self, kind: Kind) -> bool:
        """Whether folds of this kind are wanted."""
        return kind not in self.skip and (self.only is None or kind in self.only)

    def allows_all(self, kinds: frozenset[Kind]) -> bool:
        """Whether a fold that absorbs all of these kinds is wanted; one of none is reported as `affine`."""
        return all(map(self.allows, kinds or (Kind.AFFINE,)))
