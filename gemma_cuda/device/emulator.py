"""The emulator: CUDA kernels run, and are checked, on the CPU."""

from __future__ import annotations

import importlib
import math
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import DeviceError, LaunchError
from ..files import cache_directory
from ..memory import available_memory
from . import host_compiler, sources
from .arguments import Parameter, check_count, check_dimensions, check_pointer, names_of, pack_scalar
from .counters import Counters
from .faults import kernel_error, raise_divergence
from .host_compiler import HostCompiler
from .protocol import Argument, Array
from .recorder import Launch
from .stream_memory import Streams, bounds_of, ranges_of, rows_of

Schedule = Literal["forward", "reverse", "random"]
Approximation = Literal["exact", "up", "down"]

MAX_SHARED_BYTES = 227 * 1024  # of a block on sm_90
POISON = 0x7FA5
"""Both halves of unwritten memory's words: a NaN in bfloat16, float16 and float32 that no arithmetic yields."""

# Worst errors that the PTX ISA documents: units in the last place of ex2.approx.ftz.f32 beyond the correctly rounded
# result, and relative errors of tanh.approx.f32, rsqrt.approx.ftz.f32 and rcp.approx.ftz.f32.
_EXP2_ULPS, _TANH_ERROR, _RSQRT_ERROR, _RECIPROCAL_ERROR = 2, 2.0**-11, 2.0**-22.9, 2.0**-23
_SIGNS: dict[str, int] = {"exact": 0, "up": 1, "down": -1}
_ALIGNMENT = 256
_SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}
_POISON_DTYPES = ("bfloat16", "float16", "float32")


class Emulator:
    """A device that runs kernels on this machine's CPU.

    checked: look at every memory access, and count memory traffic. schedule, seed: in which order threads and blocks
    take turns. workers: host threads (None: one per CPU of this process). approx: whether approximate functions and
    those of CUDA's math library are exact or off by their documented worst error, upwards or downwards. kernels:
    directory of .cu files (None: the package's own). observe: called with (Launch, Counters) after each launch.
    shared_bytes: a block may have, as the GPU that is emulated has it.
    Raises DeviceError where the emulator cannot run.
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
        kernels: Path | None = None,
        cache: Path | None = None,
        observe: Callable[[Launch, Counters], None] | None = None,
        shared_bytes: int = MAX_SHARED_BYTES,
    ) -> None:
        if schedule not in _SCHEDULES:
            raise DeviceError(f"schedule is {schedule!r}, expected one of {', '.join(_SCHEDULES)}")
        if approx not in _SIGNS:
            raise DeviceError(f"approx is {approx!r}, expected one of {', '.join(_SIGNS)}")
        self.checked, self.schedule, self.seed, self.approx = checked, schedule, seed, approx
        self.workers = len(os.sched_getaffinity(0)) if workers is None else max(1, workers)
        self.shared_bytes = shared_bytes
        self.counters: Counters | None = None
        self._observe = observe
        self._runtime = _runtime()
        self._streams = Streams(self._runtime.Stream)
        self._compiler = HostCompiler(
            sources.kernel_directory() if kernels is None else kernels,
            Path(str(self._runtime.__file__)),
            (cache_directory() if cache is None else cache) / "emulator",
        )

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape that holds poison: a checked kernel that reads it before writing it is stopped."""
        return poisoned(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros."""
        self.drain()
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
        """What the machine has free."""
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
        """Where the array's first element lies."""
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
        stream: int = 0,
    ) -> None:
        """Runs one kernel instance; see Device.launch. What the kernel prints goes to sys.stdout.

        overlap: a launch is over when this returns, but a checked one must not rely on it. stream: which launches are
        before this one. Raises LaunchError before anything runs and KernelError for what a kernel does wrong.
        """
        grid_dim, block_dim = check_dimensions(instance, grid, block, shared_bytes, self.shared_bytes)
        path = self._compiler.library(instance, checked=self.checked)
        library = _load(self._runtime, path)
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
        packed, buffers = _bind(self._runtime, instance, parameters, args)
        if self.checked:
            self._streams.watch(args)
        result = self._runtime.launch(
            library,
            self._options(),
            grid=grid_dim,
            block=block_dim,
            shared_bytes=shared_bytes,
            arguments=packed,
            buffers=buffers,
            stream=self._streams[stream],
            name=instance,
            overlap=overlap,
            ranges=ranges_of(kernel, args) if overlap and self.checked else [],
        )
        if result["printed"]:
            sys.stdout.write(result["printed"].decode(errors="replace"))
        raise_divergence(instance, path, names, result["unlike_calls"])
        if result["report"] is not None:
            raise kernel_error(instance, path, names, result["report"])
        self.counters = Counters(**result["counters"])
        if self._observe is not None:
            self._observe(Launch(instance, math.prod(block_dim), shared_bytes), self.counters)

    def drain(self, *, stream: int = 0) -> None:
        """All launches of the stream end: what comes next there overlaps none of them, as after a copy."""
        self._streams[stream].drain()

    def note_launch(self, name: str, reads: Sequence[Array], writes: Sequence[Array], *, stream: int = 0) -> None:
        """Another library's kernel ran in the stream, after all before it had ended; what it read and wrote."""
        if self.checked:
            self._streams.watch([*reads, *writes])
            self._streams[stream].note_launch(name, rows_of(reads), rows_of(writes))

    def _options(self) -> Any:
        sign = _SIGNS[self.approx]
        return self._runtime.Options(
            checked=self.checked,
            schedule=_SCHEDULES[self.schedule],
            seed=self.seed % 2**64,
            workers=self.workers,
            exp2_ulps=sign * _EXP2_ULPS,
            tanh_factor=1.0 + sign * _TANH_ERROR,
            rsqrt_factor=1.0 + sign * _RSQRT_ERROR,
            reciprocal_factor=1.0 + sign * _RECIPROCAL_ERROR,
            library_sign=sign,
        )


