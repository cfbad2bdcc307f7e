"""The emulator: runs and checks CUDA kernels on the CPU."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ... import arguments
from ...errors import DeviceError, LaunchError
from ...host.files import cache_directory
from ...host.memory import available_memory
from .. import sources
from ..arguments import Parameter, check_count, check_dimensions, names_of
from ..dry_run import Launch
from ..product_cache import ProductCache
from ..protocol import Argument, Array, Dim
from . import host_compiler, kernel_library
from .counters import Counters
from .host_compiler import HostCompiler
from .kernel_variables import KernelVariables
from .memory import Written, aligned, bind, byte_count, pattern_of, poisoned
from .reports import kernel_error, raise_divergence
from .stream_memory import Streams, ranges_of, rows_of

Schedule = Literal["forward", "reverse", "random"]
Approximation = Literal["exact", "up", "down"]
MmaRounding = Literal["fast", "ampere", "hopper"]

ChooseBlocks = Callable[[str, Dim], Iterable[Dim]]
"""(instance, grid) -> indices (x, y, z) of the blocks to run."""

_MOST_SEED, _MOST_WORKERS = (1 << 64) - 1, 4096
MAX_SHARED_BYTES = 227 * 1024  # of a block on sm_90
_MAX_STATIC_SHARED_BYTES = 48 * 1024  # of a kernel's __shared__ variables
# Worst errors that the PTX ISA documents: units in the last place of ex2.approx.ftz.f32 beyond the correctly rounded
# result, and relative errors of tanh.approx.f32, rsqrt.approx.ftz.f32 and rcp.approx.ftz.f32.
_EXP2_ULPS, _TANH_ERROR, _RSQRT_ERROR, _RECIPROCAL_ERROR = 2, 2.0**-11, 2.0**-22.9, 2.0**-23
_SIGNS: dict[str, int] = {"exact": 0, "up": 1, "down": -1}
_MMA_ROUNDINGS = {"fast": 0, "ampere": 1, "hopper": 2}
_SPARSE_BYTES = 1 << 30  # arrays from this size on take memory only where they are written
_SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}


class Emulator:
    """A device that runs kernels on this machine's CPU.

    checked: check every memory access, and count memory traffic. schedule, seed: order in which threads and blocks take
    turns. workers: host threads (None: one per CPU of this process). approx: results of approximate functions and of
    CUDA's math library: exact, or off by their documented worst error upwards or downwards. mma: rounding of sums in
    tensor cores: as measured on GPUs of the generations Ampere and Ada, or Hopper and Blackwell; "fast": to float32
    after each product. kernels: directory of .cu files (None: the package's own). observe: called with (Launch,
    Counters) after each launch. shared_bytes: most shared memory of a block of the emulated GPU. only_blocks: called
    before each launch, gives the blocks of its grid to run (None: all), so that an op can be tested on arrays of many
    GiB; may be set at any time. cache: directory for compiled kernels (None: the user's).
    Raises DeviceError where the emulator cannot run, GemmaError for a cache that others can change.
    """

    name = "emulator"

    def __init__(
        self,
        *,
        checked: bool = False,
        schedule: Schedule = "forward",
        seed: int = 0,
        workers: int | None = None,
        approx: Approximation = "exact",
        mma: MmaRounding = "fast",
        kernels: Path | None = None,
        cache: Path | None = None,
        observe: Callable[[Launch, Counters], None] | None = None,
        shared_bytes: int = MAX_SHARED_BYTES,
        only_blocks: ChooseBlocks | None = None,
    ) -> None:
        arguments.choice("schedule", schedule, _SCHEDULES, error=DeviceError)
        arguments.choice("approx", approx, _SIGNS, error=DeviceError)
        arguments.choice("mma", mma, _MMA_ROUNDINGS, error=DeviceError)
        checked, seed = arguments.flag("checked", checked), arguments.integer("seed", seed, least=0, most=_MOST_SEED)
        if workers is not None:
            workers = arguments.integer("workers", workers, least=1, most=_MOST_WORKERS)
        for name, value in (("observe", observe), ("only_blocks", only_blocks)):
            arguments.function(name, value)
        shared_bytes = arguments.integer("shared_bytes", shared_bytes, least=0, most=MAX_SHARED_BYTES)
        kernels, cache = (
            None if value is None else arguments.path(name, value)
            for name, value in (("kernels", kernels), ("cache", cache))
        )
        self.checked, self.schedule, self.seed, self.approx, self.mma = checked, schedule, seed, approx, mma
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self.shared_bytes = shared_bytes
        self.only_blocks = only_blocks
        self.counters: Counters | None = None
        self._observe = observe
        self._variables = KernelVariables()
        self._runtime = _runtime()
        self._streams = Streams(self._runtime.Stream)
        self._compiler = HostCompiler(
            sources.kernel_directory() if kernels is None else kernels,
            Path(str(self._runtime.__file__)),
            ProductCache((cache_directory() if cache is None else cache) / "emulator"),
        )

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape that holds poison: a checked kernel that reads it before writing it is an error.

        From 1 GiB on it takes memory only where it is written.
        """
        if byte_count(shape, dtype) < _SPARSE_BYTES:
            return poisoned(shape, dtype)
        return Written.kept(self._sparse(shape, dtype, pattern_of(dtype)))

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros. From 1 GiB on it takes memory only where it is written."""
        self.drain()
        if byte_count(shape, dtype) >= _SPARSE_BYTES:
            return self._sparse(shape, dtype, 0)
        array = aligned(shape, dtype)
        array.view(np.uint8)[...] = 0
        return array

    def copy(self, target: Array, source: Array) -> None:
        """Copies source to target, of one shape and dtype."""
        self.drain()
        np.copyto(target, source)

    def retire(self, array: Array) -> None:
        """Does nothing: launches are over when `launch` returns."""

    def free_bytes(self) -> int:
        """Free memory of the host."""
        return available_memory()

    def from_host(self, array: Array) -> Array:
        """Contiguous copy, same shape and dtype."""
        self.drain()
        copy = aligned(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: Array) -> Array:
        """The array itself: launches are over when `launch` returns."""
        self.drain()
        return array

    def address(self, array: Array) -> int:
        """Address of the array's first element."""
        return int(array.ctypes.data)

    def launch(
        self, instance: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int, args: Sequence[Argument],
        *, overlap: bool = False, stream: int = 0,
    ) -> None:  # fmt: skip
        """Runs one kernel instance; see Device.launch. Output of printf goes to sys.stdout.

        overlap: the launch ends before this returns, but a checked kernel is an error if it relies on that. stream:
        number of the stream. Raises LaunchError before anything runs, and KernelError for a failing kernel.
        """
        grid_dim, block_dim = check_dimensions(instance, grid, block, shared_bytes, self.shared_bytes)
        path, library = self._library_of(instance)
        kernel = sources.find_kernel(instance, self._compiler.kernels)
        most = sources.most_threads(instance, kernel)
        if most is not None and block_dim[0] * block_dim[1] * block_dim[2] > most:
            raise LaunchError(f"{instance}: the block is {block_dim}, the kernel's launch bounds allow {most} threads")
        names = names_of(kernel, len(library.parameters))
        parameters = [
            Parameter(n, kind, t, const, size)
            for n, (kind, const, size, t) in zip(names, library.parameters, strict=True)
        ]
        check_count(instance, parameters, args)
        self._check_shared(instance, library.shared_bytes, shared_bytes)
        packed, buffers = bind(self._runtime, instance, parameters, args)
        if self.checked:
            self._streams.watch(args)
        with self._variables.of(library, kernel.path) as variables:
            names += variables.names()
            result = self._runtime.launch(
                library, self._options(), grid=grid_dim, block=block_dim, shared_bytes=shared_bytes, arguments=packed,
                buffers=buffers + variables.buffers(self._runtime, len(parameters)), name=instance,
                stream=self._streams[stream], overlap=overlap,
                ranges=ranges_of(kernel, args) if overlap and self.checked else [],
                blocks=self._chosen_blocks(instance, grid_dim),
            )  # fmt: skip
            if result["report"] is None:
                variables.keep()
        if result["printed"]:
            sys.stdout.write(result["printed"].decode(errors="replace"))
        raise_divergence(instance, path, names, result["unlike_calls"])
        if result["report"] is not None:
            raise kernel_error(instance, path, names, result["report"])
        self.counters = Counters(**result["counters"])
        if self._observe is not None:
            self._observe(Launch(instance, math.prod(block_dim), shared_bytes + library.shared_bytes), self.counters)

    def write_variable(self, instance: str, name: str, value: Array) -> None:
        """Gives a `__device__` or `__constant__` variable of a kernel's file the bytes of an array.

        Later launches of every kernel of that file read them. Raises LaunchError for a variable that the instance does
        not use, or that has another size.
        """
        _, library = self._library_of(instance)
        self._variables.write(library, self._source_of(instance), name, value)

    def read_variable(self, instance: str, name: str, dtype: Any) -> Array:
        """Value of such a variable as an array [n] of dtype; raises LaunchError as `write_variable` does."""
        _, library = self._library_of(instance)
        return self._variables.read(library, self._source_of(instance), name, dtype)

    def _library_of(self, instance: str) -> tuple[Path, Any]:
        for _ in range(2):  # a file damaged since it was found is compiled again
            path = self._compiler.library(instance, checked=self.checked)
            library = kernel_library.load(self._runtime, path)
            if library is not None:
                return path, library
            self._compiler.forget()
        raise DeviceError(f"{path} changes while it is loaded")

    def _source_of(self, instance: str) -> Path:
        return sources.find_kernel(instance, self._compiler.kernels).path

    def _check_shared(self, instance: str, static: int, dynamic: int) -> None:
        """Raises LaunchError for more shared memory than the GPU has."""
        if static > _MAX_STATIC_SHARED_BYTES:
            raise LaunchError(
                f"{instance} declares {static} bytes of __shared__ variables, a GPU has {_MAX_STATIC_SHARED_BYTES} for "
                "them: use dynamic shared memory (extern __shared__)"
            )
        if static + dynamic > self.shared_bytes:
            raise LaunchError(
                f"{instance}: {static} bytes of __shared__ variables and {dynamic} of dynamic shared memory, a block "
                f"has {self.shared_bytes}"
            )

    def drain(self, *, stream: int = 0) -> None:
        """Ends all launches of the stream: later ones overlap none of them, as after a copy."""
        self._streams[stream].drain()

    def note_launch(self, name: str, reads: Sequence[Array], writes: Sequence[Array], *, stream: int = 0) -> None:
        """Notes a kernel of another library, which ran after all launches of the stream, with its reads and writes."""
        if self.checked:
            self._streams.watch([*reads, *writes])
            self._streams[stream].note_launch(name, rows_of(reads), rows_of(writes))

    def _chosen_blocks(self, instance: str, grid: Dim) -> list[int] | None:
        """Linear indices of the blocks to run, each once; None for all. Raises LaunchError for one outside the grid."""
        if self.only_blocks is None:
            return None
        numbers: dict[int, None] = {}
        for block in self.only_blocks(instance, grid):
            if any(not 0 <= index < size for index, size in zip(block, grid, strict=True)):
                raise LaunchError(f"{instance}: block {block} is to be run, the grid is {grid}")
            x, y, z = block
            numbers[x + grid[0] * (y + grid[1] * z)] = None
        return list(numbers)

    def _sparse(self, shape: Sequence[int], dtype: Any, pattern: int) -> Array:
        """Array that holds two bytes over and over, and takes room only where it is written."""
        size = byte_count(shape, dtype)
        try:
            memory = self._runtime.SparseMemory(size, pattern)
        except MemoryError as error:
            raise DeviceError(f"{size} bytes of address space cannot be had") from error
        return np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)

    def _options(self) -> Any:
        sign = _SIGNS[self.approx]
        return self._runtime.Options(
            checked=self.checked, schedule=_SCHEDULES[self.schedule], seed=self.seed % 2**64,
            workers=self.workers, mma=_MMA_ROUNDINGS[self.mma], exp2_ulps=sign * _EXP2_ULPS,
            tanh_factor=1.0 + sign * _TANH_ERROR,
            rsqrt_factor=1.0 + sign * _RSQRT_ERROR, reciprocal_factor=1.0 + sign * _RECIPROCAL_ERROR,
            library_sign=sign,
        )  # fmt: skip


def missing() -> str | None:
    """Why the emulator cannot run here; None if it can."""
    try:
        _runtime()
        host_compiler.compiler()
    except DeviceError as error:
        return str(error)
    return None


def _runtime() -> ModuleType:
    try:
        return importlib.import_module("gemma_cuda._emulator")
    except ImportError as error:
        raise DeviceError(
            "device 'emulator' needs the compiled part of gemma-cuda, which was not built when it was installed: "
            f"it takes Linux on x86-64 and a C++ compiler at installation ({error})"
        ) from error
