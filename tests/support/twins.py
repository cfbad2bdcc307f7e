"""How twins are launched: kernels with one bug, and the same kernels without it (tests/kernels/twins_*.cu)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_cuda.device.emulator.device import Emulator

Array = np.ndarray[Any, Any]
RACE = ("data race",)
IN_FLIGHT = ("missing async wait", "data race")
PART_OF_A_WARP = ("barrier", "divergent barrier")
UNWRITTEN = ("uninitialized read",)


@dataclass(frozen=True)
class Unwritten:
    """An argument allocated by the device and left unwritten."""

    size: int
    dtype: Any


@dataclass(frozen=True)
class Twins:
    """Kernels that are launched alike: those with a bug, and those without one.

    results: what the right ones leave in their arguments, by position. kinds: which reports of a bug are good; without
    any, its results must be wrong in sight. names: what the message must say besides the lines.
    """

    wrong: tuple[str, ...]
    right: tuple[str, ...]
    args: tuple[Any, ...]
    results: dict[int, Any]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    grid: int
    block: int
    shared: int

    def launch(self, kernel: str, device: Emulator) -> list[Any]:
        """The arguments after a launch."""
        args = [_argument(value, device) for value in self.args]
        device.launch(kernel, (self.grid,), (self.block,), self.shared, args)
        return args


def _argument(value: Any, device: Emulator) -> Any:
    if isinstance(value, Unwritten):
        return device.empty((value.size,), value.dtype)
    return value.copy() if isinstance(value, np.ndarray) else value


def twins(
    wrong: str,
    right: str,
    args: tuple[Any, ...],
    results: dict[int, Any],
    *,
    names: tuple[str, ...] = (),
    kinds: tuple[str, ...] = RACE,
    grid: int = 1,
    block: int = 64,
    shared: int = 0,
) -> Twins:
    """See Twins; kernels are separated by blanks."""
    return Twins(tuple(wrong.split()), tuple(right.split()), args, results, names, kinds, grid, block, shared)


def floats(n: int, value: float = 0.0) -> Array:
    return np.full(n, value, np.float32)


def counting(n: int, dtype: Any = np.float32) -> Array:
    return np.arange(n).astype(dtype)


def ints(n: int, value: int = 0) -> Array:
    return np.full(n, value, np.int32)


BY_64 = counting(64)
ODD = counting(64, np.int32) % 2
# The k-th of four tiles holds k, 4 + k, 8 + k, ...: the sum over tiles of element t is 16 t + 6.
TILES = (4 * np.arange(64) + np.arange(4)[:, None]).astype(np.float32).reshape(-1)
SUM_OF_TILES = 16 * counting(64) + 6
ONE_THREAD: dict[str, Any] = {"grid": 4, "block": 1}
SHARED: dict[str, Any] = {"names": ("shared memory",), "shared": 256}
