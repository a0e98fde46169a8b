"""Why something was not folded: an enumeration a test can assert, with prose a user can read."""

from __future__ import annotations

from enum import Enum

__all__ = ["Reason"]


class Reason(str, Enum):
    """The reason of a `Refusal`. Its value is stable (JSON, tests); `prose` is a clause for people.

    >>> str(Reason.TRAINING), Reason.TRAINING.prose
    ('training', 'it runs in training mode: call model.eval() before export')
    """

    BORDER = "border"
    GRID = "grid"
    SHAPE = "shape"
    BROADCAST = "broadcast"
    COST = "cost"
    READERS = "readers"
    TRAINING = "training"
    SPATIAL = "spatial"
    PADDING = "padding"
    POOLING = "pooling"
    OVERRIDABLE = "overridable"
    QUANTIZED = "quantized"
    NON_FINITE = "non-finite"
    OVERFLOW = "overflow"
    IDIOM = "idiom"
    OPSET = "opset"
    VERIFICATION = "verification"
    UNSUPPORTED = "unsupported"

    @property
    def prose(self) -> str:
        """One clause that says why, without names."""
        return _PROSE[self]

    def __str__(self) -> str:
        return self.value


_PROSE = {
    Reason.BORDER: "the zero padding of the outer operator does not see the inner bias, so the border would differ",
    Reason.GRID: "the operands do not sample the same positions",
    Reason.SHAPE: "the shapes are not known well enough to prove that it is exact",
    Reason.BROADCAST: "an operand broadcasts, or may broadcast, over space or batch",
    Reason.COST: "the folded form would cost more than its parts",
    Reason.READERS: "its input has another reader, so folding would compute it twice",
    Reason.TRAINING: "it runs in training mode: call model.eval() before export",
    Reason.SPATIAL: "its statistics are per position (spatial=0), not per channel",
    Reason.PADDING: "it pads with negative, non-zero, unknown or non-constant values",
    Reason.POOLING: "it divides by fewer values at the border (count_include_pad=0 or ceil_mode)",
    Reason.OVERRIDABLE: "its weights are graph inputs that the caller may override (see --freeze-initializers)",
    Reason.QUANTIZED: "its weights or activations are quantized: fuse before you quantize",
    Reason.NON_FINITE: "its parameters contain NaN or infinity",
    Reason.OVERFLOW: "the folded weights would overflow the model's data type",
    Reason.IDIOM: "it belongs to an activation or normalization that runtimes fuse as a whole",
    Reason.OPSET: "it belongs to a HardSwish, which is an operator of its own only from opset 14 on",
    Reason.VERIFICATION: "the fold did not pass verification and was undone",
    Reason.UNSUPPORTED: "this form of the operator is not handled",
}
