"""Whether the planner finds the cheapest result: small regions, searched exhaustively by the same laws and prices.

    python -m tests.optimum models ../shared/zoo --random 2000 --seed 1

takes every region of at most 8 nodes (`planner.search.regions`), and what such regions make together, out of the models
of these folders and of random graphs, each as a model of its own, once for each structure. From there it goes on by
single steps: one tensor computed by one form (all that the laws allow, whatever they cost, none pruned), one shared
tensor absorbed, or one of the rewrites beside the search; and from all that this gives, the cheapest first. A gap is a
result that is cheaper than the planner's, and in which neither multiply-adds nor, where these are equal, nodes rise.

It prints each gap with the steps that lead there, and then exits with code 1. It is slow, and plain on purpose: the
planner prunes, shares and remembers, this does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from onnx import helper

from onnx_repfuse import RepfuseError
from onnx_repfuse.graph.edit_points import present_proto
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner.cover_scope import cover_scope
from onnx_repfuse.planner.search.cover import Cover
from tests.optimum_search import UNCHECKED, Gap, Tally, examine, initializers, operators_of
from tests.random_graphs import Recipe, build, recipes

MAX_NODES = 8
MAX_PARTS = 8  # of random graphs, each as many as regions are asked for


def regions(scope: Scope) -> Iterator[onnx.ModelProto]:
    """Each region of a scope that is small enough, and each small group of regions that share tensors, as a model."""
    cover = cover_scope(scope, UNCHECKED)
    members: dict[str, list[str]] = {}
    for name in cover.lifts:
        members.setdefault(cover.regions.roots[name], []).append(name)
    for names in (*members.values(), *_groups(cover, members)):
        nodes = {id(node): node for name in names for node in _nodes_of(cover.lifts[name])}
        if 2 <= len(nodes) <= MAX_NODES:
            model = _as_model(scope, [node for node in scope.nodes if id(node) in nodes])
            if model is not None:
                yield model


def _nodes_of(lifted: LinearOp) -> list[gs.Node]:
    return [*lifted.inner_nodes, lifted.node]


def _groups(cover: Cover, members: dict[str, list[str]]) -> Iterator[list[str]]:
    """The tensors of regions that read one another, where there are several."""
    group = {root: [root] for root in members}
    for root, names in members.items():
        for name in names:
            for operand in cover.lifts[name].operands:
                other = cover.regions.roots.get(operand.name)
                if other is not None and group[other] is not group[root]:
                    group[root] += group[other]
                    for one in group[other]:
                        group[one] = group[root]
    for joined in {id(one): one for one in group.values()}.values():
        if len(joined) > 1:
            yield [name for root in joined for name in members[root]]


def _as_model(scope: Scope, nodes: Sequence[gs.Node]) -> onnx.ModelProto | None:
    """Nodes as a model: what else they read is an input; None where the type of an input is not known.

    Several inputs have the sizes that the planner assumes: symbols of their own would be assumed to be equal.
    """
    made = {tensor.name for node in nodes for tensor in node.outputs}
    read = dict.fromkeys(tensor.name for node in nodes for tensor in node.inputs if tensor.name)
    inside = {id(node) for node in nodes}
    outputs = [
        name
        for node in nodes
        for name in (tensor.name for tensor in node.outputs)
        if name
        and (scope.is_seen(name) or any(id(one) not in inside for one in scope.consumers.get(name, ())))
    ]
    inputs = [name for name in read if name not in made and scope.const(name) is None]
    if any(scope.data_type(name) is None or scope.shape(name) is None for name in inputs):
        return None
    graph = helper.make_graph(
        [present_proto(scope, node) for node in nodes],
        "region",
        [_value(scope, name, is_sized=len(inputs) > 1) for name in inputs],
        [_value(scope, name) for name in dict.fromkeys(outputs)],
        list(initializers(scope, read)),
    )
    opset = helper.make_opsetid("", scope.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _value(scope: Scope, name: str, *, is_sized: bool = False) -> onnx.ValueInfoProto:
    """A tensor with its shape; sizes that are not known are one symbol where the planner assumes the same size.

    Or they are that size, if it `is_sized`.
    """
    shape, assumed = scope.shape(name), scope.assumed.get(name)
    dims: list[int | str] | None = None
    if shape is not None:
        guess = assumed if assumed is not None and len(assumed) == len(shape) else (0,) * len(shape)
        symbols = [size if is_sized and size else f"d{axis}_{size}" for axis, size in enumerate(guess)]
        dims = [symbol if dim is None else dim for dim, symbol in zip(shape, symbols, strict=True)]
    return helper.make_tensor_value_info(name, scope.data_type(name) or onnx.TensorProto.FLOAT, dims)


def regions_of_files(folders: Iterable[Path]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The regions of all models of folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*.onnx")):
            with suppress(RepfuseError), Document.open(path) as document:
                for scope in read_scopes(document):
                    yield from ((path.name, region) for region in regions(scope))


def random_regions(count: int, seed: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The regions of random graphs: several times `count` graphs, as many regions are alike."""
    for part in range(MAX_PARTS):
        for number, recipe in enumerate(_drawn(max(1, count), seed + part)):
            for scope in read_scopes(Document.from_model(build(recipe)[0])):
                for region in regions(scope):
                    yield f"random {seed + part}.{number}", region


def _drawn(count: int, seed: int) -> list[Recipe]:
    drawn: list[Recipe] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes)
    def draw(recipe: Recipe) -> None:
        drawn.append(recipe)

    draw()
    return drawn


def told(label: str, gap: Gap) -> str:
    """A gap in words."""
    return "\n".join(
        [
            f"GAP in {label}: {gap.planned.cost / 1e6:.1f} -> {gap.best.cost / 1e6:.1f} us, "
            f"macs {gap.planned.macs} -> {gap.best.macs}, nodes {gap.planned.nodes:g} -> {gap.best.nodes:g}",
            f"    {operators_of(gap.region)} => {gap.result}",
            *(f"    {step}" for step in gap.steps),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="regions of random graphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each region, at most")
    parser.add_argument("--save", type=Path, help="a folder for the regions that have gaps")
    arguments = parser.parse_args()
    tally, start, of_files = Tally(), time.perf_counter(), 0
    try:
        for label, region in regions_of_files(arguments.folders):
            gap = examine(region, tally, label, arguments.seconds)
            _report(gap, label, tally, arguments.save)
            of_files = tally.regions
        for label, region in random_regions(arguments.random, arguments.seed):
            if tally.regions - of_files >= arguments.random:
                break
            gap = examine(region, tally, label, arguments.seconds)
            _report(gap, label, tally, arguments.save)
    except KeyboardInterrupt:  # it takes hours, and may be ended at any time
        print("ended early")
    print(
        f"{of_files} regions of files, {tally.regions - of_files} of random graphs, {tally.states} states, "
        f"{tally.cut} searches cut short, {len(tally.gaps)} gaps, {time.perf_counter() - start:.0f} s"
    )
    return int(bool(tally.gaps))


def _report(gap: Gap | None, label: str, tally: Tally, folder: Path | None) -> None:
    if gap is None:
        return
    print(told(label, gap), flush=True)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        onnx.save(gap.region, folder / f"gap{len(tally.gaps)}.onnx")


if __name__ == "__main__":
    raise SystemExit(main())
