"""The emulator's streams, and the memory that their launches accessed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..protocol import Argument, Array
from ..sources import KernelSource


class Streams:
    """Stream number -> the runtime's record of launches that may still run, and of their memory accesses."""

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._by_number: dict[int, Any] = {}
        self._owners: dict[int, weakref.ref[Array]] = {}

    def __getitem__(self, number: int) -> Any:
        if number not in self._by_number:
            self._by_number[number] = self._create()
        return self._by_number[number]

    def watch(self, args: Sequence[Argument]) -> None:
        """Drops the records of an array's memory when it is freed: another array may get the address.

        Memory of an arena is not freed between two of its arrays.
        """
        for array in args:
            if not isinstance(array, np.ndarray):
                continue
            owner = _owner(array)
            if id(owner) not in self._owners:
                self._owners[id(owner)] = weakref.ref(owner, self._forgetter(id(owner), *bounds_of(owner)))

    def _forgetter(self, key: int, begin: int, end: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self._owners.pop(key, None)
            for stream in self._by_number.values():
                stream.forget(begin, end)

        return forget


def _owner(array: Array) -> Array:
    """The outermost array that this one is a view of, however the view was made."""
    owner, base = array, array.base
    while base is not None:
        if isinstance(base, np.ndarray):
            owner = base
        base = getattr(base, "base", None)
    return owner


def bounds_of(array: Array) -> tuple[int, int]:
    """The first byte of an array and the one after its last."""
    begin, end = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data,) * 2
    return int(begin), int(end)


def rows_of(arrays: Sequence[Array]) -> list[tuple[int, int]]:
    """The bytes of arrays, row by row where they are not contiguous."""
    rows = [row for array in arrays for row in ([array] if array.flags.c_contiguous else array)]
    return [bounds_of(row) for row in rows if row.size]


def ranges_of(kernel: KernelSource, args: Sequence[Argument]) -> list[tuple[int, int, bool]]:
    """The memory of each pointer argument, and whether it is declared constant; empty if none is."""
    if len(kernel.parameters) != len(args):  # the text could not be read as a parameter list
        return []
    ranges = [
        (*bounds_of(value), parameter.is_constant)
        for parameter, value in zip(kernel.parameters, args, strict=True)
        if isinstance(value, np.ndarray) and value.size
    ]
    return ranges if any(is_constant for *_, is_constant in ranges) else []
