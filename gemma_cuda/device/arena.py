"""One block of memory that the arrays of a launch plan share: memory of an array that is dropped serves a later one."""

from __future__ import annotations

import weakref

_ALIGNMENT = 256  # as cudaMalloc aligns


class Arena:
    """Blocks between byte 0 and `size`; size None: without a limit, to learn how much a plan needs (`peak`)."""

    def __init__(self, size: int | None = None) -> None:
        self.size, self.peak = size, 0
        self._blocks: dict[int, int] = {}  # begin -> end, of those in use

    def allocate(self, size: int) -> int:
        """Offset of the lowest free block of `size` bytes, in use until `free`. Raises MemoryError without one."""
        begin, needed = 0, -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        for start, end in sorted(self._blocks.items()):
            if start - begin >= needed:
                break
            begin = end
        if self.size is not None and begin + needed > self.size:
            raise MemoryError(f"{size:,} bytes are more than an arena of {self.size:,} bytes has left")
        self._blocks[begin] = begin + needed
        self.peak = max(self.peak, begin + needed)
        return begin

    def is_allocated(self, offset: int) -> bool:
        """Whether a byte belongs to a block in use."""
        return any(begin <= offset < end for begin, end in self._blocks.items())

    def free(self, begin: int) -> None:
        """Frees a block."""
        del self._blocks[begin]

    def free_with(self, owner: object, begin: int) -> None:
        """Frees a block when `owner` is no longer referenced."""
        weakref.finalize(owner, self.free, begin).atexit = False
