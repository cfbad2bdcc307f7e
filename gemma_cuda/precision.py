"""What the reference computes in, and where it rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True)
class Precision:
    """Arithmetic in `compute`.

    At each declared rounding point values pass through `working`, as a kernel's stores do.
    """

    name: str
    compute: np.dtype[Any]
    working: np.dtype[Any] | None = None

    def round(self, x: Array) -> Array:
        """x rounded to the working dtype, still stored in its own dtype; x itself where nothing rounds."""
        return x if self.working is None else x.astype(self.working).astype(x.dtype)

    def round_in_place(self, x: Array) -> None:
        """Rounds the values of x to the working dtype."""
        if self.working is not None:
            x[...] = x.astype(self.working)


FLOAT64 = Precision("float64", np.dtype(np.float64))
FLOAT32 = Precision("float32", np.dtype(np.float32))
BFLOAT16 = Precision("bfloat16", np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
# For single ops only: a whole Gemma overflows float16 (see Gemma.from_pretrained).
FLOAT16 = Precision("float16", np.dtype(np.float32), np.dtype(np.float16))


def precision(dtype: str) -> Precision:
    """The whole-model Precision of a dtype name.

    Float32, float64 (the oracle) or bfloat16 (float32 with a kernel's rounding points).
    """
    if dtype in ("auto", "float32"):
        return FLOAT32
    if dtype == "float64":
        return FLOAT64
    if dtype == "bfloat16":
        return BFLOAT16
    if dtype == "float16":
        raise InputError(
            "dtype float16 is refused for a whole model: Gemma's residual stream exceeds 65504 and overflows; "
            "use bfloat16 or float32"
        )
    raise InputError(f"dtype is {dtype!r}, expected auto, float32, float64 or bfloat16")
