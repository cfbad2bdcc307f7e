"""A GPU for tests: what gemma_cuda/device/cuda/device.py asks of CuPy and of the CUDA driver, answered by the emulator.

As on a GPU, work waits in its stream until a synchronisation; a launch is a pointer to pointers to bytes; a block
has 48 KiB of shared memory until its kernel is allowed more; freed memory is gone, and so is a kernel that nobody
holds. What a kernel does wrong shows at the next synchronisation and fails everything after it.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import itertools
import json
import math
import sys
import types
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda.bindings.nvrtc  # these before the driver is replaced: they look into it
import cuda.bindings.runtime  # and torch imports this
import numpy as np
import pytest

from gemma_cuda.device.cuda import cublaslt_bindings
from gemma_cuda.device.emulator.device import Emulator
from tests.support.fake_streams import Allocation, CUDARuntimeError, Event, HostArray, Stream, Work, elapsed_time

DEFAULT_SHARED_BYTES = 48 * 1024
REGISTERS = 65536  # of a multiprocessor
COPY_TO_DEVICE, COPY_ON_DEVICE = 1, 3  # cudaMemcpyKind
PROPERTIES = {"name": b"NVIDIA Fake 9000 (80 GB)", "l2CacheSize": 64 * 1024}
OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class Status(enum.IntEnum):
    """CUresult."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701


class CUDADriverError(RuntimeError):
    """What CuPy raises for a status of the driver."""


class OutOfMemoryError(MemoryError):
    """What CuPy raises when its pool can get no more."""


class Memory:
    """cupy.cuda.UnownedMemory, and what an array's own memory is: `size` bytes at `ptr`; owner: kept as long."""

    def __init__(self, machine: Machine, ptr: int, size: int, owner: object, device_id: int) -> None:
        self.machine, self.ptr, self.size, self._owner = machine, ptr, size, owner
        allocation, data = machine.pointed_to(ptr, "void")
        assert data.nbytes >= size and allocation.device == device_id
        self.allocation = allocation


class MemoryPointer:
    """cupy.cuda.MemoryPointer."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset

    def memset_async(self, value: int, size: int) -> None:
        allocation, data = self.mem.machine.pointed_to(self.ptr, "void")
        self.mem.machine.enqueue(Work("memset", lambda: data[:size].fill(value), [allocation]))


class DeviceArray:
    """cupy.ndarray as far as the package may use it: views are free, values come and go by get and set only."""

    def __init__(self, shape: Sequence[int], dtype: Any, memptr: MemoryPointer, strides: Any = None) -> None:
        self._machine, self._allocation, self.data = memptr.mem.machine, memptr.mem.allocation, memptr
        whole = self._allocation.data
        offset = memptr.ptr - whole.ctypes.data if whole.size else 0
        self._host = host = HostArray(tuple(shape), dtype, whole, offset, strides)
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.ndim, self.size, self.nbytes, self.itemsize = host.ndim, host.size, host.nbytes, host.itemsize
        self.flags = host.flags
        self.device = types.SimpleNamespace(id=self._allocation.device)

    def _view(self, host: HostArray) -> DeviceArray:
        if not np.shares_memory(host, self._allocation.data) and host.size:
            raise NotImplementedError("this needs a copy on the GPU")
        mem = self.data.mem
        offset = host.ctypes.data - mem.ptr if host.size else 0
        return DeviceArray(host.shape, host.dtype, MemoryPointer(mem, offset), host.strides)

    def __getitem__(self, key: Any) -> DeviceArray:
        return self._view(self._host[key] if isinstance(key, tuple) else self._host[key, ...])

    def __len__(self) -> int:
        return len(self._host)

    def __array__(self, *args: object, **options: object) -> HostArray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def reshape(self, *shape: Any) -> DeviceArray:
        return self._view(self._host.reshape(*shape))

    def view(self, dtype: Any) -> DeviceArray:
        return self._view(self._host.view(dtype))

    def transpose(self, *axes: int) -> DeviceArray:
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> DeviceArray:
        return self._view(self._host.swapaxes(first, second))

    def broadcast_to(self, shape: Sequence[int]) -> DeviceArray:
        return self._view(np.broadcast_to(self._host, shape))

    def set(self, arr: HostArray) -> None:
        if arr.dtype != self.dtype or arr.shape != self.shape or not self.flags.c_contiguous:
            raise ValueError("set wants a contiguous array of the same shape and dtype")
        host = self._host  # the driver may, but need not, copy pageable memory before it returns
        self._machine.enqueue(Work("set", lambda: np.copyto(host, arr), [self._allocation]))

    def get(self) -> HostArray:
        self._machine.stream.synchronize()
        return self._host.copy()


class RawKernel:
    """cupy.RawKernel: a function of a module on the GPU that was current when it was loaded."""

    def __init__(self, machine: Machine, record: dict[str, Any]) -> None:
        self.record, self.device, self._machine = record, machine.device, machine
        self._dynamic = DEFAULT_SHARED_BYTES - self._static
        self.kernel = types.SimpleNamespace(ptr=machine.register(self))

    @property
    def _static(self) -> int:
        return int(self.record["resources"]["static_shared_bytes"])

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= self._machine.attributes["MaxSharedMemoryPerBlockOptin"] - self._static:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._dynamic = size


class RawModule:
    """cupy.RawModule(path=...) of a cubin that the package's compile function wrote."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        machine.modules.append(path)
        self._cubin = Path(path).read_bytes()
        stem = path.rpartition("-")[0]
        self._record: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text())

    def get_function(self, name: str) -> RawKernel:
        if self._record["architecture"].strip("sm_a") != self._machine.capability:
            raise CUDADriverError(
                "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on the device"
            )
        if name.encode() + b"\0" not in self._cubin or name != self._record["lowered_name"]:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(self._machine, self._record)


