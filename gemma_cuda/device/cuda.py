"""An NVIDIA GPU through CuPy."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeviceError, KernelError, LaunchError, OutOfMemoryError
from . import sources
from .arguments import Parameter, check_count, check_dimensions, check_pointer, pack_scalar
from .compile import CompiledKernel, architecture_of, compile_kernel
from .protocol import Argument, Array, Dim

if TYPE_CHECKING:
    import cupy

DEFAULT_SHARED_BYTES = 48 * 1024
"""What a block may have without asking for more, kernel by kernel."""
_FIRST_WITH_OVERLAP = (9, 0)


@dataclass
class _Kernel:
    """A kernel that is loaded on the GPU. raw keeps it loaded; shared_bytes: of a block, that it may have by now."""

    compiled: CompiledKernel
    raw: cupy.RawKernel
    most_threads: int | None
    shared_bytes: int = DEFAULT_SHARED_BYTES


class Cuda:
    """A device that runs kernels on one GPU, on the caller's current CuPy stream.

    index: of the GPU among those visible. wait: wait for each kernel, so that what it does wrong is reported at its
    launch. kernels: directory of .cu files, cache: of cubins (None: the package's own, the user's).
    A kernel is compiled and loaded at its first launch; before a stream is captured, launch once what it will launch.
    Raises DeviceError where there is no such GPU or something is not installed.
    """

    name = "cuda"

    def __init__(
        self, index: int = 0, *, wait: bool = False, kernels: Path | None = None, cache: Path | None = None
    ) -> None:
        _require()
        import cupy

        self.index, self.wait = index, wait
        self._kernels, self._cache = kernels, cache
        self._loaded: dict[str, _Kernel] = {}
        self._last = ""
        try:
            count = cupy.cuda.runtime.getDeviceCount()
            if not 0 <= index < count:
                raise DeviceError(f"device 'cuda:{index}' does not exist: {count} GPUs are visible")
            self._gpu = cupy.cuda.Device(index)
            capability = self._gpu.compute_capability
            self.shared_bytes = int(self._gpu.attributes["MaxSharedMemoryPerBlockOptin"])
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"device 'cuda' cannot be used: {error}") from error
        self.compute_capability = int(capability[:-1]), int(capability[-1])
        self.architecture = architecture_of(self.compute_capability)

    @classmethod
    def named(cls, name: str, **options: Any) -> Cuda:
        """The device "cuda" (the first GPU) or "cuda:1" stands for; raises DeviceError for any other name."""
        match = re.fullmatch(r"cuda(?::(\d+))?", name)
        if match is None:
            raise DeviceError(f"device is {name!r}, expected 'cuda' or a GPU's index as in 'cuda:1'")
        return cls(int(match[1] or 0), **options)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape whose values are not defined; raises OutOfMemoryError."""
        import cupy

        with self._gpu:
            try:
                return cupy.empty(tuple(shape), dtype)
            except cupy.cuda.memory.OutOfMemoryError as error:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                free, total = self._gpu.mem_info
                raise OutOfMemoryError(
                    f"cuda:{self.index}: {size:,} bytes asked for, {free:,} of {total:,} are free"
                ) from error

    def from_host(self, array: Array) -> Array:
        """Contiguous copy on the GPU, same shape and dtype; the host's array may be changed at once."""
        copy = self.empty(array.shape, array.dtype)
        with self._gpu, self._reporting():
            copy.set(array)
        return copy

    def to_host(self, array: Array) -> Array:
        """NumPy copy of what the kernels launched so far on the current stream leave in `array`."""
        with self._gpu, self._reporting():
            return array.get()

    def address(self, array: Array) -> int:
        """Where the array's first element lies in the GPU's memory."""
        return int(array.data.ptr)

    def is_capturing(self) -> bool:
        """Whether what is launched on the current stream is captured into a CUDA graph."""
        import cupy

        with self._gpu:
            return bool(cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr))

    def synchronize(self, *, all_streams: bool = False) -> None:
        """Waits for the kernels on the current stream, or on all of the GPU; KernelError if one of them failed."""
        import cupy

        with self._gpu, self._reporting():
            (self._gpu if all_streams else cupy.cuda.get_current_stream()).synchronize()

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
        """Starts one kernel instance on the current stream; see Device.launch. Before sm_90, overlap changes nothing.

        Arrays may be dropped once this returns: their memory is used again only by what comes later in their stream.
        Raises LaunchError before anything runs. What a kernel does wrong is a KernelError of whoever waits for it next.
        """
        grid_dim, block_dim = check_dimensions(instance, grid, block, shared_bytes, self.shared_bytes)
        overlap = overlap and self.compute_capability >= _FIRST_WITH_OVERLAP
        with self._gpu:
            kernel = self._load(instance)
            most = kernel.most_threads
            if most is not None and block_dim[0] * block_dim[1] * block_dim[2] > most:
                raise LaunchError(
                    f"{instance}: the block is {block_dim}, the kernel's launch bounds allow {most} threads"
                )
            values = self._pack(instance, kernel.compiled.parameters, args)
            self._allow_shared_memory(kernel, shared_bytes)
            status = self._submit(kernel, grid_dim, block_dim, shared_bytes, values, overlap=overlap)
            if int(status) != 0:
                given = ", ".join(_words(p, a) for p, a in zip(kernel.compiled.parameters, args, strict=True))
                raise LaunchError(
                    f"{instance}: CUDA refuses the launch with {status.name}: grid {grid_dim}, block {block_dim}, "
                    f"{shared_bytes} bytes of shared memory, {kernel.compiled.resources}, arguments {given}"
                )
            self._last = instance
            if self.wait:
                self.synchronize()

    def _load(self, instance: str) -> _Kernel:
        import cupy

        found = self._loaded.get(instance)
        if found is None:
            compiled = compile_kernel(instance, self.architecture, kernels=self._kernels, cache=self._cache)
            try:
                raw = cupy.RawModule(path=str(compiled.cubin)).get_function(compiled.lowered_name)
            except cupy.cuda.driver.CUDADriverError as error:
                raise DeviceError(
                    f"{instance}: the driver cannot load what {compiled.compiler} made for {self.architecture}: {error}"
                ) from error
            most_threads = sources.most_threads(instance, sources.find_kernel(instance, self._kernels))
            found = self._loaded[instance] = _Kernel(compiled, raw, most_threads)
        return found

    def _pack(self, instance: str, parameters: Sequence[Parameter], args: Sequence[Argument]) -> list[bytes]:
        """The bytes of each argument as the kernel's signature wants them."""
        import cupy

        check_count(instance, parameters, args)
        packed = []
        for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            if isinstance(value, cupy.ndarray):
                check_pointer(instance, position, parameter, value.dtype, read_only=False)
                self._check_array(instance, position, parameter, value)
                packed.append(int(value.data.ptr).to_bytes(8, "little"))
            elif parameter.kind == "pointer":
                if value is not None:
                    raise LaunchError(
                        f"{instance}: argument {position} ({parameter.name}) is {type(value).__module__}."
                        f"{type(value).__name__}, the kernel wants an array of {parameter.type} on the GPU"
                    )
                packed.append(bytes(8))
            else:
                packed.append(pack_scalar(instance, position, parameter, value))
        return packed

    def _check_array(self, instance: str, position: int, parameter: Parameter, array: cupy.ndarray) -> None:
        if array.device.id != self.index:
            there, here = f"cuda:{array.device.id}", f"cuda:{self.index}"
            raise LaunchError(f"{instance}: argument {position} ({parameter.name}) is on {there}, not on {here}")
        # Kernels take the strides of other axes as numbers, that of the last one never.
        if array.size > 1 and array.shape[-1] > 1 and array.strides[-1] != array.dtype.itemsize:
            raise LaunchError(
                f"{instance}: argument {position} ({parameter.name}) is a view whose last axis is not contiguous"
            )

    def _allow_shared_memory(self, kernel: _Kernel, shared_bytes: int) -> None:
        static = kernel.compiled.resources.static_shared_bytes
        if static + shared_bytes > self.shared_bytes:
            raise LaunchError(
                f"{kernel.compiled.instance}: {static} bytes of static and {shared_bytes} bytes of dynamic shared "
                f"memory, a block has {self.shared_bytes}"
            )
        if static + shared_bytes > kernel.shared_bytes:
            kernel.raw.max_dynamic_shared_size_bytes = shared_bytes
            kernel.shared_bytes = static + shared_bytes

    def _submit(
        self,
        kernel: _Kernel,
        grid: Dim,
        block: Dim,
        shared_bytes: int,
        values: Sequence[bytes],
        *,
        overlap: bool = False,
    ) -> Any:
        """CUDA's status. The driver copies the arguments before it returns."""
        import cupy
        from cuda.bindings import driver

        buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
        addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared_bytes
        config.hStream = cupy.cuda.get_current_stream().ptr
        if overlap:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        (status,) = driver.cuLaunchKernelEx(config, kernel.raw.kernel.ptr, ctypes.addressof(addresses), 0)
        return status

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turns what CUDA reports of kernels launched before into a KernelError."""
        import cupy

        try:
            yield
        except cupy.cuda.runtime.CUDARuntimeError as error:
            hint = "" if self.wait else "; it, or one launched before it: Cuda(wait=True) tells which"
            raise KernelError(
                f"{error} after {self._last or 'no launch'}{hint}",
                kind="CUDA error",
                kernel=self._last,
                source="",
                block=(0, 0, 0),
                threads=(),
                primitive="",
                address=0,
            ) from error


def _require() -> None:
    """Raises DeviceError unless CuPy and cuda-bindings are installed."""
    try:
        import cupy  # noqa: F401
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs CuPy and cuda-bindings ({error}): pip install 'gemma-cuda[cuda13]' "
            "(cuda12 for a driver of CUDA 12)"
        ) from error


def _words(parameter: Parameter, value: Argument) -> str:
    """An argument for an error message: "x = bfloat16[5, 640] at 0x7f00", "E = 640"."""
    if parameter.kind != "pointer" or value is None:
        return f"{parameter.name} = {value!r}"
    return f"{parameter.name} = {value.dtype.name}{list(value.shape)} at {value.data.ptr:#x}"
