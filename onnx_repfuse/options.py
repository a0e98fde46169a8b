"""The choices of a caller of the library."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

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
            where there is a way (BatchNormalization becomes Mul and Add); the report says what stays.
        keep: globs on node names; matching nodes stay as they are. One that matches no node is an error of the run.
        freeze_initializers: treat initializers that are also graph inputs as constants (IR >= 4).
        opset: convert the model to this version of the ONNX operator set first, if it has an older one.
        simplify: let another simplifier that is installed run first, "auto" for whichever gives the faster result. It
            is left out where it fails, where its result is not proved equal, or where it gains nothing.
        level: 2 also converts to the lowest opset that pays, unless `opset` names one, and simplifies as "auto" does,
            unless `simplify` names one; what fails of that is left out. PRelu of several slopes is written as Relu, Mul
            and Add, with which ONNX Runtime is faster.
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
        """Raise UsageError for slips, and bring the values into their declared types."""
        for rule in (
            _check_choices,
            _check_switches,
            _check_numbers,
            _check_kinds,
            _check_words,
            _check_inputs,
        ):
            rule(self)
        if not self.check:
            for name in ("strict", "rtol", "atol", "precision_study"):
                if getattr(self, name) not in (None, False):
                    raise UsageError(
                        f"Options.{name} is about the check, which check=False leaves out: give one of them"
                    )

    def allows(self, kind: Kind) -> bool:
        """Whether folds of this kind are wanted."""
        return kind not in self.skip and (self.only is None or kind in self.only)

    def allows_all(self, kinds: frozenset[Kind]) -> bool:
        """Whether a fold that absorbs all of these kinds is wanted; one of none is reported as `affine`."""
        return all(map(self.allows, kinds or (Kind.AFFINE,)))


def _set(options: Options, name: str, value: object) -> None:
    object.__setattr__(options, name, value)  # it is frozen, but not made yet


def _refused(name: str, wanted: str, value: object) -> UsageError:
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    return UsageError(
        f"Options.{name} is {wanted}, not {shown if len(shown) <= 80 else type(value).__name__}"
    )


def _check_choices(options: Options) -> None:
    for name, choices in (("cost", ("ort-cpu", "macs")), ("simplify", ("onnxsim", "onnxslim", "auto"))):
        value = getattr(options, name)
        if value in choices or (name == "simplify" and value is None):
            continue
        near = difflib.get_close_matches(str(value).lower(), choices, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        listed = ", ".join(f"'{choice}'" for choice in choices)
        raise UsageError(f"Options.{name} is one of {listed}, not {value!r}{hint}")


def _check_switches(options: Options) -> None:
    for name in ("freeze_initializers", "check", "strict", "precision_study", "external"):
        value = getattr(options, name)
        if not (isinstance(value, bool) or (name == "external" and value is None)):
            raise _refused(name, "True or False" + (" (or None)" if name == "external" else ""), value)


def _check_numbers(options: Options) -> None:
    level, opset, threads = options.level, options.opset, options.threads
    wanted = {
        "level": (_is_whole(level, 1) and level <= 2, "1 or 2"),
        "opset": (opset is None or _is_whole(opset, 1), "a whole number > 0"),
        "threads": (_is_whole(threads, 0), "a whole number >= 0"),
        "rtol": (_is_tolerance(options.rtol), "a number >= 0"),
        "atol": (_is_tolerance(options.atol), "a number >= 0"),
    }
    for name, (is_right, words) in wanted.items():
        if not is_right:
            raise UsageError(f"{name} must be {words}, not {getattr(options, name)!r}")


def _is_tolerance(value: object) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return value is None or (is_number and isfinite(value) and value >= 0)  # type: ignore[arg-type,operator]


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _collection(options: Options, name: str) -> list[Any]:
    value = getattr(options, name)
    if isinstance(value, str):
        # keep="/head/*" would be taken for the globs "/", "h", ... and "*", which keeps every node.
        raise UsageError(f"Options.{name} takes a collection, not the text '{value}': write ('{value}',)")
    if not isinstance(value, Iterable):
        raise _refused(name, "a collection", value)
    return list(value)


def _check_kinds(options: Options) -> None:
    for name in ("skip", "only"):  # words will do, too
        if getattr(options, name) is not None:
            _set(options, name, frozenset(map(Kind.named, _collection(options, name))))
    if options.only is not None and not options.only:
        raise UsageError("Options.only names no kind of fold: None allows all")
    both = sorted(str(kind) for kind in options.skip & (options.only or frozenset()))
    if both:
        raise UsageError(f"Options.skip and Options.only both name '{both[0]}'")


def _check_words(options: Options) -> None:
    for name, what in (("avoid", "operators, as ('Sum',)"), ("keep", "globs on node names, as ('/head/*',)")):
        words = _collection(options, name)
        for word in words:
            if not isinstance(word, str) or not word:
                raise _refused(name, f"a collection of {what}", words)
    _set(options, "avoid", frozenset(options.avoid))
    _set(options, "keep", tuple(options.keep))
    _set(
        options, "custom_ops", tuple(_path("custom_ops", file) for file in _collection(options, "custom_ops"))
    )
    if options.provider is not None and not (isinstance(options.provider, str) and options.provider):
        raise _refused("provider", "the name of an execution provider", options.provider)


def _path(name: str, file: object) -> Path:
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise UsageError(f"Options.{name} takes files, and {type(file).__name__} is no path")
    return Path(file)


def _check_inputs(options: Options) -> None:
    for name in ("input_shapes", "overwrite_input_shapes"):
        shapes = getattr(options, name)
        wanted = "a dict, input name -> shape, as {'input': (1, 3, 224, 224)}"
        if not isinstance(shapes, Mapping):
            raise _refused(name, wanted, shapes)
        for shape in shapes.values():
            if (
                isinstance(shape, str)
                or not isinstance(shape, Sequence)
                or not all(_is_whole(n, 0) for n in shape)
            ):
                raise _refused(name, wanted, shapes)
        _set(options, name, {str(key): tuple(map(int, shape)) for key, shape in shapes.items()})
    _set(options, "input_data", tuple(map(_named_file, _collection(options, "input_data"))))


def _named_file(entry: object) -> tuple[str | None, Path]:
    is_pair = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
    if not is_pair or not isinstance(entry[0], str | None) or not isinstance(entry[1], str | os.PathLike):  # type: ignore[index]
        raise UsageError(
            "Options.input_data takes pairs of an input's name (or None) and a file, as ((None, 'batch.npz'),); "
            "`verify(feeds=...)` takes arrays"
        )
    return entry[0], _path("input_data", entry[1])  # type: ignore[index]
