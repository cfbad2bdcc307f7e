"""Kernel arguments: checked against the kernel's C++ signature, then turned into bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import LaunchError
from .protocol import Dim
from .sources import KernelSource


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter. type: of the element for a pointer; "float32", "bfloat16", "int32", "struct", "void", ..."""

    name: str
    kind: str  # "pointer", "signed", "unsigned", "float", "struct"
    type: str
    is_const: bool
    size: int


_MAX_THREADS, _MAX_BLOCK_Z = 1024, 64
_MAX_GRID = (2**31 - 1, 65535, 65535)
_FORMATS = {
    "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
    "float32": "f", "float64": "d", "bool": "?",
}  # fmt: skip


def check_dimensions(
    instance: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int, most_shared_bytes: int
) -> tuple[Dim, Dim]:
    """(grid, block) with three sizes each; raises LaunchError for what no GPU can launch."""
    grid_dim, block_dim = _dimensions(instance, "grid", grid), _dimensions(instance, "block", block)
    threads = block_dim[0] * block_dim[1] * block_dim[2]
    if threads > _MAX_THREADS or block_dim[2] > _MAX_BLOCK_Z:
        raise LaunchError(
            f"{instance}: a block of {block_dim} has {threads} threads, at most {_MAX_THREADS} "
            f"(z at most {_MAX_BLOCK_Z}) are possible"
        )
    if any(size > limit for size, limit in zip(grid_dim, _MAX_GRID, strict=True)):
        raise LaunchError(f"{instance}: grid is {grid_dim}, at most {_MAX_GRID} is possible")
    if not 0 <= shared_bytes <= most_shared_bytes:
        raise LaunchError(
            f"{instance}: {shared_bytes} bytes of shared memory asked for, a block has 0 to {most_shared_bytes}"
        )
    return grid_dim, block_dim


def check_count(instance: str, parameters: Sequence[Parameter], args: Sequence[object]) -> None:
    """Raises LaunchError unless there is one argument per parameter."""
    if len(args) != len(parameters):
        names = ", ".join(parameter.name for parameter in parameters)
        raise LaunchError(f"{instance} takes {len(parameters)} arguments ({names}), not {len(args)}")


def check_pointer(instance: str, position: int, parameter: Parameter, dtype: Any, *, read_only: bool) -> None:
    """Raises LaunchError unless an array of this dtype can stand for a pointer parameter."""
    if parameter.kind != "pointer":
        raise _mismatch(instance, position, parameter, f"an array of {np.dtype(dtype).name}")
    if parameter.type not in ("void", np.dtype(dtype).name):
        raise _mismatch(instance, position, parameter, f"an array of {np.dtype(dtype).name}")
    if read_only and not parameter.is_const:
        raise LaunchError(f"{instance}: argument {position} ({parameter.name}) is read-only, the kernel may write it")


def pack_scalar(instance: str, position: int, parameter: Parameter, value: object) -> bytes:
    """The bytes of a number or struct as the kernel's parameter stores them.

    Python's int and float take the parameter's type; NumPy scalars must have it. Raises LaunchError.
    """
    if parameter.kind == "struct":
        if not isinstance(value, bytes) or len(value) != parameter.size:
            raise _mismatch(instance, position, parameter, f"{type(value).__name__}, expected {parameter.size} bytes")
        return value
    if isinstance(value, np.generic):
        if value.dtype.name != parameter.type:
            raise _mismatch(instance, position, parameter, value.dtype.name)
        return value.tobytes()
    accepted: dict[str, tuple[type, ...]] = {"float": (float,), "signed": (int,), "unsigned": (int,)}
    is_bool = parameter.type == "bool"
    if isinstance(value, bool) != is_bool or not isinstance(value, accepted[parameter.kind]):
        raise _mismatch(instance, position, parameter, _words(value))
    try:
        return struct.pack(f"<{_FORMATS[parameter.type]}", value)
    except (struct.error, OverflowError) as error:
        raise LaunchError(f"{instance}: argument {position} ({parameter.name}) is {value}: {error}") from error


def names_of(kernel: KernelSource, count: int) -> list[str]:
    """Parameter names from the source text, or numbers where the text could not be read as a parameter list."""
    if len(kernel.parameters) != count:
        return [f"#{i}" for i in range(count)]
    return [parameter.name for parameter in kernel.parameters]


def _dimensions(instance: str, what: str, sizes: Sequence[int]) -> Dim:
    if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
        raise LaunchError(f"{instance}: {what} is {tuple(sizes)}, expected 1 to 3 positive sizes")
    x, y, z = (*(int(size) for size in sizes), 1, 1)[:3]
    return x, y, z


def _words(value: object) -> str:
    if value is None:
        return "None"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float)) else type(value).__name__


def _mismatch(instance: str, position: int, parameter: Parameter, given: str) -> LaunchError:
    wanted = f"a pointer to {parameter.type}" if parameter.kind == "pointer" else parameter.type
    return LaunchError(f"{instance}: argument {position} ({parameter.name}) is {given}, the kernel wants {wanted}")
