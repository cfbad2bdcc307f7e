"""The tolerance rule of gemma_cuda/bench/tolerance.py as an assertion, and the error figures that tables show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_cuda.bench.tolerance import DTYPES, as_float64, rounding_floor, tolerance, violation

__all__ = ["DTYPES", "ErrorFigure", "as_float64", "assert_within_rule", "error", "rounding_floor", "tolerance"]


@dataclass(frozen=True)
class ErrorFigure:
    """Largest and root-mean-square absolute difference of two arrays of one shape."""

    max: float
    rms: float


def error(y: Any, r: Any) -> ErrorFigure:
    """ErrorFigure of y against r; both must be finite and of one shape."""
    y, r = as_float64(y), as_float64(r)
    assert y.shape == r.shape, f"shapes differ: {y.shape} and {r.shape}"
    assert y.size > 0, "there is nothing to compare"
    assert np.isfinite(y).all() and np.isfinite(r).all(), "an error figure needs finite values"
    difference = np.abs(y - r)
    return ErrorFigure(float(difference.max()), float(np.sqrt(np.mean(difference**2))))


def assert_within_rule(y: Any, r: Any, b: Any, *, what: str = "result", **options: Any) -> None:
    """Fails unless y obeys the rule against r and b; see `violation`."""
    broken = violation(y, r, b, **options)
    assert broken is None, f"{what}: {broken}"
