"""numpy's BLAS works on one thread while a model is proved, and on as many as before afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnx_repfuse import fuse
from onnx_repfuse.pipeline import blas_threads
from tests.build import Net


def threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(("environment", "inside"), [({}, {1}), ({"OPENBLAS_NUM_THREADS": "2"}, {2})])
def test_one_thread_unless_the_environment_says_how_many(
    environment: dict[str, str], inside: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in blas_threads._SAYS_HOW_MANY:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    net, seen = Net(2), []
    model = net.model(net.bn(net.conv("x", 2, 2, 1), 2))
    with threadpool_limits(limits=2, user_api="blas"):
        fuse(model, progress=lambda *_: seen.append(threads()))
        assert threads() == {2}
    assert seen
    assert all(one == inside for one in seen)


def test_the_last_of_several_gives_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in blas_threads._SAYS_HOW_MANY:
        monkeypatch.delenv(name, raising=False)
    first, second = blas_threads.one_blas_thread(), blas_threads.one_blas_thread()
    with threadpool_limits(limits=2, user_api="blas"):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}
