"""A device that runs nothing and writes down what would be launched."""

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
    """What a multiprocessor must offer for one launch. threads: of a block; shared_bytes: dynamic, of a block."""

    instance: str
    threads: int
    shared_bytes: int


class DryRunDevice:
    """A device whose `launches` say what was launched, in order.

    shared_bytes: what a block of the GPU that is meant may have. arena: where its arrays would lie.
    """

    name = "dry run"

    def __init__(self, shared_bytes: int, arena: Arena | None = None) -> None:
        self.shared_bytes, self.arena = shared_bytes, arena
        self.launches: list[Launch] = []

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of any size that takes no memory: it has a shape and strides, but nothing may look at its elements."""
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
        """Of an array that is aligned as a GPU aligns what it allocates."""
        return 0

    def launch(
        self,
        instance: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Argument],
        *,
        overlap: bool = False,
    ) -> None:
        self.launches.append(Launch(instance, int(np.prod(block)), shared_bytes))
