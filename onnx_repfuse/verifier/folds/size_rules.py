"""How the sizes of a fold's further sources follow from those of its first.

A fold that adds a pooled tensor to a strided convolution reads both, and their sizes must fit. Nothing in the fold's
models says how. Where the file does, its rules are taken; else rules are tried: some that are common, and those of the
windows in the fold's own nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx

from onnx_repfuse.verifier.folds.fold_case import FoldCase, Source, Window

__all__ = [
    "EQUAL",
    "Rules",
    "SizeRule",
    "apply",
    "candidate_rules",
    "has_sizes_in_file",
    "holds_in_file",
    "rules_of_file",
    "shared_rules",
]

_MAX_WINDOW_RULES = 48


class SizeRule(NamedTuple):
    """(factor * size + offset) // divisor."""

    factor: int = 1
    offset: int = 0
    divisor: int = 1

    def __call__(self, size: int) -> int:
        return (self.factor * size + self.offset) // self.divisor

    def after(self, first: SizeRule) -> SizeRule:
        """This rule of the result of `first`; exact if this one's factor or the other's divisor is 1."""
        return SizeRule(
            self.factor * first.factor,
            self.factor * first.offset + self.offset * first.divisor,
            self.divisor * first.divisor,
        )


AxisRules = tuple[SizeRule, ...]  # one per axis, from the first; the last holds for all further axes
Rules = tuple[AxisRules, ...]  # per source
EQUAL: AxisRules = (SizeRule(),)
# What strides, paddings and resizing between the sources of one fold lead to.
_USUAL: tuple[AxisRules, ...] = tuple(
    (SizeRule(*rule),)
    for rule in [
        (1, 0, 1), (1, 1, 2), (1, 0, 2), (2, 0, 1), (1, -2, 1), (1, 2, 1), (1, -1, 2), (1, -1, 1),
        (1, 1, 1), (1, 3, 4), (4, 0, 1), (1, -4, 1), (1, 4, 1), (2, -1, 1), (2, 1, 1), (1, 2, 3),
    ]
)  # fmt: skip


