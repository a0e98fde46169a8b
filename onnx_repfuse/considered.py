"""What the planner weighed at one tensor: the forms it could be computed by, their prices, and what became of each."""

from __future__ import annotations

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.plan.candidates import Candidate, Entry
from onnx_repfuse.plan.cover import Cover
from onnx_repfuse.plan.lowering import Step, Written
from onnx_repfuse.plan.price import Price
from onnx_repfuse.report.words import clean, plural, quantity

__all__ = ["considered", "looking_through"]

_OPS = {"Shift": "Add of a constant", "Norm": "BatchNormalization", "Mul": "Mul by a constant"}


def considered(cover: Cover, tensor: str) -> list[str]:
    """One line per form of a lifted tensor: operators, multiply-adds, estimated cost, and the outcome."""
    entry, lifted = cover.entries[tensor], cover.lifts[tensor]
    kept = "chosen" if entry.choice is None else "dearer"
    lines = [f"  as it is: {_price(cover, entry.original)} - {kept}"]
    for candidate in dict.fromkeys([entry.choice, *entry.candidates]):
        if candidate is None or (candidate.nodes < 2 and candidate is not entry.choice):
            continue  # the node itself, written anew
        written = cover.write(lifted, candidate)
        if written is None:
            continue
        price = candidate.setup.plus(written.price)
        lines.append(
            f"  {_written(written)} of {', '.join(repr(clean(str(s))) for s in candidate.form.sources)}, in place of "
            f"{plural(candidate.nodes, 'node')}: {_price(cover, price)} - {_outcome(cover, tensor, candidate, price)}"
        )
    for reason, through in dict.fromkeys(
        (found.detail, through) for found, through in cover.inexact.get(tensor, ())
    ):
        where = f"looking through '{clean(through)}'" if through else "as one operator"
        lines.append(f"  {where}: not exact, {clean(reason)}")
    return lines


def looking_through(cover: Cover, tensor: str) -> list[str]:
    """The lifted tensors that are computed from `tensor` and may absorb it."""
    if not cover.regions.is_private(tensor):
        return []
    (reader,) = cover.context.scope.readers[tensor]
    return [t.name for t in reader.outputs if t.name in cover.entries]


def _outcome(cover: Cover, tensor: str, candidate: Candidate, price: Price) -> str:
    entry: Entry = cover.entries[tensor]
    if candidate is entry.choice:
        return "chosen"
    if not cover.allowed(candidate.roles):
        return "ruled out by --skip or --only"
    if tensor in cover.banned:
        return "ruled out: it did not pass verification"
    if price.macs > entry.original.macs:
        return "refused: more multiply-adds"
    if any(now > then for now, then in zip(price[2:], entry.original[2:], strict=True)):
        return "refused: more operators"
    return "not cheaper"


def _price(cover: Cover, price: Price) -> str:
    cost = f"{price.cost / 1e6:.3g} us" if cover.model.name == "ort-cpu" else quantity(price.cost)
    return f"{quantity(price.macs)} MACs, cost {cost}"


def _written(written: Written) -> str:
    return " + ".join(_step(step) for step in written.steps) or "nothing"


def _step(step: Step) -> str:
    if step.view is not None:
        return clean(str(step.view.node.op))
    if step.kernel is None or step.op != "Conv":
        return _OPS.get(step.op, step.op)
    geometry: Geometry = step.kernel.geometry
    op = "ConvTranspose" if geometry.transposed else "Conv" if geometry.channel_axis != -1 else "MatMul"
    size = "x".join(map(str, geometry.kernel))
    groups = f" groups {geometry.groups}" if geometry.groups > 1 else ""
    return f"{op} {size} {geometry.c_in}->{geometry.c_out}{groups}".replace("  ", " ")
