"""How much the rounding of tensor cores changes results: python -m benchmarks.mma_rounding

linear and attention, of the sizes of a layer of Gemma 3 270M and normal operands in bfloat16, on the emulator with each
rounding of mma beside the fast one. Says how many results have the same bits, and how far apart the others are: in
units in the last place of the result's type at the largest magnitude among the results of a row, so that results near
zero, where terms cancel, do not count as far apart. Of a product in float32 also the error, as a multiple of that of
the fast one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from gemma_cuda.device.emulator.device import Emulator, MmaRounding
from gemma_cuda.ops.attention import attention
from gemma_cuda.ops.linear import linear

Array = np.ndarray[Any, Any]
ROWS, HIDDEN, FEATURES, TOKENS, HEADS, HEAD_DIM = 64, 640, 2048, 512, 4, 256
ROUNDINGS: tuple[MmaRounding, ...] = ("ampere", "hopper")


def operands() -> tuple[Array, Array]:
    """x [64, 2048] and w [640, 2048]."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, FEATURES)).astype(ml_dtypes.bfloat16) for n in (ROWS, HIDDEN))
    return x, w


def products(device: Emulator, out_dtype: Any) -> Array:
    """x · wᵀ."""
    return linear(*operands(), device=device, out_dtype=out_dtype)


def attended(device: Emulator) -> Array:
    """Causal attention of 4 heads × 512 tokens × 256 over one KV head."""
    rng = np.random.default_rng(1)
    q = (2 * rng.standard_normal((TOKENS, HEADS, HEAD_DIM))).astype(ml_dtypes.bfloat16)
    k, v = (rng.standard_normal((1, TOKENS, 1, HEAD_DIM)).astype(ml_dtypes.bfloat16) for _ in range(2))
    masks = {"key_begin": np.zeros(TOKENS, np.int32), "key_end": 1 + np.arange(TOKENS, dtype=np.int32)}
    cu_seqlens = np.array([0, TOKENS], np.int32)
    options: dict[str, Any] = {"scale": HEAD_DIM**-0.5, "softcap": None, "bias": None}
    return attention(q, k, v, cu_seqlens=cu_seqlens, device=device, **masks, **options).reshape(TOKENS * HEADS, -1)


CASES: dict[str, Callable[[Emulator], Array]] = {
    "linear, float32": lambda device: products(device, np.float32),
    "linear, bfloat16": lambda device: products(device, ml_dtypes.bfloat16),
    "attention, bfloat16": attended,
}


def difference(ours: Array, fast: Array) -> tuple[float, float]:
    """(share of equal bits, largest distance in units in the last place of the row's largest magnitude)."""
    bits = f"u{fast.dtype.itemsize}"
    same = float((ours.view(bits) == fast.view(bits)).mean())
    top = np.abs(fast.astype(np.float64)).max(axis=1, keepdims=True)
    ulp = 2.0 ** (np.floor(np.log2(top)) - (23 if fast.dtype == np.float32 else 7))
    return same, float((np.abs(ours.astype(np.float64) - fast.astype(np.float64)) / ulp).max())


def root_mean_square_error(y: Array) -> float:
    """Of a product, to the one in float64."""
    x, w = (of.astype(np.float64) for of in operands())
    return float(np.sqrt(np.mean((y - x @ w.T) ** 2)))


def main() -> None:
    for name, run in CASES.items():
        fast = run(Emulator())
        for mma in ROUNDINGS:
            ours = run(Emulator(mma=mma))
            same, ulps = difference(ours, fast)
            line = f"{name:20} {mma:7} {same:7.2%} have the bits of fast, the others are at most {ulps:.1f} ulp apart"
            if ours.dtype == np.float32:
                line += f"; error {root_mean_square_error(ours) / root_mean_square_error(fast):.2f} × fast's"
            print(line)


if __name__ == "__main__":
    main()
