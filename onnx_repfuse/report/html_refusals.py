"""What was not fused, by reason: why, what to do about it, and the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx_repfuse.report.advice import brief, by_reason
from onnx_repfuse.report.html_map import reason_id
from onnx_repfuse.report.html_parts import escape, filtered_list, shortened, where

if TYPE_CHECKING:
    from onnx_repfuse.records.reasons import Reason
    from onnx_repfuse.records.report import Refusal, Report

__all__ = ["refusals_list"]


def refusals_list(report: Report, model: int) -> str:
    """A card for each reason, under a filter; "" if nothing was refused."""
    groups = by_reason(report.refusals)
    cards = [_card(reason, members, model) for reason, members in groups]
    return filtered_list(f"refusals-{model}", "reasons", [str(reason) for reason, _ in groups], cards)


def _card(reason: Reason, members: Sequence[Refusal], model: int) -> str:
    items = [f"<li>{escape(brief(refusal))}{where(refusal.scope)}</li>" for refusal in members]
    return (
        f'<li class="card" data-kind="{escape(reason)}" id="{reason_id(model, reason)}"><p class="row">'
        f'<span class="what"><b class="times">{len(members)} &times;</b> {escape(reason.prose)}</span>'
        f'<span class="tag">{escape(reason)}</span></p>{shortened(items)}</li>'
    )
