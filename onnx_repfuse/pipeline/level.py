"""The levels of `-O`: what a model gains before it is fused, tried, and left out where it fails.

Level 1 fuses the model as it is. Level 2 is for whoever wants the fastest result: it converts the model to the lowest
opset that pays. Everything is proved against the original; what cannot be converted, or is not proved, is left out and
noted, so that level 2 gives whatever level 1 gives. A second run at level 2 finds nothing more to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnx_repfuse.errors import ConversionError, VerificationError
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Report

__all__ = ["at_level"]

# Decomposed activations are the only thing that an older opset keeps from being folded.
PAYING_OPSET = OPERATORS["HardSwish"].since


def at_level(document: Document, options: Options, go: Callable[[Options], Report]) -> Report:
    """What `go` reports with the options that `Options.level` stands for, or without them where they fail.

    Args:
        document: the model.
        options: the user's; an opset that they name wins.
        go: fuses, or plans, the document with given options.
    """
    if options.level < 2 or options.opset is not None or not _pays(document, options):
        return go(options)
    try:
        return go(replace(options, opset=PAYING_OPSET))
    except (ConversionError, VerificationError) as error:
        report = go(options)
        note = f"opset {PAYING_OPSET} would pay, but the model was not converted: {error}"
        return replace(report, notes=(*report.notes, note))


def _pays(document: Document, options: Options) -> bool:
    """Whether the plan of the model as it is refuses something that its opset has no operator for."""
    plan = make_plan(document, options)
    return any(refusal.reason is Reason.OPSET for scope in plan.scopes for refusal in scope.refusals)
