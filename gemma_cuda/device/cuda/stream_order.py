"""Uses of the same memory from different streams, one after another."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .context import CudaContext


class StreamOrder:
    """`with order:` makes work on the current stream wait for the work of the last such block, on whichever stream."""

    def __init__(self, cuda: CudaContext) -> None:
        self._cuda = cuda
        self._event: Any = None

    def __enter__(self) -> None:
        # On the same stream, too. Equal handles do not prove one stream: CUDA reuses the handle of a destroyed stream,
        # and the default streams of all threads share one.
        if self._event is not None:
            self._cuda.wait_event(self._event)

    def wait(self) -> None:
        """Makes the host wait for the work of all such blocks."""
        with suppress(RuntimeError):  # a failure of that work is reported at the next call of CUDA
            if self._event is not None:
                self._event.synchronize()

    def __exit__(self, *error: object) -> None:
        self._event = self._cuda.record_event(self._event)
