"""`__device__` and `__constant__` variables of kernel files: they keep their values from launch to launch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LaunchError
from ..protocol import Array

DEVICE_VARIABLE = "__device__ "
"""In front of a variable's name where reports name arguments."""

# A library's variables exist once per process, shared by all emulators.
_in_use = threading.Lock()


class KernelVariables:
    """The variables of every kernel file that one emulator has launched, by file and name.

    Each instance is a library of its own, with its own copy of its file's variables: they are written before a launch
    and read back after it, so that the kernels of a file see one variable, as those of a CUDA module do.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Path, str], bytes] = {}

    @contextmanager
    def of(self, library: Any, source: Path) -> Iterator[Variables]:
        """The variables of a library, with their present values until the block ends."""
        variables = Variables(library, source, self._values)
        if not library.variables:
            yield variables
            return
        with _in_use:
            for name, _, _, _ in library.variables:
                library.write(name=name, value=self._values.get((source, name)))
            yield variables

    def write(self, library: Any, source: Path, name: str, value: Array) -> None:
        """Gives a variable the bytes of an array, as cudaMemcpyToSymbol does; raises LaunchError for a wrong size."""
        size = _size(library, source, name)
        if value.nbytes != size:
            raise LaunchError(f"variable {name} of {source.name} has {size} bytes, the array {value.nbytes}")
        self._values[source, name] = value.tobytes()

    def read(self, library: Any, source: Path, name: str, dtype: Any) -> Array:
        """What a variable holds, as a flat array."""
        _size(library, source, name)
        with _in_use:
            library.write(name=name, value=self._values.get((source, name)))
            return np.frombuffer(library.read(name=name), dtype)


class Variables:
    """The variables of one library during a launch."""

    def __init__(self, library: Any, source: Path, values: dict[tuple[Path, str], bytes]) -> None:
        self._library, self._source, self._values = library, source, values
        self._writable = [variable for variable in library.variables if variable[3]]

    def names(self) -> list[str]:
        """Of those that a kernel may write, as reports name them."""
        return [f"{DEVICE_VARIABLE}{name}" for name, _, _, _ in self._writable]

    def buffers(self, runtime: Any, first: int) -> list[Any]:
        """The memory that they open to the kernel, as arguments from number `first` on."""
        return [
            runtime.Buffer(
                begin=address, end=address + size, argument=first + i, writable=True, has_poison=False, element_bytes=1
            )
            for i, (_, address, size, _) in enumerate(self._writable)
        ]

    def keep(self) -> None:
        """What a launch has written is there for the next one."""
        for name, _, _, _ in self._writable:
            self._values[self._source, name] = self._library.read(name=name)


def _size(library: Any, source: Path, name: str) -> int:
    sizes = {known: size for known, _, size, _ in library.variables}
    if name not in sizes:
        there = ", ".join(sorted(sizes)) or "none"
        raise LaunchError(f"the kernel uses no variable {name} of {source.name}; there are {there}")
    return int(sizes[name])
