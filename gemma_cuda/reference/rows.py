"""Row blocks for ops that pass over their rows with several ufuncs."""

from __future__ import annotations

from collections.abc import Callable

from ..host import threads

# A block of float32 rows that stays in a core's second-level cache while several ufuncs pass over it.
_BLOCK_ELEMENTS = 1 << 16


def for_row_blocks(rows: int, row_elements: int, body: Callable[[slice], None]) -> None:
    """Calls body(slice) for blocks of rows of `row_elements` each, on all cores."""
    threads.for_row_blocks(rows, max(1, _BLOCK_ELEMENTS // max(1, row_elements)), body)