def apply(rules: AxisRules, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of a source from those of the first, axis by axis."""
    return tuple(rule(size) for rule, size in zip(_padded(rules, len(sizes)), sizes, strict=True))


def rules_of_file(case: FoldCase) -> Rules | None:
    """The rules that hold in the file, where all sizes of all sources follow from the same axes of one tensor."""
    if len(case.sources) < 2:
        return None
    windows = [_windows_of(case, source) for source in case.sources]
    first = windows[0]
    rules: list[AxisRules] = [EQUAL]
    for own in windows[1:]:
        axes = [(w.tensor, w.axis) for w in own]
        if not first or axes != [(w.tensor, w.axis) for w in first]:
            return None
        pairs = zip(own, first, strict=True)
        rules.append(tuple(_of_window(w).after(_inverse(_of_window(one))) for w, one in pairs))
    return tuple(rules)


def _windows_of(case: FoldCase, source: Source) -> list[Window]:
    """Of each free axis of a source; [] if one is not known."""
    found = case.behind.get(source.name, ())
    if len(found) != len(source.dims):
        return []
    windows = [found[axis] for axis in source.space]
    return [] if None in windows else [window for window in windows if window is not None]


def _of_window(window: Window) -> SizeRule:
    return SizeRule(1, window.slack + window.stride, window.stride)


def shared_rules(case: FoldCase) -> Iterator[Rules]:
    """Rules to try for the sizes of several sources: those of the file, then one rule for all but the first."""
    sources, known = len(case.sources), rules_of_file(case)
    if known is not None:
        yield known
    for rule in (*_USUAL, *_of_windows(case)) if sources > 1 else (EQUAL,):
        yield (EQUAL, *(rule,) * (sources - 1))[:sources]  # constants alone have no source


def candidate_rules(case: FoldCase) -> Iterator[Rules]:
    """More rules to try: all sizes equal, one source by another rule, then `shared_rules`, the file's first of all."""
    sources = len(case.sources)
    equal = (EQUAL,) * sources
    known = rules_of_file(case)
    if known is not None:
        yield known
    yield equal
    further = (*_USUAL[1:], *_of_windows(case)) if sources > 1 else ()
    for rules, position in itertools.product(further, range(1, sources)):
        yield (*equal[:position], rules, *equal[position + 1 :])
    yield from shared_rules(case)


def has_sizes_in_file(case: FoldCase) -> bool:
    """Whether the file proves sizes of sources that take any size in the models of the fold."""
    return any(
        own is None and proved is not None
        for source in case.sources
        for own, proved in zip(source.dims[1:], case.proved.get(source.name, ())[1:], strict=False)
    )


def holds_in_file(case: FoldCase, rules: Rules) -> bool:
    """Whether rules lead to the sizes that the file proves of the sources: trying others takes time."""

    def sizes(source: Source) -> tuple[int | None, ...]:
        shape = case.proved.get(source.name, ())
        return tuple(shape[axis] for axis in source.space) if len(shape) == len(source.dims) else ()

    if not case.sources:
        return True
    first = sizes(case.sources[0])
    return all(
        None in (size, real) or rule(size or 0) == real
        for source, own in zip(case.sources[1:], rules[1:], strict=False)
        for rule, size, real in zip(_padded(own, len(first)), first, sizes(source), strict=False)
    )


def _of_windows(case: FoldCase) -> tuple[AxisRules, ...]:
    """The sizes that the windows of the nodes before make of a size, and the sizes they need for it; also by twos."""
    forth = list(dict.fromkeys(_window_rules(case.before)))
    back = [tuple(_inverse(rule) for rule in rules) for rules in forth]
    twice = [
        _after(second, first)
        for rules in (forth, back)
        for first, second in itertools.product(rules, repeat=2)
    ]
    found = dict.fromkeys((*forth, *back, *twice))
    return tuple(rules for rules in found if rules not in _USUAL)[:_MAX_WINDOW_RULES]


def _window_rules(model: onnx.ModelProto) -> Iterator[AxisRules]:
    """Of each Conv and pool, how its output's sizes follow from its input's."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        ints = {a.name: tuple(a.ints) for a in node.attribute if a.type == onnx.AttributeProto.INTS}
        kernel = ints.get("kernel_shape")
        if kernel is None and node.op_type == "Conv":  # the attribute may be left out
            kernel = shapes.get(node.input[1], ())[2:]
        if kernel and node.op_type != "ConvTranspose":
            yield tuple(_rules_of_window(node, kernel, ints))


def _rules_of_window(
    node: onnx.NodeProto, kernel: tuple[int, ...], ints: Mapping[str, tuple[int, ...]]
) -> Iterator[SizeRule]:
    """The rule of each axis: floor((size + padding - extent) / stride) + 1, or ceil(size / stride) with SAME."""
    modes = {a.name: a.s.decode() for a in node.attribute if a.type == onnx.AttributeProto.STRING}
    pads_to_same = modes.get("auto_pad", "NOTSET").startswith("SAME")
    rank = len(kernel)
    strides = ints.get("strides") or (1,) * rank
    dilations = ints.get("dilations") or (1,) * rank
    pads = ints.get("pads") or (0,) * 2 * rank
    for axis, (size, stride, step) in enumerate(zip(kernel, strides, dilations, strict=False)):
        extent = (size - 1) * step + 1
        padding = pads[axis] + pads[axis + rank]
        yield SizeRule(1, stride - 1 if pads_to_same else padding - extent + stride, stride)


def _inverse(rule: SizeRule) -> SizeRule:
    """The smallest size of which a window's rule makes a given one."""
    return SizeRule(rule.divisor, -rule.offset, 1)


def _after(second: AxisRules, first: AxisRules) -> AxisRules:
    rank = max(len(first), len(second))
    pairs = zip(_padded(second, rank), _padded(first, rank), strict=True)
    return tuple(later.after(earlier) for later, earlier in pairs)


def _padded(rules: AxisRules, count: int) -> AxisRules:
    return (*rules, *rules[-1:] * count)[:count]
