"""A GPU behind arrays of the host, so that one test body serves the emulator and the GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator import memory as emulator_memory
from gemma_cuda.device.protocol import Argument

Array = np.ndarray[Any, Any]
_ALIGNMENT = 256


class HostBackedGpu:
    """A device whose arrays are NumPy's: a launch copies the memory around its arguments to the GPU and back.

    What surrounds an array on the host surrounds it on the GPU, and addresses are the same up to a multiple of 256. So
    NaN around inputs, poison in outputs, strides and alignments mean what they mean on the emulator.
    shared_bytes: most that a block is said to have (None: what the GPU gives).
    """

    name = "cuda"
    counters = None

    def __init__(self, *, kernels: Path | None = None, shared_bytes: int | None = None) -> None:
        self._cuda = Cuda(kernels=kernels, wait=True)
        self.shared_bytes = min(shared_bytes or self._cuda.shared_bytes, self._cuda.shared_bytes)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return emulator_memory.poisoned(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.from_host(np.zeros(shape, dtype))

    def copy(self, target: Array, source: Array) -> None:
        np.copyto(target, source)

    def retire(self, array: Array) -> None:
        pass

    def free_bytes(self) -> int:
        return self._cuda.free_bytes()

    def from_host(self, array: Array) -> Array:
        copy = emulator_memory.aligned(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: Array) -> Array:
        return array

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

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
        rooms = {room.begin: room for room in (_Room(self._cuda, a) for a in args if isinstance(a, np.ndarray))}
        placed = [rooms[_root_bounds(a)[0]].of(a) if isinstance(a, np.ndarray) else a for a in args]
        self._cuda.launch(instance, grid, block, shared_bytes, placed, overlap=overlap)
        for room in rooms.values():
            room.fetch()


class _Room:
    """The memory of an array's outermost owner, and its copy on the GPU."""

    def __init__(self, cuda: Cuda, array: Array) -> None:
        self._cuda, self._is_writable = cuda, array.flags.writeable
        self.begin, end = _root_bounds(array)
        self._skew = self.begin % _ALIGNMENT
        memory = (ctypes.c_char * (end - self.begin)).from_address(self.begin)
        self._host = np.frombuffer(memory, np.uint8)
        self._copy = cuda.from_host(np.concatenate([np.zeros(self._skew, np.uint8), self._host]))

    def of(self, array: Array) -> Any:
        """The array's bytes on the GPU, from its first element on, as one axis of its dtype."""
        first = array.ctypes.data - self.begin + self._skew
        size = max(np.lib.array_utils.byte_bounds(array)[1] - array.ctypes.data, 0) if array.size else 0
        return self._copy[first : first + size].view(array.dtype)

    def fetch(self) -> None:
        if self._is_writable:
            self._host[:] = self._cuda.to_host(self._copy)[self._skew :]


def _root_bounds(array: Array) -> tuple[int, int]:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)
