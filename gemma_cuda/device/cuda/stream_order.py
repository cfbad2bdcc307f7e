"""Uses of the same memory from different streams, one after another."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device import Cuda


class StreamOrder:
    """`with order:` what is put on the current stream comes after what the last such block put on its stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._event: Any = None

    def __enter__(self) -> None:
        # On the same stream, too: its handle would not tell, since that of a destroyed stream is given again, and that
        # of the default stream of each thread is one number for all of them.
        if self._event is not None:
            self._cuda.wait_for(self._event)

    def wait(self) -> None:
        """Waits on the host for all that such blocks put anywhere."""
        with suppress(RuntimeError):  # of work that has failed somebody else hears
            if self._event is not None:
                self._event.synchronize()

    def __exit__(self, *error: object) -> None:
        self._event = self._cuda.mark(self._event)
