"""How tensor cores add, in exact arithmetic: the rules that measurements of GPUs were published to obey.

MMA-Sim (arXiv 2511.10909, package mmasim 2.1.1) and "Accurate Models of NVIDIA Tensor Cores" (arXiv 2512.07004) agree
on them. bindings/emulator/rounding.cc has them a second time, in vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NAN_BITS = 0x7FFFFFFF
LEAST_EXPONENT = {"bfloat16": -126, "float16": -14, "float32": -126}  # of normal numbers; subnormals share it


@dataclass(frozen=True)
class TensorCore:
    """How many terms one fused sum has, what it keeps below the largest exponent, and the exponent of a c of zero."""

    terms: int
    fraction_bits: int
    zero_exponent: int

    def sum_products(self, a: Sequence[float], b: Sequence[float], c: float, dtype: str) -> int:
        """Bits of the float32 c + Σ a · b, for a and b in `dtype`."""
        for first in range(0, len(a), self.terms):
            part = slice(first, first + self.terms)
            c = _float_of(bits := self._fused_sum(a[part], b[part], c, LEAST_EXPONENT[dtype]))
        return bits

    def _fused_sum(self, a: Sequence[float], b: Sequence[float], c: float, least: int) -> int:
        if not all(map(math.isfinite, (*a, *b, c))):
            total = c
            for x, y in zip(a, b, strict=True):
                total += x * y  # as IEEE has it: NaN, 0 · inf and inf - inf give NaN; finite products cannot overflow
            return NAN_BITS if math.isnan(total) else _bits_of(total)
        c_exponent = _exponent(c, -126) if c else self.zero_exponent
        terms = [(Fraction(c), c_exponent)]
        terms += [
            (Fraction(x) * Fraction(y), _exponent(x, least) + _exponent(y, least))
            for x, y in zip(a, b, strict=True)
            if x and y
        ]
        top = max(exponent for _, exponent in terms)
        unit = Fraction(2) ** (top - self.fraction_bits)
        total = sum(int(value / unit) for value, _ in terms)  # int() drops what is below the unit, towards zero
        return _truncated(total * unit)


AMPERE = TensorCore(terms=8, fraction_bits=24, zero_exponent=-132)
HOPPER = TensorCore(terms=16, fraction_bits=25, zero_exponent=-133)
TENSOR_CORES = {"ampere": AMPERE, "hopper": HOPPER}


def product(core: TensorCore, a: Array, b: Array, c: Array) -> Array:
    """uint32 bits [M, N] of c + a · b. a [M, K], b [K, N] bfloat16 or float16; c [M, N] float32."""
    rows, columns = a.astype(np.float64).tolist(), b.astype(np.float64).T.tolist()
    sums = [
        [core.sum_products(row, column, start, a.dtype.name) for column, start in zip(columns, starts, strict=True)]
        for row, starts in zip(rows, c.astype(np.float64).tolist(), strict=True)
    ]
    return np.array(sums, np.uint32)


def _exponent(x: float, least: int) -> int:
    """The exponent e of x = ±s · 2^e with 1 <= s < 2, or `least` for a subnormal number."""
    return max(math.frexp(x)[1] - 1, least)


def _truncated(value: Fraction) -> int:
    """Bits of the float32 next to `value` on the side of zero; +0 for zero, infinity from 2^128 on."""
    if value == 0:
        return 0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    kept = int(magnitude / unit) * unit
    if kept == 0:
        return 0
    return _bits_of(math.copysign(math.inf if kept >= 2**128 else float(kept), value))


def _bits_of(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def _float_of(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))
