"""Arguments of the kernel `numbers` of tests/kernels/arguments.cu: the extremes of each type."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

NUMBERS: tuple[tuple[Any, float], ...] = (
    (-128, -128.0),
    (255, 255.0),
    (-(2**15), -(2.0**15)),
    (2**16 - 1, 2.0**16 - 1),
    (-(2**31), -(2.0**31)),
    (2**32 - 1, 2.0**32 - 1),
    (-(2**63), -(2.0**63)),
    (2**64 - 1, 2.0**64),
    (0.1, float(np.float32(0.1))),
    (0.1, 0.1),
    (True, 1.0),
    (struct.pack("<ifq", 7, 0.5, -9), 7.0),
    (None, 0.5),
    (None, -9.0),
)
"""In the order of the parameters: (argument, its value in float64); None for a further field of a struct."""


def pack_numbers(**changes: Any) -> list[Any]:
    values = [value for value, _ in NUMBERS if value is not None]
    for letter, value in changes.items():
        values["abcdefghijkl".index(letter)] = value
    return values
