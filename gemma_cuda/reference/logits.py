"""The language-model head."""

from __future__ import annotations

import numpy as np

from ..precision import Array, Precision


def logits(hidden: Array, weight: Array, *, softcap: float | None, precision: Precision) -> Array:
    """z [M, V] = hidden [M, E] · weight [V, E]ᵀ, capped to softcap · tanh(z / softcap).

    Not rounded: logits are float32 or wider.
    """
    z: Array = np.matmul(hidden, weight.T)
    if softcap is not None:
        cap = z.dtype.type(softcap)
        z /= cap
        np.tanh(z, out=z)
        z *= cap
    return z
