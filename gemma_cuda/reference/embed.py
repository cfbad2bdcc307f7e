"""Token embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..formats.checkpoint import StoredTable
from ..precision import Array, Precision


def embed(ids: NDArray[np.int64], table: Array | StoredTable, *, scale: float, precision: Precision) -> Array:
    """The layer-0 input x [N, E] = table[ids] · scale, of ids [N] and a table [V, E] in memory or still in its file.

    scale is sqrt(E), rounded to the working dtype first as HuggingFace does (a bfloat16 Gemma with E = 3072 multiplies
    by 55.5, not 55.4256); the product is rounded again.
    """
    rows: Array = table[ids] if isinstance(table, np.ndarray) else table.gather(ids)
    x = precision.round(rows.astype(precision.compute, copy=False))
    rounded = precision.round(precision.compute.type(scale).reshape(1))
    return precision.round(x * rounded)
