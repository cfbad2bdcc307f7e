"""Layouts as CuTe writes them: from (thread, value) of an instruction to an element, from an element to an address.

The JSON files beside this are from `python -m benchmarks.write_layouts`.
mma: elements are m + 16 k of a, n + 8 k of b and m + 16 n of c.
matrix_moves: elements are bits of the rows that lanes point to, 128 a row.
wgmma: threads are those of a warpgroup and m has 64 rows. Atoms and tiles go from (m or n, k) to an element of 16 bits,
of whose address in bytes `swizzle` permutes some. Descriptors are those of a tile at address 0: where it lies is all
that a host does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Nested = Any  # an int, or a list of these


@dataclass(frozen=True)
class Layout:
    """shape : stride. The first part of a nested axis runs fastest."""

    shape: Nested
    stride: Nested
    swizzle: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Layout:
        """As a JSON file has it."""
        return cls(entry["shape"], entry["stride"], tuple(entry["swizzle"]) if "swizzle" in entry else None)

    def table(self) -> Array:
        """int64, one axis for each mode: where each coordinate goes, before any swizzle."""
        axes = [_axis(shape, stride) for shape, stride in zip(self.shape, self.stride, strict=True)]
        table = np.zeros((), np.int64)
        for axis in axes:
            table = table[..., None] + axis
        return table

    def addresses(self) -> Array:
        """int64 byte addresses of 16-bit elements, swizzled."""
        return swizzled(2 * self.table(), self.swizzle)


def swizzled(address: Array, swizzle: tuple[int, int, int] | None) -> Array:
    """The addresses with `bits` bits from `base` on xored by those that lie `shift` further left."""
    if swizzle is None:
        return address
    bits, base, shift = swizzle
    return address ^ (address >> shift & (1 << bits) - 1 << base)


@cache
def read(name: str) -> dict[str, Any]:
    """What a file says: mma, matrix_moves, swizzle or wgmma."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    return content


def mma(operand: str, dtype: str = "bf16") -> tuple[Array, Array]:
    """(row, column) [32 lanes, values] of operand a (m, k), b (k, n) or c (m, n) of mma m16n8k16."""
    elements = Layout.of(read("mma")[f"m16n8k16 {dtype}"][operand]).table()
    fast, slow = elements % (8 if operand == "b" else 16), elements // (8 if operand == "b" else 16)
    return (slow, fast) if operand == "b" else (fast, slow)


@dataclass(frozen=True)
class Descriptor:
    """The fields of a wgmma matrix descriptor; addresses and offsets in bytes."""

    start: int
    leading: int
    stride: int
    swizzle: tuple[int, int, int]

    @classmethod
    def of(cls, bits: int) -> Descriptor:
        """From the 64 bits that the instruction is given."""
        start, leading, stride = (16 * (bits >> place & 0x3FFF) for place in (0, 16, 32))
        return cls(start, leading, stride, ((0, 3, 2, 1)[bits >> 62], 4, 3))

    def addresses(self, rows: int, major: str) -> Array:
        """int64 [rows, 16]: byte addresses of what the instruction reads as rows of a, or columns of b, times k."""
        row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        width = 2 ** self.swizzle[0]  # 16-byte chunks side by side
        if major == "K":
            step = self.leading if width == 1 else 16
            inside = row % 8 * 16 * width + row // 8 * self.stride + k // 8 * step + k % 8 * 2
        else:
            down, right = (self.leading, self.stride) if width == 1 else (self.stride, self.leading)
            chunk = row // 8
            inside = row % 8 * 2 + chunk % width * 16 + chunk // width * right + k % 8 * 16 * width + k // 8 * down
        return swizzled(self.start + inside, self.swizzle)


def _axis(shape: Nested, stride: Nested) -> Array:
    if isinstance(shape, int):
        return np.arange(shape) * stride
    axis = np.zeros(1, np.int64)
    for part, step in zip(shape, stride, strict=True):
        axis = (_axis(part, step)[:, None] + axis).reshape(-1)
    return axis
