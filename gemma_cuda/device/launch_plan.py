"""Launches that are ready to go: arguments packed, kernels loaded, nothing left to decide."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import LaunchError
from .protocol import Dim


class PreparedLaunch:
    """One kernel launch. function: of the driver; values: the bytes of each argument; describe: them in words."""

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
    ) -> None:
        from cuda.bindings import driver

        self.instance, self._function, self._describe = instance, function, describe
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


class LaunchPlan:
    """Launches in their order, recorded once and started any number of times. They use the memory they were given."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[Callable[[int], None]] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, name: str, step: Callable[[int], None]) -> None:
        """One more launch: step(stream) starts it."""
        self.names.append(name)
        self.steps.append(step)

    def start(self, stream: int) -> None:
        """Starts all launches, one after another. Raises LaunchError."""
        for step in self.steps:
            step(stream)


class Pinned:
    """Memory of the host that the GPU reads while the host goes on. data: bytes; owner: keeps it."""

    def __init__(self, data: Any, owner: object) -> None:
        self.data, self._owner = data, owner
