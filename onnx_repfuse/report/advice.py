"""What to do next: a sentence for each cause in the user's hand that kept something whole or may slow it down."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal, Report

__all__ = ["advice", "brief", "by_reason"]

_ADVICE = {
    Reason.TRAINING: "the model was exported in training mode, in which BatchNormalization depends on the batch and "
    "Dropout on chance; call model.eval() before the export, do not ask it for training mode, and fuse again",
    Reason.QUANTIZED: "a quantized model cannot be fused, since its scales belong to the weights as they are; fuse "
    "the float model it was made from, then quantize the result",
    Reason.OVERRIDABLE: "initializers that are graph inputs, too, may be set by the caller; if nobody does, "
    "--freeze-initializers folds them",
    Reason.SHAPE: "the file does not say enough about shapes to prove more; export with fixed input sizes, or write "
    "them into the file with onnx.tools.update_model_dims (--input-shape is for verification only)",
    Reason.NON_FINITE: "NaN or infinity in the parameters is what training or conversion left behind; look at the "
    "nodes named above before anything else",
    Reason.OPSET: "HardSwish is written out, as the model's opset has no operator for it, and OpenVINO alone fuses "
    "what stands there; convert the original, not this result, to opset 14 (onnx.version_converter.convert_version) "
    "and fuse that: it becomes one operator, which ONNX Runtime runs faster, too",
}
_LAST = (Reason.IDIOM,)  # nothing to be done about


def advice(report: Report) -> tuple[str, ...]:
    """Sentences without a full stop, one for each reason among the refusals that the user can do something about."""
    found = {refusal.reason for refusal in report.refusals}
    return tuple(text for reason, text in _ADVICE.items() if reason in found)


def by_reason(refusals: Iterable[Refusal]) -> list[tuple[Reason, list[Refusal]]]:
    """The refusals of each reason, what the user can act on first, idioms last, else the most frequent first."""
    grouped: dict[Reason, list[Refusal]] = {}
    for refusal in refusals:
        grouped.setdefault(refusal.reason, []).append(refusal)
    return sorted(
        grouped.items(),
        key=lambda item: (item[0] in _LAST, item[0] not in _ADVICE, -len(item[1]), str(item[0])),
    )


def brief(refusal: Refusal) -> str:
    """The sentence, or the nodes alone where it says no more than the reason it stands under."""
    for verb in ("stays", "stay apart"):
        short = refusal.message.removesuffix(f" {verb}: {refusal.reason.prose}.")
        if short != refusal.message:
            return short
    return refusal.message