def missing() -> str | None:
    """What keeps the emulator from running here, in words; None if nothing does."""
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


_libraries: dict[Path, Any] = {}


def _load(runtime: ModuleType, path: Path) -> Any:
    if path not in _libraries:
        try:
            _libraries[path] = runtime.Library(str(path))
        except RuntimeError as error:
            raise DeviceError(f"a compiled kernel cannot be loaded: {error}") from error
    return _libraries[path]


def poisoned(shape: Sequence[int], dtype: Any) -> Array:
    """Array of the given shape that holds poison, NaN in every float type."""
    array = aligned(shape, dtype)
    data = array.reshape(-1).view(np.uint8)
    if array.dtype.itemsize % 2 == 0:
        data.view(np.uint16)[:] = POISON
    else:
        data[:] = POISON >> 8
    if array.size and array.dtype.name not in _POISON_DTYPES:
        _Written.keep(array)
    return array


class _Written:
    """Which bytes of a poisoned array kernels have written: a number may equal the poison, where a float cannot."""

    _kept: ClassVar[dict[int, _Written]] = {}

    def __init__(self, array: Array) -> None:
        self.begin = array.ctypes.data
        self.end = self.begin + array.nbytes
        self.bits = np.zeros(-(-array.nbytes // 64), np.uint64)

    @classmethod
    def keep(cls, array: Array) -> None:
        """Remembers the array for as long as its memory is in use."""
        written = cls(array)
        cls._kept[written.begin] = written
        weakref.finalize(array.base, cls._kept.pop, written.begin, None)

    @classmethod
    def of(cls, begin: int, end: int) -> _Written | None:
        """That of the array which [begin, end) is part of."""
        return next((w for w in tuple(cls._kept.values()) if w.begin <= begin and end <= w.end), None)


def aligned(shape: Sequence[int], dtype: Any) -> Array:
    """Array of the given shape at a multiple of 256 bytes, as cudaMalloc gives: counts do not depend on luck."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _bind(
    runtime: ModuleType, instance: str, parameters: Sequence[Parameter], args: Sequence[Argument]
) -> tuple[list[bytes], list[Any]]:
    """The bytes of each argument, and the memory that the pointers among them open to the kernel."""
    packed, regions = [], []
    for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        if isinstance(value, np.ndarray):
            check_pointer(instance, position, parameter, value.dtype, read_only=not value.flags.writeable)
            begin, end = bounds_of(value)
            packed.append(value.ctypes.data.to_bytes(8, "little"))
            has_poison = value.dtype.name in _POISON_DTYPES
            if end > begin:
                regions.append((begin, end, position, not parameter.is_const, has_poison, value.dtype.itemsize))
        elif parameter.kind == "pointer":
            if value is not None:
                given = f"argument {position} ({parameter.name}) is {type(value).__name__}"
                raise LaunchError(f"{instance}: {given}, the kernel wants an array of {parameter.type}")
            packed.append(bytes(8))
        else:
            packed.append(pack_scalar(instance, position, parameter, value))
    return packed, [_buffer(runtime, *region) for region in _merge(regions)]


def _buffer(
    runtime: ModuleType, begin: int, end: int, argument: int, writable: bool, has_poison: bool, element_bytes: int
) -> Any:
    written = _Written.of(begin, end)
    return runtime.Buffer(
        begin=begin,
        end=end,
        argument=argument,
        writable=writable,
        has_poison=has_poison or written is not None,
        element_bytes=element_bytes,
        written=0 if written is None else written.bits.ctypes.data,
        written_from=0 if written is None else written.begin,
    )


_Region = tuple[int, int, int, bool, bool, int]


def _merge(regions: list[_Region]) -> list[_Region]:
    """Regions that overlap, as views of one array do, become one; it may be written if one of them may."""
    merged: list[_Region] = []
    for region in sorted(regions):
        if merged and region[0] < merged[-1][1]:
            begin, end, argument, writable, has_poison, size = merged[-1]
            merged[-1] = (
                begin,
                max(end, region[1]),
                argument,
                writable or region[3],
                has_poison and region[4] and size == region[5],  # else one's numbers look like the other's poison
                min(size, region[5]),
            )
        else:
            merged.append(region)
    return merged