class Device:
    """cupy.cuda.Device."""

    def __init__(self, machine: Machine, index: int) -> None:
        self._machine, self.id = machine, index
        self.compute_capability, self.attributes = machine.capability, machine.attributes
        self._outer: list[int] = []

    @property
    def mem_info(self) -> tuple[int, int]:
        return self._machine.memory_left, self._machine.memory

    def synchronize(self) -> None:
        for stream in self._machine.streams:
            if stream.device == self.id:
                stream.synchronize()

    def __enter__(self) -> Device:
        self._outer.append(self._machine.device)
        self._machine.device = self.id
        return self

    def __exit__(self, *error: object) -> None:
        self._machine.device = self._outer.pop()


class LaunchConfig:
    """CUlaunchConfig: zero until it is set, as in cuda-bindings."""

    def __init__(self) -> None:
        self.gridDimX = self.gridDimY = self.gridDimZ = self.blockDimX = self.blockDimY = self.blockDimZ = 0
        self.sharedMemBytes = self.hStream = self.numAttrs = 0
        self.attrs: list[LaunchAttribute] = []


class LaunchAttribute:
    """CUlaunchAttribute."""

    def __init__(self) -> None:
        self.id = 0
        self.value = types.SimpleNamespace(programmaticStreamSerializationAllowed=0)


