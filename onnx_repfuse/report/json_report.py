"""The report as JSON: schema 2, which report.schema.json describes key by key.

A record becomes an object whose keys are the record's fields; the tables below say where it differs. Numbers that
JSON does not have are the strings "nan", "inf" and "-inf". The text is ASCII.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from onnx_repfuse.records.comparison import Comparison, Layers, OutputStatistics
from onnx_repfuse.records.outcome import Bench
from onnx_repfuse.records.report import Counts, Fold, Report
from onnx_repfuse.records.verdict import FoldVerdict, OutputVerdict, Precision, Verification
from onnx_repfuse.report.advice import advice, why_nothing

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Outcome

__all__ = ["SCHEMA", "document", "dumps"]

SCHEMA = 2

# The keys of records whose fields are not the keys, in order.
_KEYS: dict[type, str] = {
    Comparison: "judged_by precisions interface outputs layers",
    Bench: "word ratio original_ms fused_ms rounds warm_up threads provider shapes as_zero",
    Counts: "ops nodes parameters bytes macs",
    FoldVerdict: "output scope status stages",
    Fold: "output kind kinds scope absorbed created sources macs_before macs_after",
    Layers: "first_divergence slices shapes notes tensors",
    Precision: "output original fused worst_original worst_fused factor",
    Verification: "status judge provider threads seeds shapes runs notes outputs folds changes",
}
# of keys with another name
_ATTRIBUTES: dict[tuple[type, str], str] = {(Bench, "original_ms"): "original", (Bench, "fused_ms"): "fused"}
# Tuples that become objects, and the keys of their members.
_SPREAD = ("median", "low", "high")
_BOTH = ("first", "second")
_MEMBERS: dict[tuple[type, str], tuple[str, ...]] = {
    (Bench, "ratio"): _SPREAD,
    (Bench, "original_ms"): _SPREAD,
    (Bench, "fused_ms"): _SPREAD,
    (Bench, "as_zero"): _SPREAD,
    (Comparison, "precisions"): _BOTH,
    (OutputStatistics, "dtypes"): _BOTH,
    (OutputStatistics, "values"): _BOTH,
    (OutputVerdict, "noise"): ("inputs", "weights"),
    (Verification, "runs"): ("original", "result"),
}


def dumps(outcomes: list[Outcome], version: str, *, many: bool, exit_code: int) -> str:
    """The whole document as text, ending in a newline.

    Args:
        outcomes: one per model.
        version: of this package.
        many: a list under "models" (--out-dir) instead of one flat object.
        exit_code: of the process.
    """
    head: dict[str, Any] = {"schema": SCHEMA, "tool": "onnx-repfuse", "version": version}
    if many:
        value = {**head, "exit_code": exit_code, "models": [document(outcome) for outcome in outcomes]}
    else:
        value = {**head, **document(outcomes[0])}
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def document(outcome: Outcome) -> dict[str, Any]:
    """One model's part of the document."""
    report = outcome.report
    value: dict[str, Any] = _plain(
        {
            "command": outcome.command,
            "model": outcome.model,
            "output": outcome.output or None,
            "exit_code": outcome.exit_code,
            "error": outcome.error or None,
            **_of_plan(report),
            "verification": outcome.verification,
            "comparison": outcome.comparison,
            "bench": outcome.bench,
            "precision": outcome.precision,
            "gates": outcome.gates,
            "left": outcome.left,
            "environment": outcome.environment,
            "seconds": report.seconds if report else {},
            "notes": report.notes if report else (),
        }
    )
    if report and outcome.command == "plan":
        value["counts"]["after"]["bytes"] = None  # no file was written
    if outcome.verification is not None:
        value["verification"]["status"] = outcome.status  # which may be "identical", too
    return value


def _of_plan(report: Report | None) -> dict[str, Any]:
    """What the plan says; the same keys where the model could not be planned."""
    if report is None:
        lists = ("folds", "changes", "vanished", "refusals", "advice")
        return {"simplified": (), "counts": None, **dict.fromkeys(lists, ()), "why_nothing": None}
    return {
        "simplified": report.simplified,
        "counts": {"before": report.before, "after": report.after},
        "folds": report.folds,
        "changes": report.changes,
        "vanished": report.vanished,
        "refusals": report.refusals,
        "advice": advice(report),
        "why_nothing": why_nothing(report),
    }


def _plain(value: Any) -> Any:
    """The value in JSON's types: records and mappings as dicts, tuples as lists, numpy's scalars as numbers."""
    if is_dataclass(value):
        return _object(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return str(value)
    if hasattr(value, "item"):  # a numpy scalar, which json does not know
        value = value.item()
    # NaN and Infinity are no JSON: strict parsers refuse the whole document.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _object(record: Any) -> dict[str, Any]:
    # the library returns subclasses, which can do more and say the same
    kind: type = next((parent for parent in type(record).__mro__ if parent in _KEYS), type(record))
    keys = _KEYS[kind].split() if kind in _KEYS else [entry.name for entry in fields(record)]
    result = {}
    for key in keys:
        value = getattr(record, _ATTRIBUTES.get((kind, key), key))
        if (kind, key) in _MEMBERS and value is not None:
            value = dict(zip(_MEMBERS[kind, key], value, strict=True))
        if key == "ops":  # sorted, so that two reports of equal models are equal texts
            value = dict(sorted(value.items()))
        result[key] = _plain(value)
    return result
