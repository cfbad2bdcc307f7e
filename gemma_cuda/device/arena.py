"""One block of memory that arrays of a recorded launch plan share: what one no longer needs, a later one takes."""

from __future__ import annotations

import weakref

_ALIGNMENT = 256  # as cudaMalloc aligns


class Arena:
    """Places for arrays between 0 and `size` bytes; size None: without a limit, to learn what a plan needs (`peak`)."""

    def __init__(self, size: int | None = None) -> None:
        self.size, self.peak = size, 0
        self._taken: dict[int, int] = {}  # begin -> end, of the places in use

    def take(self, size: int) -> int:
        """The lowest free place of `size` bytes, in use until `give`. Raises MemoryError where there is none."""
        begin, wanted = 0, -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        for start, end in sorted(self._taken.items()):
            if start - begin >= wanted:
                break
            begin = end
        if self.size is not None and begin + wanted > self.size:
            raise MemoryError(f"{size:,} bytes are more than an arena of {self.size:,} bytes has left")
        self._taken[begin] = begin + wanted
        self.peak = max(self.peak, begin + wanted)
        return begin

    def is_taken(self, offset: int) -> bool:
        """Whether a byte belongs to a place in use."""
        return any(begin <= offset < end for begin, end in self._taken.items())

    def give(self, begin: int) -> None:
        """Frees a place."""
        del self._taken[begin]

    def give_with(self, owner: object, begin: int) -> None:
        """Frees a place once nobody holds `owner` any more."""
        weakref.finalize(owner, self.give, begin).atexit = False
