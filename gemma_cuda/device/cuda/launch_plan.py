"""Launches that are ready to go: arguments packed, kernels loaded, nothing left to decide."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ...errors import LaunchError
from ..arena import Arena
from ..protocol import Array, Dim


class PreparedLaunch:
    """One kernel launch. function: of the driver; values: the bytes of each argument; describe: them in words;
    module: what keeps the function loaded."""

    def __init__(
        self,
        instance: str,
        function: int,
        grid: Dim,
        block: Dim,
        shared_bytes: int,
        values: Sequence[bytes],
        *,
        overlap: bool,
        describe: Callable[[], str],
        module: object = None,
    ) -> None:
        from cuda.bindings import driver

        self.instance, self._function, self._describe, self._module = instance, function, describe, module
        self._buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
        self._pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, self._buffers))
        self._parameters = ctypes.addressof(self._pointers)
        self._launch = driver.cuLaunchKernelEx
        self._config = config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared_bytes
        if overlap:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1

    def __call__(self, stream: int) -> None:
        """Starts the kernel on a stream; the driver copies the arguments before it returns. Raises LaunchError."""
        self._config.hStream = stream
        (status,) = self._launch(self._config, self._function, self._parameters, 0)
        if status != 0:
            raise LaunchError(f"{self.instance}: CUDA refuses the launch with {status.name}: {self._describe()}")


class Use(NamedTuple):
    """An address that a launch takes. argument: what the kernel calls it; memory: CuPy's object that owns it."""

    argument: str
    address: int
    memory: Any

    @classmethod
    def of(cls, argument: str, array: Array, address: int | None = None) -> Use:
        """The use of an array, at the address that the launch has for it (None: the array's own)."""
        return cls(argument, int(array.data.ptr) if address is None else address, array.data.mem)


class LaunchPlan:
    """Launches in their order, recorded once and started any number of times.

    What they use lies in `memory`, as places of the arena, or in memory that the plan holds: both live as long as the
    plan does, whoever else drops them.
    """

    def __init__(self, arena: Arena, memory: Array) -> None:
        self.names: list[str] = []
        self.steps: list[Callable[[int], None]] = []
        self._arena, self._memory = arena, memory
        self._held: dict[int, Any] = {}  # by id

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, name: str, step: Callable[[int], None], uses: Iterable[Use]) -> None:
        """One more launch: step(stream) starts it. uses: every address it takes.

        Raises LaunchError for an address that could become another array's, or nobody's, while the plan lives.
        """
        for use in uses:
            self._hold(name, use)
        self.names.append(name)
        self.steps.append(step)

    def start(self, stream: int) -> None:
        """Starts all launches, one after another. Raises LaunchError."""
        for step in self.steps:
            step(stream)

    def _hold(self, name: str, use: Use) -> None:
        begin = int(self._memory.data.ptr)
        if begin <= use.address < begin + self._memory.nbytes:
            if not self._arena.is_taken(use.address - begin):
                raise LaunchError(f"{name}: {use.argument} at {use.address:#x} is a place of the arena that is free")
            return
        memory = use.memory
        # Of CuPy's kinds of memory only that which wraps a foreign address has an owner beside itself.
        owner = getattr(memory, "_owner", memory)
        if owner is None or not memory.ptr <= use.address < memory.ptr + memory.size:
            raise LaunchError(
                f"{name}: {use.argument} at {use.address:#x} lies in no memory that the plan could hold; "
                "what a plan uses has to be an array that owns its memory"
            )
        self._held[id(memory)] = memory


class Startable(Protocol):
    """What is started as a whole: a LaunchPlan, or steps over memory that somebody else keeps."""

    def start(self, stream: int) -> None:
        """Starts all launches on a stream, one after another."""


class CapturedPlan(NamedTuple):
    """A plan as a CUDA graph, which by itself holds no memory."""

    graph: Any
    plan: Startable
