"""Structs that a kernel declares, read from its source, so that Python names the same members as C++."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np

from . import declarations, sources

_NUMBERS = {"int": np.int32, "int64_t": np.int64, "float": np.float32}


@functools.cache
def struct_type(kernel: str, name: str) -> np.dtype[Any]:
    """The dtype, with the layout of C++, of a struct of numbers and structs in kernels/KERNEL.cu or its headers."""
    path = sources.kernel_directory() / f"{kernel}.cu"
    text = "\n".join(file.read_text(encoding="utf-8") for file in (path, *sources.local_headers(path)))
    (body,) = re.findall(rf"^struct {name} {{(.*?)^}};", declarations.without_comments(text), re.DOTALL | re.MULTILINE)
    members = re.findall(r"^  (\w+) (\w+(?:, \w+)*);\s*$", body, re.MULTILINE)
    types = {of: _NUMBERS.get(of) or struct_type(kernel, of) for of, _ in members}
    return np.dtype([(member, types[of]) for of, names in members for member in names.split(", ")], align=True)


def pack_struct(kernel: str, name: str, **values: Any) -> bytes:
    """A struct of a kernel from its members by name: numbers, and a dict for each struct in it."""
    members, pack = _packer(kernel, name)
    flat: list[Any] = []
    for member, of_struct in members:
        flat += of_struct(values[member]) if of_struct else (values[member],)
    return pack(*flat)


@functools.cache
def _packer(kernel: str, name: str) -> tuple[list[tuple[str, itemgetter[Any] | None]], Callable[..., bytes]]:
    """(members, pack of the numbers in them): a NumPy record would take twice as long."""
    of = struct_type(kernel, name)
    members = [(member, of[member].names) for member in of.names or ()]
    numbers = [of[member][i] if inner else of[member] for member, inner in members for i in range(len(inner or "1"))]
    format_ = "@" + "".join(number.char for number in numbers)
    pack = struct.Struct(f"{format_}{of.itemsize - struct.calcsize(format_)}x").pack
    return [(member, itemgetter(*inner) if inner else None) for member, inner in members], pack
