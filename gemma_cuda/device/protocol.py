"""The device interface of ops: memory, and kernel launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Dim = tuple[int, int, int]
Array = Any
"""An array of the device: numpy.ndarray on the emulator, cupy.ndarray on CUDA."""
Argument = Any
"""A kernel argument: an Array or None for a pointer, int, float or a NumPy scalar for a number, bytes for a struct."""


def is_device(value: object) -> bool:
    """Whether a value looks like a Device: it has a name, and launches."""
    try:
        return isinstance(getattr(value, "name", None), str) and callable(getattr(value, "launch", None))
    except Exception:  # of whatever a stranger's __getattr__ raises
        return False


class Device(Protocol):
    """Where kernels run. Both devices take the same instance strings, shapes and typed arguments."""

    @property
    def name(self) -> str:
        """ "cuda" or "emulator"."""

    @property
    def shared_bytes(self) -> int:
        """Most dynamic shared memory of a block: 99 KiB on sm_86, 89 and 120, 163 on sm_80, 227 on sm_90 and 100."""

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape whose values are not defined until a kernel writes them."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros."""

    def copy(self, target: Array, source: Array) -> None:
        """Copies source to target, of one shape and dtype, each contiguous but for its first axis."""

    def retire(self, array: Array) -> None:
        """Keeps an array, which the caller drops, until what was launched by now is done, on whichever stream."""

    def free_bytes(self) -> int:
        """Memory that arrays can still take."""

    def from_host(self, array: Array) -> Array:
        """Device copy, same shape and dtype, of a NumPy array."""

    def to_host(self, array: Array) -> Array:
        """NumPy array, same shape and dtype, of what the kernels launched so far leave in `array`."""

    def address(self, array: Array) -> int:
        """Where the array's first element lies in the device's memory."""

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
        """Runs one kernel instance, for example "rms_norm<bf16, 8, OnePlus, Nothing, 128>".

        grid, block: 1 to 3 sizes. shared_bytes: dynamic shared memory of a block. args: one value per parameter of the
        kernel, checked against its C++ signature. overlap: the kernel may start before the one ahead of it has ended,
        and waits for it by itself (grid_dependency_wait). Raises LaunchError before anything runs, KernelError for
        what a kernel does wrong.
        """
