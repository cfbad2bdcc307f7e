"""A device that runs nothing and notes its launches."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arena import Arena
from .protocol import Argument, Array


@dataclass(frozen=True)
class Launch:
    """Resources of one launch. threads: of a block; shared_bytes: dynamic shared memory of a block."""

    instance: str
    threads: int
    shared_bytes: int


class DryRunDevice:
    """A device that only notes `launches`, in order.

    shared_bytes: most shared memory of a block of the intended GPU. arena: takes the blocks of its arrays (None: none).
    """

    name = "dry run"

    def __init__(self, shared_bytes: int, arena: Arena | None = None) -> None:
        self.shared_bytes, self.arena = shared_bytes, arena
        self.launches: list[Launch] = []

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of any size that takes no memory: shape and strides only, its elements must not be read or written."""
        element = np.empty(1, dtype)
        if self.arena is not None:
            self.arena.free_with(element, self.arena.allocate(math.prod(shape) * element.itemsize))
        steps = [element.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return np.lib.stride_tricks.as_strided(element, tuple(shape), steps)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.empty(shape, dtype)

    def copy(self, target: Array, source: Array) -> None:
        pass

    def retire(self, array: Array) -> None:
        pass

    def free_bytes(self) -> int:
        return sys.maxsize

    def from_host(self, array: Array) -> Array:
        return array

    def to_host(self, array: Array) -> Array:
        return array

    def address(self, array: Array) -> int:
        """0, an address aligned as those of a GPU's allocator."""
        return 0

    def launch(
        self, instance: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int, args: Sequence[Argument],
        *, overlap: bool = False,
    ) -> None:  # fmt: skip
        self.launches.append(Launch(instance, int(np.prod(block)), shared_bytes))
