"""The tolerance rule of the project.

r is the reference in float64, b the reference with every rounding point in the working dtype, y what is judged:

    max|y - r| <= k * max|b - r| + 2 * max|(r + 0.3 - 0.3) - r|        k = 2, or 3 where the result passes a softcap

The last term, evaluated in the working dtype, is the error of storing r near 0.3. There is no other constant.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def as_float64(array: Any) -> NDArray[np.float64]:
    """float64 copy, same shape, of a NumPy array (bfloat16 included) or a torch tensor."""
    if hasattr(array, "detach"):
        array = array.detach().double().cpu().numpy()
    return np.asarray(array).astype(np.float64)


def rounding_floor(r: Any, dtype: str) -> float:
    """2 * max|(r + 0.3 - 0.3) - r| with the additions rounded to `dtype`."""
    exact = as_float64(r)
    finite = exact[np.isfinite(exact)]
    if finite.size == 0:
        return 0.0
    offset = np.asarray(0.3).astype(DTYPES[dtype])
    rounded = ((finite.astype(DTYPES[dtype]) + offset).astype(DTYPES[dtype]) - offset).astype(DTYPES[dtype])
    return 2.0 * float(np.max(np.abs(rounded.astype(np.float64) - finite)))


def tolerance(r: Any, b: Any, *, dtype: str, softcap: bool = False) -> float:
    """Right-hand side of the rule: what max|y - r| may reach."""
    r, b = as_float64(r), as_float64(b)
    assert r.shape == b.shape, f"reference shapes differ: {r.shape} and {b.shape}"
    finite = np.isfinite(r) & np.isfinite(b)
    rounding = float(np.max(np.abs(b[finite] - r[finite]), initial=0.0))
    return (3.0 if softcap else 2.0) * rounding + rounding_floor(r, dtype)


def violation(y: Any, r: Any, b: Any, *, dtype: str, softcap: bool = False, at: Any = ...) -> str | None:
    """How y breaks the rule against r and b, in words; None if it obeys. Infinities must agree, a NaN in y never does.

    y may be a part of the result, r[at]: the rounding error of b is then still taken over all of r, since the largest
    of a few samples says little.
    """
    y, r, b = as_float64(y), as_float64(r), as_float64(b)
    bound = tolerance(r, b, dtype=dtype, softcap=softcap)
    if np.isnan(r).any():
        return "the reference holds NaN"
    r = r[at]
    if y.shape != r.shape:
        return f"shape {y.shape}, expected {r.shape}"
    if y.size == 0:
        return "empty, nothing was compared"
    nan = np.argwhere(np.isnan(y))
    if nan.size:
        return f"{len(nan)} NaN, the first at {tuple(int(i) for i in nan[0])}"
    if not np.array_equal(np.where(np.isinf(y), y, 0.0), np.where(np.isinf(r), r, 0.0)):
        return "infinities differ"
    finite = np.isfinite(r)
    difference = np.where(finite, np.abs(np.where(finite, y, 0.0) - np.where(finite, r, 0.0)), 0.0)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    if difference[worst] <= bound:
        return None
    return (
        f"|y - r| = {difference[worst]:.3g} at {tuple(int(i) for i in worst)} exceeds {bound:.3g} "
        f"(y = {y[worst]:.6g}, r = {r[worst]:.6g}, {dtype})"
    )
