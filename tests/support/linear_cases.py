"""A product of bfloat16 or float16 matrices by the kernel, held against the reference."""

from __future__ import annotations

import numpy as np

from gemma_cuda.precision import FLOAT64
from gemma_cuda.reference.linear import linear as reference_linear
from tests.support.compare import assert_within_rule
from tests.support.emulated import ROUNDING, Array


def assert_is_product(x: Array, w: Array, y: Array, dtype: str, out: str) -> None:
    """Fails unless y = x · wᵀ, of operands in `dtype` and with a result in `out`, obeys the tolerance rule."""
    exact = reference_linear(x.astype(np.float64), w.astype(np.float64), precision=FLOAT64)
    if out == "float32":
        rounded = summed_one_by_one(x.astype(np.float32), w.astype(np.float32))
    else:
        rounded = reference_linear(x.astype(np.float32), w.astype(np.float32), precision=ROUNDING[dtype])
    assert_within_rule(y, exact, rounded, dtype=out, what=f"linear {x.shape} {w.shape} {dtype} {out}")


def summed_one_by_one(x: Array, w: Array) -> Array:
    """The product with the rounding points of the fast mma: to float32 after every product of a sum.

    BLAS, which the reference is, sums in blocks, so its error grows more slowly with K than that of any mma.
    """
    sums = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        sums += (x[:, k, None] * w[:, k]).astype(np.float32)
    return sums
