"""Memory of one GPU: arrays, and copies between them and the host in CuPy's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import DeviceError, OutOfMemoryError
from ..protocol import Array
from .context import CudaContext
from .staging import Pinned, Staging

_STAGED_BYTES = 16 * 2**20  # of a block of pinned memory


class CudaMemory(CudaContext):
    """A CudaContext whose arrays come from CuPy's current allocator or, while a plan is recorded, from its arena."""

    def __init__(self, index: int, *, wait: bool) -> None:
        super().__init__(index, wait=wait)
        self._staging: Staging | None = None

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape whose values are not defined; raises OutOfMemoryError."""
        import cupy

        if self._plan is not None:
            return self._plan.empty(tuple(shape), np.dtype(dtype), self.index)
        with self._gpu:
            try:
                return cupy.empty(tuple(shape), dtype)
            except cupy.cuda.memory.OutOfMemoryError as error:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                free, total = self._gpu.mem_info
                raise OutOfMemoryError(
                    f"cuda:{self.index}: {size:,} bytes asked for, {free:,} of {total:,} are free"
                ) from error

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros, filled in the current stream; raises OutOfMemoryError."""
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    def fill(self, array: Array, byte: int) -> None:
        """Sets each byte of a contiguous array in the current stream; 0xFF makes NaN of every float type."""
        self._check_not_recording("fill")
        with self._gpu, self._raise_cuda_errors:
            array.data.memset_async(byte, array.nbytes)

    def copy(self, target: Array, source: Array) -> None:
        """Copies source to target in the current stream; both have as many rows, each contiguous and of one size."""
        import cupy

        self._check_not_recording("copy")
        runtime = cupy.cuda.runtime
        row = source.nbytes // max(len(source), 1)
        pitches = [array.strides[0] if len(array) > 1 else row for array in (target, source)]
        to, of, kind = target.data.ptr, source.data.ptr, runtime.memcpyDeviceToDevice
        with self._gpu, self._raise_cuda_errors:
            if pitches == [row, row]:
                runtime.memcpyAsync(to, of, source.nbytes, kind, self.stream)
            else:
                runtime.memcpy2DAsync(to, pitches[0], of, pitches[1], row, len(source), kind, self.stream)

    def free_bytes(self) -> int:
        """Free memory of the GPU, and unused memory of CuPy's pool."""
        import cupy

        with self._gpu:
            return int(self._gpu.mem_info[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        """Returns unused memory of CuPy's pool to the GPU, for other libraries."""
        import cupy

        with self._gpu:
            cupy.get_default_memory_pool().free_all_blocks()

    def from_host(self, array: Array) -> Array:
        """Contiguous copy on the GPU, same shape and dtype; the host's array may be changed at once."""
        self._check_not_recording("from_host")
        copy = self.empty(array.shape, array.dtype)
        if array.size:
            self.upload(copy, array)
        return copy

    def to_host(self, array: Array) -> Array:
        """NumPy copy of the array at the present end of the current stream."""
        self._check_not_recording("to_host")
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array  # a dtype that CuPy can copy
        with self._gpu, self._raise_cuda_errors:
            values: Array = bits.get()
        return values.view(array.dtype)

    def upload(self, target: Array, source: Array) -> None:
        """Starts copying a host array, which may be changed at once, to a contiguous array of its size.

        It goes through pinned memory: CUDA does not define whether it has read pageable memory when it returns.
        """
        self._check_not_recording("upload")
        if self._staging is None:
            self._staging = Staging(self.pinned, self.upload_pinned, _STAGED_BYTES)
        self._staging.upload(target, np.require(source, requirements="C"))

    def upload_pinned(self, target: Array, source: Pinned, size: int, begin: int = 0, offset: int = 0) -> None:
        """Starts copying `size` pinned bytes from byte `offset` on, to byte `begin` on of a contiguous array.

        source.wait() waits until the host may change them. Raises DeviceError during a capture of the current stream.
        """
        import cupy

        self._check_not_recording("upload_pinned")
        if self.is_capturing():
            raise DeviceError(
                "a CUDA graph is being captured: it would copy what lies there at its replay; place all arrays before"
            )
        to_device = cupy.cuda.runtime.memcpyHostToDevice
        with self._gpu, self._raise_cuda_errors:
            to, of = target.data.ptr + begin, source.data.ctypes.data + offset
            cupy.cuda.runtime.memcpyAsync(to, of, size, to_device, self.stream)
            source.is_read_until(self.record_event(None).synchronize)

    def pinned(self, size: int) -> Pinned:
        """`size` bytes of pinned host memory."""
        import cupy

        with self._gpu, self._raise_cuda_errors:
            owner = cupy.cuda.alloc_pinned_memory(size)
        return Pinned(np.frombuffer(owner, np.uint8, size), owner)

    def address(self, array: Array) -> int:
        """Address of the array's first element in the GPU's memory."""
        return int(array.data.ptr)
