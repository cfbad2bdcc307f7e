"""Runs independent blocks of rows on all cores: NumPy's ufuncs release the GIL, but each uses one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

# A block of float32 rows that stays in a core's second-level cache while several ufuncs pass over it.
_BLOCK_ELEMENTS = 1 << 16


def thread_count() -> int:
    """How many threads this process may use: its CPU affinity, capped by OMP_NUM_THREADS as BLAS is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdecimal() else cores


def for_row_blocks(
    rows: int, row_elements: int, body: Callable[[slice], None], *, block_elements: int = _BLOCK_ELEMENTS
) -> None:
    """Calls body(slice) for consecutive blocks of rows that cover `rows`, several at a time."""
    block = max(1, block_elements // max(1, row_elements))
    if rows <= block or thread_count() == 1:
        for start in range(0, rows, block):
            body(slice(start, min(start + block, rows)))
        return
    slices = [slice(start, min(start + block, rows)) for start in range(0, rows, block)]
    for _ in _pool(os.getpid()).map(body, slices):
        pass


@cache
def _pool(pid: int) -> ThreadPoolExecutor:  # keyed by process: threads do not survive a fork
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="gemma-rows")
