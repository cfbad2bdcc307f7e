"""Kernels loaded on one GPU, and launches of them: arguments packed as the kernel's signature declares them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceError, LaunchError
from .. import sources
from ..arguments import Parameter, check_count, check_dimensions, check_pointer, pack_scalar
from ..dry_run import Launch
from ..protocol import Argument, Dim
from .compile import CompiledKernel, compile_kernel, compile_kernels
from .launch_plan import Operand

if TYPE_CHECKING:
    import cupy

DEFAULT_SHARED_BYTES = 48 * 1024
"""Shared memory of a block without an opt-in of its kernel."""


class PreparedLaunch:
    """A StreamLaunch of one kernel. function: the driver's handle; values: the bytes of each argument.

    describe: gives the launch in words, for errors. module: keeps the function loaded.
    """

    def __init__(
        self, instance: str, function: int, grid: Dim, block: Dim, shared_bytes: int, values: Sequence[bytes],
        *, overlap: bool, describe: Callable[[], str], module: object = None,
    ) -> None:  # fmt: skip
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


@dataclass
class LoadedKernel:
    """A kernel on the GPU. raw: keeps it loaded; shared_bytes: of a block, as opted into by now."""

    compiled: CompiledKernel
    raw: cupy.RawKernel
    most_threads: int | None
    shared_bytes: int = DEFAULT_SHARED_BYTES


class KernelLoader:
    """Kernels of one GPU, each compiled and loaded at its first use. Its methods need that GPU to be the current one.

    shared_bytes: most that a block may opt into. kernels, cache: directories, as of compile_kernel.
    """

    def __init__(
        self, gpu: int, architecture: str, shared_bytes: int, kernels: Path | None, cache: Path | None
    ) -> None:
        self._gpu, self._architecture, self._shared_bytes = gpu, architecture, shared_bytes
        self._kernels, self._cache = kernels, cache
        self.loaded: dict[str, LoadedKernel] = {}

    def prepare(
        self, instance: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int, args: Sequence[Argument],
        *, overlap: bool,
    ) -> tuple[PreparedLaunch, Iterator[Operand]]:  # fmt: skip
        """A launch, and its array operands. Raises LaunchError for arguments that do not fit the kernel or the GPU."""
        grid_dim, block_dim = check_dimensions(instance, grid, block, shared_bytes, self._shared_bytes)
        kernel = self.load(instance)
        most = kernel.most_threads
        if most is not None and block_dim[0] * block_dim[1] * block_dim[2] > most:
            raise LaunchError(f"{instance}: the block is {block_dim}, the kernel's launch bounds allow {most} threads")
        parameters = kernel.compiled.parameters
        values = self._pack(instance, parameters, args)
        self._opt_into_shared_memory(kernel, shared_bytes)
        given, resources = [_facts(value) for value in args], kernel.compiled.resources
        launch = PreparedLaunch(
            instance, kernel.raw.kernel.ptr, grid_dim, block_dim, shared_bytes, values, overlap=overlap,
            module=kernel.raw,
            describe=lambda: (
                f"grid {grid_dim}, block {block_dim}, {shared_bytes} bytes of shared memory, {resources}, "
                f"arguments {_words(parameters, given)}"
            ),
        )  # fmt: skip
        return launch, _operands(parameters, args, values)

    def load(self, instance: str) -> LoadedKernel:
        """The kernel of an instance. Raises DeviceError where the driver does not take its cubin."""
        import cupy

        found = self.loaded.get(instance)
        if found is None:
            compiled = compile_kernel(instance, self._architecture, kernels=self._kernels, cache=self._cache)
            try:
                raw = cupy.RawModule(path=str(compiled.cubin)).get_function(compiled.lowered_name)
            except cupy.cuda.driver.CUDADriverError as error:
                raise DeviceError(
                    f"{instance}: the driver cannot load what {compiled.compiler} made for {self._architecture}: "
                    f"{error}"
                ) from error
            most_threads = sources.most_threads(instance, sources.find_kernel(instance, self._kernels))
            found = self.loaded[instance] = LoadedKernel(compiled, raw, most_threads)
        return found

    def load_all(self, launches: Sequence[Launch]) -> None:
        """Loads the kernels of launches; those not in the cache are compiled before, on all processors at once."""
        instances = [launch.instance for launch in launches]
        compile_kernels(instances, self._architecture, kernels=self._kernels, cache=self._cache)
        for launch in launches:
            self._opt_into_shared_memory(self.load(launch.instance), launch.shared_bytes)

    def _pack(self, instance: str, parameters: Sequence[Parameter], args: Sequence[Argument]) -> list[bytes]:
        """The bytes of each argument, of the type that the kernel declares."""
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
        if array.device.id != self._gpu:
            there, here = f"cuda:{array.device.id}", f"cuda:{self._gpu}"
            raise LaunchError(f"{instance}: argument {position} ({parameter.name}) is on {there}, not on {here}")
        # Kernels take the strides of the other axes as arguments; that of the last one is always 1.
        if array.size > 1 and array.shape[-1] > 1 and array.strides[-1] != array.dtype.itemsize:
            raise LaunchError(
                f"{instance}: argument {position} ({parameter.name}) is a view whose last axis is not contiguous"
            )

    def _opt_into_shared_memory(self, kernel: LoadedKernel, shared_bytes: int) -> None:
        static = kernel.compiled.resources.static_shared_bytes
        if static + shared_bytes > self._shared_bytes:
            raise LaunchError(
                f"{kernel.compiled.instance}: {static} bytes of static and {shared_bytes} bytes of dynamic shared "
                f"memory, a block has {self._shared_bytes}"
            )
        if static + shared_bytes > kernel.shared_bytes:
            kernel.raw.max_dynamic_shared_size_bytes = shared_bytes
            kernel.shared_bytes = static + shared_bytes


def _operands(parameters: Sequence[Parameter], args: Sequence[Argument], values: Sequence[bytes]) -> Iterator[Operand]:
    """The arrays among the arguments that have elements."""
    import cupy

    for parameter, value, packed in zip(parameters, args, values, strict=True):
        if isinstance(value, cupy.ndarray) and value.size > 0:
            yield Operand.of(parameter.name, value, int.from_bytes(packed, "little"))


def _facts(value: Argument) -> Any:
    """An argument for an error message: of an array dtype, shape and address, so that its memory is not held."""
    if not hasattr(value, "dtype") or not hasattr(value, "data") or isinstance(value, np.generic):
        return value
    return value.dtype.name, tuple(value.shape), value.data.ptr


def _words(parameters: Sequence[Parameter], given: Sequence[Any]) -> str:
    """Arguments for an error message: "x = bfloat16[5, 640] at 0x7f00, E = 640"."""
    return ", ".join(
        f"{parameter.name} = {facts[0]}{list(facts[1])} at {facts[2]:#x}"
        if isinstance(facts, tuple)
        else f"{parameter.name} = {facts!r}"
        for parameter, facts in zip(parameters, given, strict=True)
    )
