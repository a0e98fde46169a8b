"""Several folds of a model judged in place, as the pipeline does it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_repfuse.records.verdict import StageVerdict
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.inputs import Feed, FeedSpec, choose_feeds
from onnx_repfuse.verifier.intermediates import MAX_INTERMEDIATE_BYTES, read_intermediates
from onnx_repfuse.verifier.session import Model, open_session


def check_folds(
    model: Model,
    cases: Sequence[FoldCase],
    feed: Feed | None = None,
    seed: int = 0,
    max_bytes: int = MAX_INTERMEDIATE_BYTES,
) -> list[StageVerdict]:
    """One verdict per fold, in order; on the model's first generated input unless a feed is given."""
    if feed is None:
        with open_session(model) as session:
            feed = choose_feeds(session, FeedSpec(seeds=(seed,)))[0].feeds[0]
    wanted = [[*(source.name for source in case.sources), case.output] for case in cases]
    verdicts: dict[int, StageVerdict] = {}
    for batch, intermediates in read_intermediates(model, wanted, feed, max_bytes=max_bytes):
        verdicts.update({index: check_in_place(cases[index], intermediates) for index in batch})
    return [verdicts[index] for index in range(len(cases))]
