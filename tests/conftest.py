"""What every test starts from: the same random numbers on every run and in any order of tests; texts have no width.

And what would take a tenth of the suite's time while it proves nothing is done once, or left out.
"""

import copy
import gc
import importlib
import os
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("deterministic")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # where a test imports onnxruntime itself
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers, and lines would be wrapped
# A run limits numpy to one thread if nobody says how many it has, and looks for numpy's libraries to do so.
threadpool_limits(limits=1, user_api="blas")
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# A run waits three times for the disk, thousands of times in all. What for, a loss of power, no test can see.
os.fsync = lambda descriptor: None

# Modules that hold a stream of random numbers for all who import them.
_SHARED = ("tests.parts", "tests.bounded")
_first_states: dict[str, Any] = {}


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Let what a module draws while it is imported not depend on those imported before."""
    if isinstance(collector, pytest.Module):
        for name in _SHARED:
            _begin_again(importlib.import_module(name))


def pytest_collection_finish() -> None:
    """Let no search for garbage go through the thousands of tests, which all stay."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the streams of random numbers anew, so that no test depends on those that ran before it."""
    for module in (getattr(item, "module", None), *map(sys.modules.get, _SHARED)):
        _begin_again(module)


def _begin_again(module: Any) -> None:
    generator = getattr(module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = copy.deepcopy(_first_states.setdefault(module.__name__, copy.deepcopy(bits.state)))
