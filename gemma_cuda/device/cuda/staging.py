"""Arrays of the host on their way to a GPU: through pinned memory, which the GPU reads while the host goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..protocol import Array
    from .device import Cuda

_BLOCKS = 2
_ALIGNMENT = 256


class Pinned:
    """Memory of the host that a GPU reads by itself. data: its bytes; owner: keeps them.

    It is not given back before the copies from it are done, since whoever gets it next writes to it at once.
    """

    def __init__(self, data: np.ndarray[Any, Any], owner: object) -> None:
        self.data = data
        self._copies: list[Callable[[], None]] = []
        weakref.finalize(self, _wait_and_drop, self._copies, owner).atexit = False

    def is_read_until(self, wait: Callable[[], None]) -> None:
        """A copy from here was started; wait() returns when it is done."""
        self._copies.append(wait)

    def wait(self) -> None:
        """Waits until the host may change all of it."""
        while self._copies:
            self._copies.pop()()


def _wait_and_drop(copies: list[Callable[[], None]], owner: object) -> None:
    with suppress(RuntimeError):  # a GPU that has failed reads nothing any more
        for wait in copies:
            wait()


class Staging:
    """Copies to one GPU, each in its current stream: what is copied goes to the end of a block of pinned memory.

    A block that is full is filled anew once all copies from it are done; meanwhile the other one is. size: bytes of
    each.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._blocks: list[Pinned] = []
        self._cuda, self._size = cuda, size
        self._filled, self._current = size, -1  # bytes of the block that is being filled, its index

    def upload(self, target: Array, source: np.ndarray[Any, Any]) -> None:
        """Starts copying a contiguous array of the host, which may be changed at once, to one of as many bytes."""
        data = source.reshape(-1).view(np.uint8)
        begin = 0
        while begin < len(data):
            if self._filled >= self._size:
                self._next_block()
            block = self._blocks[self._current]
            part = data[begin : begin + self._size - self._filled]
            block.data[self._filled : self._filled + len(part)] = part
            self._cuda.upload(target, block, len(part), begin, self._filled)
            self._filled += -(-len(part) // _ALIGNMENT) * _ALIGNMENT
            begin += len(part)

    def _next_block(self) -> None:
        self._current, self._filled = (self._current + 1) % _BLOCKS, 0
        if self._current == len(self._blocks):
            self._blocks.append(self._cuda.pinned(self._size))
        self._blocks[self._current].wait()