class Machine:
    """GPUs with their memory, streams and kernels. failure: what a kernel did wrong; nothing works from then on."""

    def __init__(self, emulator: Emulator, *, gpus: int = 1, capability: str = "90", memory: int = 2**30) -> None:
        self.emulator, self.gpus, self.capability = emulator, gpus, capability
        self.memory_left = self.memory = memory
        self.attributes = {"MaxSharedMemoryPerBlockOptin": emulator.shared_bytes}
        self.failure: str | None = None
        self.clock = 0.0  # milliseconds, moved on by work that says how long it takes
        self.work_ms = 0.0  # and by any work
        self.device = 0
        self.streams = [Stream(self, 0, device) for device in range(max(gpus, 1))]
        self.current_streams = [[null] for null in self.streams]  # of each GPU
        self.running = self.streams[0]  # whose work runs now
        self.live: list[Allocation] = []
        self.allocated = self.waits = 0  # numbers of allocations of GPU memory, and of waits for the GPU
        self.launched: list[str] = []
        self.graphs_launched = 0
        self.modules: list[str] = []
        self.pinned: list[HostArray] = []
        self.overlaps: list[bool] = []  # the attributes of the last launch
        self.is_capturing = False
        self._kernels: weakref.WeakValueDictionary[int, RawKernel] = weakref.WeakValueDictionary()
        self._handles = itertools.count(0x1000)

    @property
    def stream(self) -> Stream:
        """The current stream of the current GPU."""
        return self.current_streams[self.device][-1]

    def new_stream(self, ptr: int | None = None) -> Stream:
        """A stream of the current GPU. ptr: a handle that the driver gives again, its stream was destroyed."""
        self.streams.append(Stream(self, next(self._handles) if ptr is None else ptr, self.device))
        return self.streams[-1]

    def stream_at(self, ptr: int) -> Stream:
        """The stream of the current GPU that a handle stands for by now."""
        found = [stream for stream in self.streams if stream.ptr == ptr and stream.device == self.device]
        if not found:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
        return found[-1]

    def enqueue(self, work: Work) -> None:
        """Puts a copy or a memset on the current stream."""
        self.stream.put(replace(work, follows=True, ends=True))

    def register(self, kernel: RawKernel) -> int:
        handle = next(self._handles)
        self._kernels[handle] = kernel
        return handle

    def device_count(self) -> int:
        if self.gpus == 0:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.gpus

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self.memory_left:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        self.memory_left -= size
        host = self.emulator.empty(shape, dtype)
        allocation = Allocation(host.reshape(-1).view(np.uint8), self.device, self.stream)
        self.live.append(allocation)
        self.allocated += 1
        owner = type("Owner", (), {})()
        weakref.finalize(owner, self._free, allocation).atexit = False
        memory = Memory(self, host.ctypes.data, host.nbytes, owner, self.device)
        return DeviceArray(shape, dtype, MemoryPointer(memory, 0))

    def adopt(self, host: HostArray) -> DeviceArray:
        """An array over memory of this GPU that another library allocated and keeps: cupy.from_dlpack."""
        data = host.reshape(-1).view(np.uint8)
        assert np.shares_memory(data, host) or not host.size, "only contiguous memory stands for that of a GPU"
        allocation = Allocation(data, self.device, self.stream)
        self.live.append(allocation)
        memory = Memory(self, host.ctypes.data, host.nbytes, host, self.device)
        return DeviceArray(host.shape, host.dtype, MemoryPointer(memory, 0), host.strides)

    def _free(self, allocation: Allocation) -> None:
        """The next array of the same stream may get this memory: what waits there runs first, elsewhere it may not."""
        self.live.remove(allocation)
        self.memory_left += allocation.data.nbytes
        for stream in self.streams:
            for work in stream.queue:
                if allocation in work.memory and stream is not allocation.stream:
                    self.failure = f"{work.name}: memory was freed while this waited for it in another stream"

    def pointed_to(self, pointer: int, dtype: str) -> tuple[Allocation, HostArray]:
        for allocation in self.live:
            begin = allocation.data.ctypes.data
            if allocation.device == self.device and begin <= pointer < begin + max(allocation.data.nbytes, 1):
                data = allocation.data[pointer - begin :]
                if dtype not in ("void", "struct"):
                    data = data[: data.nbytes - data.nbytes % np.dtype(dtype).itemsize].view(dtype)
                return allocation, data
        raise LookupError(f"{pointer:#x} is not the address of memory in use on this GPU")

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int,
        stream: int,
    ) -> None:  # fmt: skip
        """cudaMemcpy2DAsync from device to device."""
        assert kind == COPY_ON_DEVICE and width <= min(target_pitch, source_pitch)
        (to, to_bytes), (of, of_bytes) = (self.pointed_to(pointer, "void") for pointer in (target, source))

        def run() -> None:
            for row in range(height):
                to_bytes[row * target_pitch :][:width] = of_bytes[row * source_pitch :][:width]

        self.stream_at(stream).put(Work("memcpy2D", run, [to, of]))

    def copy_memory(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        """cudaMemcpyAsync, on the device or from pinned memory, which is read when its turn comes."""
        assert kind in (COPY_TO_DEVICE, COPY_ON_DEVICE)
        to, to_bytes = self.pointed_to(target, "void")
        memory = [to]
        if kind == COPY_ON_DEVICE:
            of, of_bytes = self.pointed_to(source, "void")
            memory.append(of)
        else:
            (pinned,) = (p for p in self.pinned if p.ctypes.data <= source < p.ctypes.data + p.nbytes)
            of_bytes = pinned[source - pinned.ctypes.data :]

        def run() -> None:
            to_bytes[:size] = of_bytes[:size]

        self.stream_at(stream).put(Work("memcpy", run, memory))

    def pin(self, size: int) -> HostArray:
        """cupy.cuda.alloc_pinned_memory: what was dropped may be given again at once, and then be written to."""
        memory = np.empty(size, np.uint8)
        self.pinned.append(memory)
        owner = memory[:]
        weakref.finalize(owner, memory.fill, 0xFF).atexit = False
        return owner

    def launch(self, config: LaunchConfig, function: int, parameters: int, extra: int) -> tuple[Status]:
        """cuLaunchKernelEx."""
        kernel = self._kernels.get(function)
        if self.failure is not None:
            return (Status.CUDA_ERROR_ILLEGAL_ADDRESS,)
        try:
            stream = self.stream_at(config.hStream)
        except CUDARuntimeError:
            return (Status.CUDA_ERROR_INVALID_HANDLE,)
        if kernel is None:
            return (Status.CUDA_ERROR_INVALID_HANDLE,)
        if kernel.device != self.device:
            return (Status.CUDA_ERROR_INVALID_CONTEXT,)
        grid = (config.gridDimX, config.gridDimY, config.gridDimZ)
        block = (config.blockDimX, config.blockDimY, config.blockDimZ)
        if 0 in grid + block or config.sharedMemBytes > kernel.max_dynamic_shared_size_bytes or extra != 0:
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        if config.numAttrs != len(config.attrs) or any(attribute.id != OVERLAP for attribute in config.attrs):
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        if kernel.record["resources"]["registers"] * block[0] * block[1] * block[2] > REGISTERS:
            return (Status.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,)
        instance, shared_bytes = kernel.record["instance"], config.sharedMemBytes
        try:
            args, memory = self._unpack(kernel.record["parameters"], parameters)
        except LookupError as error:
            self.failure = f"{instance}: {error}"
        else:
            self.overlaps = [attribute.value.programmaticStreamSerializationAllowed == 1 for attribute in config.attrs]
            self._put_kernel(stream, instance, (grid, block, shared_bytes, args), memory, overlap=any(self.overlaps))
            self.launched.append(instance)
        return (Status.CUDA_SUCCESS,)

    def _put_kernel(
        self, stream: Stream, instance: str, launch: Sequence[Any], memory: Sequence[Allocation], *, overlap: bool
    ) -> None:
        def run() -> None:
            self.emulator.launch(instance, *launch, overlap=overlap, stream=self.running.ptr)

        stream.put(Work(instance, run, memory))

    def _unpack(self, parameters: list[dict[str, Any]], address: int) -> tuple[list[Any], list[Allocation]]:
        """The emulator's arguments out of the bytes that a launch points to; the emulator checks their types again."""
        args, memory = [], []
        pointers = (ctypes.c_void_p * len(parameters)).from_address(address)
        for parameter, pointer in zip(parameters, pointers, strict=True):
            assert pointer is not None, f"no bytes for {parameter['name']}"
            data = ctypes.string_at(pointer, parameter["size"])
            if parameter["kind"] == "struct":
                args.append(data)
            elif parameter["kind"] != "pointer":
                args.append(np.frombuffer(data, parameter["type"])[0])
            elif not any(data):
                args.append(None)
            else:
                allocation, array = self.pointed_to(int.from_bytes(data, "little"), parameter["type"])
                memory.append(allocation)
                args.append(array)
        return args, memory

    def install(self, monkeypatch: pytest.MonkeyPatch, *, bindings: bool = True) -> None:
        """Makes this machine what `import cupy` and, with `bindings`, `from cuda.bindings import driver` find."""
        # What lies in this machine's memory is for no cuBLASLt that is really there.
        monkeypatch.setattr(cublaslt_bindings, "libraries", lambda: iter(()))
        monkeypatch.delenv(cublaslt_bindings.LIBRARY_VARIABLE, raising=False)
        runtime = types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=self.device_count,
            memcpyAsync=self.copy_memory,
            memcpyHostToDevice=COPY_TO_DEVICE,
            memcpy2DAsync=self.copy_rows,
            memcpyDeviceToDevice=COPY_ON_DEVICE,
            getDeviceProperties=lambda index: dict(PROPERTIES),
            streamIsCapturing=lambda ptr: self.is_capturing,
        )
        cupy = types.ModuleType("cupy")
        cupy.__dict__.update(
            ndarray=DeviceArray,
            empty=self.empty,
            get_default_memory_pool=lambda: types.SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None),
            asarray=lambda holder: holder.array,
            broadcast_to=DeviceArray.broadcast_to,
            RawModule=lambda *, path: RawModule(self, path),
            cuda=types.SimpleNamespace(
                Device=lambda index: Device(self, index),
                Event=lambda disable_timing=False: Event(self),
                get_current_stream=lambda: self.stream,
                Stream=lambda *, non_blocking: self.new_stream(),
                UnownedMemory=functools.partial(Memory, self),
                MemoryPointer=MemoryPointer,
                alloc_pinned_memory=self.pin,
                get_elapsed_time=elapsed_time,
                ExternalStream=self.stream_at,
                runtime=runtime,
                driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
                memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            ),
        )
        driver = types.ModuleType("cuda.bindings.driver")
        driver.__dict__.update(
            CUlaunchConfig=LaunchConfig,
            CUlaunchAttribute=LaunchAttribute,
            CUlaunchAttributeID=types.SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=OVERLAP),
            cuLaunchKernelEx=self.launch,
        )
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        if bindings:
            monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
            monkeypatch.setattr(cuda.bindings, "driver", driver, raising=False)
