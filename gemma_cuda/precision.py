"""Precisions of the reference: the dtype of its arithmetic and the dtype that it rounds to."""

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
    """Arithmetic in `compute`; each declared rounding point rounds values to `working`, as a kernel's store does."""

    name: str
    compute: np.dtype[Any]
    working: np.dtype[Any] | None = None

    def round(self, x: Array) -> Array:
        """x rounded to the working dtype, stored in its own dtype as before; x itself without a working dtype."""
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
PRECISIONS = {p.name: p for p in (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)}


def precision(dtype: str) -> Precision:
    """The Precision of a whole model: "auto" is float32; InputError for float16."""
    if dtype == "float16":
        raise InputError(
            "dtype float16 is refused for a whole model: Gemma's residual stream exceeds 65504 and overflows; "
            "use bfloat16 or float32"
        )
    return FLOAT32 if dtype == "auto" else PRECISIONS[dtype]
