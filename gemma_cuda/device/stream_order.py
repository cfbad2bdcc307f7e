"""Uses of the same memory from different streams, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cuda import Cuda


class StreamOrder:
    """`with order:` what is put on the current stream comes after what the last such block put on its stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._event: Any = None
        self._stream = 0

    def __enter__(self) -> None:
        if self._event is not None and self._cuda.stream != self._stream:
            self._cuda.wait_for(self._event)

    def __exit__(self, *error: object) -> None:
        self._stream, self._event = self._cuda.stream, self._cuda.mark(self._event)
