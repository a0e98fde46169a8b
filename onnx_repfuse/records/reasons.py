"""Why something was not folded: an enumeration for programs, each with a clause for people."""

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
    CONSUMERS = "consumers"
    TRAINING = "training"
    BATCH_STATISTICS = "batch-statistics"
    SPATIAL = "spatial"
    PADDING = "padding"
    POOLING = "pooling"
    OVERRIDABLE = "overridable"
    QUANTIZED = "quantized"
    CUSTOM_OPERATOR = "custom-operator"
    NON_FINITE = "non-finite"
    OVERFLOW = "overflow"
    UNDERFLOW = "underflow"
    PRECISION = "precision"
    SIGN = "sign"
    FUSED_PATTERN = "fused-pattern"
    OPSET = "opset"
    AVOIDED = "avoided"
    VERIFICATION = "verification"
    UNSUPPORTED = "unsupported"

    @property
    def prose(self) -> str:
        """One clause that says why, without names."""
        return _PROSE[self]

    def __str__(self) -> str:
        return self.value


# Three of them by example:
# - BORDER: conv(pad(x + b)). The padding adds zeros after b was added; a bias of the Conv would count b there, too.
# - GRID: conv1(x) + conv2(x) with strides 1 and 2 have no common positions to add at.
# - POOLING: at the border the average divides by less, but the weights of a Conv are the same everywhere.
_PROSE = {
    Reason.BORDER: "the padding between them holds zeros instead of the first one's bias, so the border would differ",
    Reason.GRID: "the operators compute their outputs at different positions of the input",
    Reason.SHAPE: "the file does not say enough about shapes to prove that the fold is exact",
    Reason.BROADCAST: "an operand broadcasts, or may broadcast, over space or batch",
    Reason.COST: "the folded operator would be more expensive than the separate ones",
    Reason.CONSUMERS: "its input has another consumer, so folding would compute it twice",
    Reason.TRAINING: "it runs in training mode: call model.eval() before export",
    Reason.BATCH_STATISTICS: "it takes the statistics of each batch, also in eval mode (track_running_stats=False)",
    Reason.SPATIAL: "its statistics are per position (spatial=0), not per channel",
    Reason.PADDING: "it pads with negative, non-zero, unknown or non-constant values",
    Reason.POOLING: "it averages over fewer values at the border (count_include_pad=0 or ceil_mode)",
    Reason.OVERRIDABLE: "its weights are graph inputs, which the caller may set (see --freeze-initializers)",
    Reason.QUANTIZED: "its weights or activations are quantized: fuse before you quantize",
    Reason.CUSTOM_OPERATOR: "its input comes from an operator that ONNX does not define, so its shape is not known",
    Reason.NON_FINITE: "its parameters contain NaN or infinity",
    Reason.OVERFLOW: "the folded weights would overflow the model's data type",
    Reason.UNDERFLOW: "the folded weights would be too small for the model's half-precision data type",
    Reason.PRECISION: "the folded values would be less precise in half precision, or have 0 in place of -0",
    Reason.SIGN: "its factors are not all positive, and only those change places with a maximum or an activation",
    Reason.FUSED_PATTERN: "it is part of an activation or normalization that runtimes fuse as a whole",
    Reason.OPSET: "it is part of a HardSwish, which is an operator only from opset 14 on",
    Reason.AVOIDED: "it is to be avoided, and no other operators are known that compute the same",
    Reason.VERIFICATION: "the fold did not pass verification and was undone",
    Reason.UNSUPPORTED: "this form of the operator is not handled",
}
