"""Uploads of host arrays through pinned memory, which the GPU reads while the host goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ..protocol import Array

_BLOCKS = 2
_ALIGNMENT = 256


class Pinned:
    """Pinned host memory. data: its bytes; owner: keeps them allocated.

    It is freed only after the copies from it are done, since the next owner writes to it at once.
    """

    def __init__(self, data: np.ndarray[Any, Any], owner: object) -> None:
        self.data = data
        self._copies: list[Callable[[], None]] = []
        weakref.finalize(self, _wait_and_drop, self._copies, owner).atexit = False

    def is_read_until(self, wait: Callable[[], None]) -> None:
        """Notes a copy from this memory; wait() returns when it is done."""
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
    """Appends each upload to a block of pinned memory, which is filled again once all copies from it are done.

    allocate(size): new pinned memory. copy(target, block, size, begin, offset): starts copying `size` bytes of a block,
    from `offset` on, to byte `begin` of the target, in the current stream. size: bytes of each of the two blocks.
    """

    def __init__(
        self, allocate: Callable[[int], Pinned], copy: Callable[[Array, Pinned, int, int, int], None], size: int
    ) -> None:
        self._blocks: list[Pinned] = []
        self._allocate, self._copy, self._size = allocate, copy, size
        self._filled, self._current = size, -1  # bytes of the block that is being filled, its index

    def upload(self, target: Array, source: np.ndarray[Any, Any]) -> None:
        """Starts copying a contiguous host array, which may be changed at once, to a target of as many bytes."""
        data = source.reshape(-1).view(np.uint8)
        begin = 0
        while begin < len(data):
            if self._filled >= self._size:
                self._next_block()
            block = self._blocks[self._current]
            part = data[begin : begin + self._size - self._filled]
            block.data[self._filled : self._filled + len(part)] = part
            self._copy(target, block, len(part), begin, self._filled)
            self._filled += -(-len(part) // _ALIGNMENT) * _ALIGNMENT
            begin += len(part)

    def _next_block(self) -> None:
        self._current, self._filled = (self._current + 1) % _BLOCKS, 0
        if self._current == len(self._blocks):
            self._blocks.append(self._allocate(self._size))
        self._blocks[self._current].wait()
