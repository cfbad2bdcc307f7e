"""One call of an op that is timed or counted, and how its output is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device.protocol import Array, Device
from ..precision import BFLOAT16, FLOAT32, FLOAT64, Precision
from .tolerance import violation

_CHECKED_ROWS = 6

Inputs = dict[str, Any]
Check = Callable[[Device, Inputs, Array], str | None]


@dataclass(frozen=True)
class Case:
    """One call. read_bytes, written_bytes: of each array once; flops: two for a multiplication and an addition.

    make: inputs on a device from a seed. run: the op. check: its output's fault in words, or None. by_tensor_cores:
    the ceiling is the product's rate or, where bytes take longer, the copy's. in_place: an input is an output, too.
    params: sizes as peers need them.
    """

    op: str
    model: str
    shape: str
    params: dict[str, Any]
    read_bytes: int
    written_bytes: int
    flops: float
    make: Callable[[Device, int], Inputs]
    run: Callable[[Device, Inputs], Array]
    check: Check
    by_tensor_cores: bool = False
    in_place: bool = False

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def checked_rows(count: int, seed: int = 0) -> list[int]:
    """Rows that are checked: the first, the last, some between."""
    drawn = np.random.default_rng(seed).integers(0, count, _CHECKED_ROWS - 2)
    return sorted({0, count - 1, *(int(i) for i in drawn)})


def on_host(device: Device, array: Array, rows: Iterable[int]) -> Any:
    return np.concatenate([device.to_host(array[i : i + 1]) for i in rows])


def judge(
    y: Any, reference: Callable[[Precision], Any], *, softcap: bool = False, dtype: str = "bfloat16"
) -> str | None:
    rounded = FLOAT32 if dtype == "float32" else BFLOAT16
    return violation(y, reference(FLOAT64), reference(rounded), dtype=dtype, softcap=softcap)
