"""What a run did, as plain values. Text, JSON and HTML show one `Report` and compute nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from onnx_repfuse.errors import UsageError
from onnx_repfuse.records.graph_map import GraphMaps
from onnx_repfuse.records.reasons import Reason

if TYPE_CHECKING:
    from onnx_repfuse.records.verdict import Verification

__all__ = [
    "Change",
    "Counts",
    "Flushed",
    "Fold",
    "Kind",
    "NodeRef",
    "Refusal",
    "Report",
    "Simplified",
    "Vanished",
]


class Kind(str, Enum):
    """What a fold absorbed, or what another change is; the names `--skip` and `--only` take."""

    AFFINE = "affine"
    BRANCHES = "branches"
    SEQUENCE = "sequence"
    PAD = "pad"
    POOL = "pool"
    MATMUL = "matmul"
    TRANSPOSE = "transpose"
    CONCAT = "concat"
    COMMUTE = "commute"
    INDEX = "index"
    ACTIVATION = "activation"
    STRIDE = "stride"
    DEAD = "dead"
    PRODUCT = "product"
    # These are changes, not folds.
    FLUSH = "flush"
    CONSTANT = "constant"
    EQUAL = "equal"
    NO_OP = "no-op"
    FROZEN = "frozen"

    # The planner keeps sets of kinds. Enum hashes by `hash(self._name_)` in Python, which is many times as slow.
    __hash__ = str.__hash__

    def __str__(self) -> str:
        return self.value

    @classmethod
    def named(cls, word: str) -> Kind:
        """The kind of this name, in any letters. Raises UsageError, with the nearest name.

        >>> Kind.named("Affine")
        <Kind.AFFINE: 'affine'>
        """
        by_name = {kind.value: kind for kind in cls}
        name = str(word).lower()
        if name in by_name:
            return by_name[name]
        near = difflib.get_close_matches(name, by_name, 1)
        hint = f"did you mean '{near[0]}'?" if near else "--list-kinds shows what there is"
        raise UsageError(f"there is no kind of fold called '{word}'; {hint}")


@dataclass(frozen=True)
class NodeRef:
    """A node as reports and their pictures show it.

    Attributes:
        name: the node's name, or its first output's when it has none.
        op: the op type.
        inputs: names of its non-constant input tensors.
        outputs: names of its output tensors.
        label: the parameters worth showing, e.g. "3x3, 64->64, groups 64, stride 2"; may be empty.
        range_ratio: of a Conv, the range of its weight's widest output channel, divided by the median channel's; None
            of other nodes, and where the weight is not constant or was not written.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str = ""
    range_ratio: float | None = None


@dataclass(frozen=True)
class Fold:
    """Nodes that were replaced by fewer or cheaper ones.

    Attributes:
        output: the tensor whose computation was replaced. Its name survives, unless nothing was created: then its
            consumers read another tensor.
        kind: the main kind; `kinds` are all kinds of what was absorbed.
        absorbed: the original nodes that were replaced, in topological order.
        created: the nodes in their place; none where the output is one of the sources.
        sources: the input tensors of the new nodes.
        scope: "" for the main graph, else a readable path such as "If 'if_1' then_branch".
        macs_before, macs_after: multiply-adds of the two sides, at the sizes the planner assumed.
    """

    output: str
    kind: Kind
    kinds: tuple[Kind, ...]
    absorbed: tuple[NodeRef, ...]
    created: tuple[NodeRef, ...]
    sources: tuple[str, ...]
    scope: str
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class Flushed:
    """Elements of one tensor, too small to show, that became zero.

    Attributes:
        tensor: its name.
        count: how many became zero.
        size: of how many elements.
        largest: the largest magnitude among them.
        bound: the most that any output of a node that reads it changes by, times the largest magnitude of its input if
            `is_times_input`, which is false for a bias.
    """

    tensor: str
    count: int
    size: int
    largest: float
    bound: float
    is_times_input: bool


@dataclass(frozen=True)
class Change:
    """A change that is not a fold: no operator was computed into another.

    Attributes:
        kind: CONSTANT, nodes that computed a constant, which is an initializer now, or an If that always takes one
            branch, which is in its place; EQUAL, a node that computed what another one does; NO_OP, nodes that gave out
            what they read, and were removed; FROZEN, an input that callers could set, and whose initializer is now a
            constant; FLUSH, a weight in which what is too small to show is zero.
        nodes: names of the nodes it is about.
        claim: the sentence that must hold for the result to be right.
        scope: as of `Fold`.
        flushed: the figures of a FLUSH.
    """

    kind: Kind
    nodes: tuple[str, ...]
    claim: str
    scope: str = ""
    flushed: Flushed | None = None


@dataclass(frozen=True)
class Vanished:
    """Tensors of one scope that the original's nodes compute and that the result no longer has.

    Attributes:
        scope: as of `Fold`.
        tensors: their names, in the order in which they were computed.
    """

    scope: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """Linear nodes that were not folded; `message` is a sentence that names them."""

    reason: Reason
    message: str
    nodes: tuple[str, ...]
    scope: str = ""


@dataclass(frozen=True)
class Counts:
    """The size of a model.

    Attributes:
        ops: op type -> number of nodes, over all scopes (subgraphs and functions included).
        parameters: number of elements in initializers and Constant nodes.
        bytes: size of the file and its external data.
        macs: multiply-adds of Conv, ConvTranspose, MatMul, Gemm and their forms in integers, at the assumed sizes;
            None if unknown.
    """

    ops: dict[str, int]
    parameters: int
    bytes: int
    macs: int | None

    @property
    def nodes(self) -> int:
        """Number of nodes of any type."""
        return sum(self.ops.values())


@dataclass(frozen=True)
class Simplified:
    """Another simplifier that ran before planning.

    Attributes:
        peer: its name, "onnxsim" or "onnxslim".
        version: its version; "" if it is not known, since it did not get that far.
        used: whether the result was made from what it wrote. If several are, each ran on what was fused behind the one
            before.
        counts: the size of what it wrote; None if that is no model.
        message: why it was not used, in a clause; "" if it was.
    """

    peer: str
    version: str
    used: bool
    counts: Counts | None
    message: str = ""

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.peer} {self.version}".rstrip()


@dataclass(frozen=True)
class Report:
    """One run over one model.

    Attributes:
        model, output: file names as given; empty for in-memory models and results.
        before, after: the two sizes.
        folds, refusals: what was folded, and what was not and why.
        changes: what else was changed.
        vanished: the tensors that the result no longer has.
        overridable: inputs that have an initializer, so that callers may set them or not.
        simplified: the other simplifiers that ran before planning, by `Options.simplify`.
        verification: None when it was not asked for.
        seconds: stage -> wall time in seconds.
        bench: (median ratio original/fused, low, high) of --bench.
        notes: other sentences for the user.
        maps: all nodes before and after, for a picture of the whole; None where nobody made them.

    >>> small = Counts({"Conv": 1}, parameters=9, bytes=200, macs=None)
    >>> Report("a.onnx", "b.onnx", small, small, (), (), None).after.ops["Conv"]
    1
    """

    model: str
    output: str
    before: Counts
    after: Counts
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    verification: Verification | None
    seconds: dict[str, float] = field(default_factory=dict)
    bench: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    vanished: tuple[Vanished, ...] = ()
    overridable: tuple[str, ...] = ()
    simplified: tuple[Simplified, ...] = ()
    maps: GraphMaps | None = field(default=None, repr=False)
