"""Matrix product with a Linear's weight, and the operations fused with it."""

from __future__ import annotations

import numpy as np

from ..precision import Array, Precision
from .geglu import geglu
from .logits import logits


def linear(
    x: Array, weight: Array, *, residual: Array | None = None, softcap: float | None = None, precision: Precision
) -> Array:
    """y [M, N] = x [M, K] · weight [N, K]ᵀ, accumulated in the compute dtype and rounded once.

    residual [M, N] is added, and the sum rounded again. With a softcap, y is softcap · tanh(product / softcap) of the
    product before rounding.
    """
    if softcap is not None:
        return logits(x, weight, softcap=softcap, precision=precision)
    y: Array = np.matmul(x, weight.T)
    precision.round_in_place(y)
    if residual is not None:
        y += residual
        precision.round_in_place(y)
    return y


def linear_geglu(x: Array, weight: Array, *, precision: Precision) -> Array:
    """y [M, F] = gelu_tanh(x · gateᵀ) · (x · upᵀ) of weight [2F, K], gate before up; products and y are rounded."""
    both = linear(x, weight, precision=precision)
    features = len(weight) // 2
    return geglu(both[:, :features], both[:, features:], precision=precision)
