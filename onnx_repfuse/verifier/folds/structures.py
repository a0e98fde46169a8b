"""Folds of one structure: equal nodes, attributes and kernel sizes, other weights. They share sessions and sizes.

A network has many folds and few structures. The weights of a fold are inputs of its sessions, so that one session of
each side runs all folds of a structure, and no weight is serialized, parsed or copied for it. The kernels that run are
the same; that weights are constants in the result is for the comparison of whole models.

What depends on the structure alone is proved by the first fold of it: how sizes, strides and padding meet, which sizes
several sources have, and that the oracle reads the nodes as the runtime does. What depends on the weights is proved of
every fold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.fold_case import FoldCase, total_stride
from onnx_repfuse.verifier.folds.probe_sizes import MOST_REMAINDERS, sizes_of_border
from onnx_repfuse.verifier.folds.size_rules import Rules, holds_in_file, rules_of_file
from onnx_repfuse.verifier.session import Session, open_session

__all__ = ["FoldSession", "Structures"]

_MOST_SESSIONS = 64  # open at once: a model may have thousands of folds that are all different


class _Proved(NamedTuple):
    """What a fold has passed with: how its sources' sizes follow from each other, and the small sizes it was tried at.

    A fold of many weights is tried at fewer sizes, which is no proof for one of fewer weights.
    """

    rules: Rules
    sizes: frozenset[tuple[int, ...]]


@dataclass(frozen=True)
class FoldSession:
    """One side of a fold, ready to run."""

    session: Session
    names: Mapping[str, str]  # of its tensors -> those of the session
    weights: Mapping[str, Array]  # by the session's names

    @property
    def backend(self) -> str:
        """ "onnxruntime" or "reference"."""
        return self.session.backend

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. Raises DoesNotRun."""
        inputs = {self.names[name]: value for name, value in feed.items() if name in self.names}
        values = self.session.run({**inputs, **self.weights})
        own = {there: here for here, there in self.names.items()}
        return {own[name]: value for name, value in values.items()}


@dataclass
class Structures:
    """What the folds of one run have in common.

    Attributes:
        runtime: how folds are run.
    """

    runtime: Runtime = DEFAULT_RUNTIME
    _sessions: OrderedDict[bytes, Session] = field(default_factory=OrderedDict)
    _proved: dict[object, _Proved] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # folds are probed and compared in place in two threads

    def open(self, case: FoldCase, model: onnx.ModelProto) -> FoldSession:
        """A session for `before` or `after`, opened anew only for a structure that is new. Raises DoesNotRun."""
        given = case.side(model).anonymous
        with self._lock:
            session = self._sessions.get(given.key)
            if session is None:
                session = self._sessions[given.key] = open_session(given.key, self.runtime)
                if len(self._sessions) > _MOST_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(given.key)
        return FoldSession(session, given.names, given.weights)

    def proved_rules(self, case: FoldCase) -> Rules | None:
        """How sizes of the sources follow from each other, if a fold of this structure has passed with them.

        None in half precision, where rounding hides more: an input that is left out may be the one that shows a fault.
        """
        if case.float_format.is_half:
            return None
        proved = self._proved.get(case.structure)
        if proved is None or not proved.sizes >= sizes_of_border(case) or _has_many_remainders(case):
            return None
        rules = proved.rules
        if not holds_in_file(case, rules):
            return None
        return rules if rules_of_file(case) in (None, rules) else None

    def note_proved(self, case: FoldCase, rules: Rules) -> None:
        """Remember that all stimuli were tried on a fold of this structure, and passed."""
        proved = self._proved.get(case.structure)
        sizes = sizes_of_border(case)
        if proved is None or sizes > proved.sizes:
            self._proved[case.structure] = _Proved(rules, sizes)


def _has_many_remainders(case: FoldCase) -> bool:
    """Whether strides leave more remainders than a later fold is tried at, and on them depends what padding is read."""
    return case.pads and total_stride(case) > MOST_REMAINDERS
