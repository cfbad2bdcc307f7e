"""Large arrays on their way to a GPU: through a few blocks of pinned memory, one filled while another is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .launch_plan import Pinned

if TYPE_CHECKING:
    from .cuda import Cuda
    from .protocol import Array

_BLOCKS = 2


class Staging:
    """Copies to one GPU, in the order of its current stream. size: bytes of each block."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._blocks: list[Pinned] = [cuda.pinned(size) for _ in range(_BLOCKS)]
        self._free: list[Callable[[], None] | None] = [None] * _BLOCKS
        self._cuda, self._size, self._next = cuda, size, 0

    def upload(self, target: Array, source: np.ndarray[Any, Any]) -> None:
        """Starts copying a contiguous array of the host, which may be changed at once, to one of as many bytes."""
        data = source.reshape(-1).view(np.uint8)
        for begin in range(0, len(data), self._size):
            part = data[begin : begin + self._size]
            index, self._next = self._next, (self._next + 1) % _BLOCKS
            wait = self._free[index]
            if wait is not None:
                wait()
            self._blocks[index].data[: len(part)] = part
            self._free[index] = self._cuda.upload(target, self._blocks[index], len(part), begin)
