"""Recorded launches: arguments packed, kernels loaded, memory held; started any number of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import LaunchError
from ..arena import Arena
from ..protocol import Array

StreamLaunch = Callable[[int], None]
"""Starts a kernel, or a library's product, on a stream. Raises LaunchError."""


class Operand(NamedTuple):
    """An array of a launch. argument: name of the kernel's parameter; memory: CuPy's object that owns the memory."""

    argument: str
    address: int
    memory: Any

    @classmethod
    def of(cls, argument: str, array: Array, address: int | None = None) -> Operand:
        """The operand of an array, at the address that the launch uses (None: the array's own)."""
        return cls(argument, int(array.data.ptr) if address is None else address, array.data.mem)


class ArenaBlock:
    """Owner of one block of an arena's memory: every view of the array in it holds this object."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory


class LaunchPlan:
    """Launches in their order. Their operands lie in blocks of an arena over `memory`, or in memory of others.

    The plan holds all of that memory as long as it lives.
    """

    def __init__(self, arena: Arena, memory: Array) -> None:
        self.names: list[str] = []
        self.launches: list[StreamLaunch] = []
        self._arena, self._memory = arena, memory
        self._held: dict[int, Any] = {}  # by id

    def __len__(self) -> int:
        return len(self.launches)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], gpu: int) -> Array:
        """Array of the given shape in a block of the arena, which is free again when the array is dropped."""
        import cupy

        size = math.prod(shape) * dtype.itemsize
        begin = self._arena.allocate(size)
        owner = ArenaBlock(self._memory)
        self._arena.free_with(owner, begin)
        block = cupy.cuda.UnownedMemory(self._memory.data.ptr + begin, size, owner, gpu)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(block, 0))

    def add(self, name: str, launch: StreamLaunch, operands: Iterable[Operand]) -> None:
        """Appends a launch, with all of its operands.

        Raises LaunchError for an operand whose memory could be freed or reused while the plan lives.
        """
        for operand in operands:
            self._hold(name, operand)
        self.names.append(name)
        self.launches.append(launch)

    def launch(self, stream: int) -> None:
        """Starts all launches, one after another. Raises LaunchError."""
        for launch in self.launches:
            launch(stream)

    def _hold(self, name: str, operand: Operand) -> None:
        begin, array = int(self._memory.data.ptr), f"{name}: {operand.argument} at {operand.address:#x}"
        if begin <= operand.address < begin + self._memory.nbytes:
            if not self._arena.is_allocated(operand.address - begin):
                raise LaunchError(f"{array} lies in a free block of the arena")
            return
        memory = operand.memory
        # Of CuPy's kinds of memory only UnownedMemory, which wraps a foreign address, has a separate owner.
        owner = getattr(memory, "_owner", memory)
        if owner is None or not memory.ptr <= operand.address < memory.ptr + memory.size:
            raise LaunchError(
                f"{array} lies in no memory that the plan could hold; what a plan uses has to be an array that owns "
                "its memory"
            )
        self._held[id(memory)] = memory


class Launchable(Protocol):
    """Launches that are started as a whole: a LaunchPlan, or launches over memory that the caller keeps."""

    def launch(self, stream: int) -> None:
        """Starts all launches on a stream, one after another."""


class CapturedPlan(NamedTuple):
    """A CUDA graph, which by itself holds no memory, and the plan that it was captured from."""

    graph: Any
    plan: Launchable
