"""What the user can do about refusals, and the order they are shown in."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal, Report

__all__ = ["advice", "brief", "by_reason", "why_nothing"]

_ADVICE = {
    Reason.TRAINING: "the model was exported in training mode, where BatchNormalization depends on the batch and "
    "Dropout is random; call model.eval() before the export, leave out training=TrainingMode.TRAINING, and fuse again",
    Reason.QUANTIZED: "a quantized model cannot be fused, since its scales belong to the weights as they are; fuse "
    "the float model it was made from, then quantize the result",
    Reason.SHAPE: "the file does not say enough about shapes to prove more; export with fixed input sizes, or write "
    "them into the file with onnx.tools.update_model_dims (--input-shape is for verification only)",
    Reason.CUSTOM_OPERATOR: "operators of other domains hide the shapes of what they compute; if a tool put them in, "
    "as ONNX Runtime does when it saves an optimized model, fuse the model before that",
    Reason.NON_FINITE: "training or conversion left NaN or infinity in the parameters; look at the nodes named above "
    "before anything else",
    Reason.OPSET: "HardSwish is decomposed, since the model's opset has no operator for it, and only OpenVINO fuses "
    "its parts; fuse the original, not this result, with -O2 or --opset 14: HardSwish becomes one operator then, "
    "which is faster in ONNX Runtime, too",
}
_OVERRIDABLE = (
    "callers may set {} of the weights, which are graph inputs, too; runtimes cannot prepare such weights, and ONNX "
    "Runtime takes up to six times as long with them; if no caller does, --freeze-initializers makes them constants "
    "and folds them"
)
_ACTIONABLE = {*_ADVICE, Reason.OVERRIDABLE}
_LAST = (Reason.FUSED_PATTERN,)  # such nodes are as they should be


def advice(report: Report) -> tuple[str, ...]:
    """Sentences without a full stop, one for each reason that the user can do something about."""
    reasons = {refusal.reason for refusal in report.refusals}
    sentences = [text for reason, text in _ADVICE.items() if reason in reasons]
    if report.overridable:
        sentences.append(_OVERRIDABLE.format(len(report.overridable)))
    return tuple(sentences)


def by_reason(refusals: Iterable[Refusal]) -> list[tuple[Reason, list[Refusal]]]:
    """The refusals of each reason: first what the user can act on, last protected patterns, else the most frequent."""
    grouped: dict[Reason, list[Refusal]] = {}
    for refusal in refusals:
        grouped.setdefault(refusal.reason, []).append(refusal)

    def rank(group: tuple[Reason, list[Refusal]]) -> tuple[bool, bool, int, str]:
        reason, members = group
        return reason in _LAST, reason not in _ACTIONABLE, -len(members), str(reason)

    return sorted(grouped.items(), key=rank)


def why_nothing(report: Report) -> str | None:
    """One sentence, without a full stop, on why nothing was folded; None if something was."""
    if report.folds:
        return None
    groups = by_reason(report.refusals)
    if not groups:
        return "no two linear operators of this model are exactly one, or cheaper as one"
    reason, members = max(groups, key=lambda group: len(group[1]))
    if len(groups) == 1 and len(members) == 1:
        return f"the one candidate stays, because {reason.prose}"
    total = len(report.refusals)
    which = f"all {total}" if len(members) == total else f"{len(members)} of {total}"
    return f"{which} candidates stay, because of '{reason}': {reason.prose}"


def brief(refusal: Refusal) -> str:
    """The sentence, or its nodes alone where it says no more than the reason above it."""
    for verb in ("stays", "stay apart"):
        nodes = refusal.message.removesuffix(f" {verb}: {refusal.reason.prose}.")
        if nodes != refusal.message:
            return nodes
    return refusal.message
