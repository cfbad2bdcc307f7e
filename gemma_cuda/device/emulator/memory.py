"""Memory of the emulator: arrays poisoned until they are written, and the address ranges of a launch's arguments.

Needs nothing compiled: tests on a GPU use it, too.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ...errors import LaunchError
from ..arguments import Parameter, check_pointer, pack_scalar
from ..protocol import Argument, Array
from .stream_memory import bounds_of

POISON = 0x7FA5
"""Both halves of unwritten memory's words: a NaN in bfloat16, float16 and float32 that no arithmetic yields."""

_ALIGNMENT = 256
_POISON_DTYPES = ("bfloat16", "float16", "float32")


def pattern_of(dtype: Any) -> int:
    """The two bytes that poisoned memory of a dtype holds over and over."""
    return POISON if np.dtype(dtype).itemsize % 2 == 0 else (POISON >> 8) * 0x101


def poisoned(shape: Sequence[int], dtype: Any) -> Array:
    """Array of the given shape that holds poison, NaN in every float type."""
    array = aligned(shape, dtype)
    data = array.reshape(-1).view(np.uint8)
    if array.dtype.itemsize % 2 == 0:
        data.view(np.uint16)[:] = pattern_of(dtype)
    else:
        data[:] = pattern_of(dtype) & 0xFF
    return Written.kept(array)


class Written:
    """One bit per byte of a poisoned array: written or not. An integer may equal the poison, a float cannot."""

    _kept: ClassVar[dict[int, Written]] = {}

    def __init__(self, array: Array) -> None:
        self.begin = array.ctypes.data
        self.end = self.begin + array.nbytes
        self.bits = np.zeros(-(-array.nbytes // 64), np.uint64)

    @classmethod
    def kept(cls, array: Array) -> Array:
        """The array; unless its dtype can tell poison, its written bytes are tracked until its memory is freed."""
        if array.size and array.dtype.name not in _POISON_DTYPES:
            written = cls(array)
            cls._kept[written.begin] = written
            weakref.finalize(array.base, cls._kept.pop, written.begin, None)
        return array

    @classmethod
    def of(cls, begin: int, end: int) -> Written | None:
        """The record of the array that contains [begin, end)."""
        return next((w for w in tuple(cls._kept.values()) if w.begin <= begin and end <= w.end), None)


def byte_count(shape: Sequence[int], dtype: Any) -> int:
    """Bytes of an array of the given shape."""
    return math.prod(int(size) for size in shape) * int(np.dtype(dtype).itemsize)


def aligned(shape: Sequence[int], dtype: Any) -> Array:
    """Array of the given shape at a multiple of 256 bytes, as cudaMalloc aligns: sector counts are reproducible."""
    size = byte_count(shape, dtype)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def bind(
    runtime: ModuleType, instance: str, parameters: Sequence[Parameter], args: Sequence[Argument]
) -> tuple[list[bytes], list[Any]]:
    """The bytes of each argument, and the memory that its pointers let the kernel access."""
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
    written = Written.of(begin, end)
    return runtime.Buffer(
        begin=begin, end=end, argument=argument, writable=writable, element_bytes=element_bytes,
        has_poison=has_poison or written is not None,
        written=0 if written is None else written.bits.ctypes.data,
        written_from=0 if written is None else written.begin,
    )  # fmt: skip


_Region = tuple[int, int, int, bool, bool, int]


def _merge(regions: list[_Region]) -> list[_Region]:
    """Joins regions that overlap, as those of views of one array; the result is writable if one of them is."""
    merged: list[_Region] = []
    for region in sorted(regions):
        if merged and region[0] < merged[-1][1]:
            begin, end, argument, writable, has_poison, size = merged[-1]
            merged[-1] = (
                begin,
                max(end, region[1]),
                argument,
                writable or region[3],
                has_poison and region[4] and size == region[5],  # an integer may equal poison
                min(size, region[5]),
            )
        else:
            merged.append(region)
    return merged
