"""numpy's matrix products on one thread, whoever calls us.

Those of proofs are small, and on a busy machine the threads of OpenBLAS, which wait by spinning, took twice the time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["one_blas_thread"]

# Whoever says how many threads he wants has them. The command line says 1 before numpy is imported.
_SAYS_HOW_MANY = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_lock = threading.Lock()
# one for each block that is being run; the limit is the process's, so the last one lifts it
_limits: list[Any] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the BLAS of numpy to one thread in the block, unless the environment says how many it has."""
    if any(name in os.environ for name in _SAYS_HOW_MANY):
        yield
        return
    from threadpoolctl import threadpool_limits

    with _lock:
        _limits.append(None if _limits else threadpool_limits(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            if len(_limits) > 1:
                _limits.pop()
            else:
                _limits.pop().restore_original_limits()
