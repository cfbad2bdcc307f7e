"""The kernels' source files: where they are, which instance is in which file, what identifies their content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import LaunchError

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTANCE = re.compile(r"(?P<kernel>[A-Za-z_]\w*)\s*(<[\w\s,:<>()+\-*/]*>)?\s*")
_DECLARATION = re.compile(
    r"(?:template\s*<(?P<template>[^{};]*?)>\s*)?"
    r"__global__\s+void\s+(?:__launch_bounds__\s*\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*)?(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)"
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class KernelParameter:
    """One parameter of a kernel as its source declares it."""

    name: str
    type: str  # without const, * and __restrict__
    is_pointer: bool
    is_const: bool  # of the pointee
    is_constant: bool  # const T* __restrict__: memory that no kernel writes while this one may run


@dataclass(frozen=True)
class KernelSource:
    """A `__global__` function: its file, its parameters, and its template's as declared ("class T", "int kVec = 1")."""

    name: str
    path: Path
    parameters: tuple[KernelParameter, ...]
    template_parameters: tuple[str, ...]
    launch_bounds: str  # what __launch_bounds__ holds, "" without


def source_root() -> Path:
    """Directory that holds kernels/ and bindings/emulator/: the checkout, or the copy inside an installed package."""
    installed = _PACKAGE / "_sources"
    return installed if installed.is_dir() else _PACKAGE.parent


def kernel_directory() -> Path:
    """Directory of the .cu files."""
    return source_root() / "kernels"


def emulator_directory() -> Path:
    """Directory of the emulator's half of the seam, the twin of kernels/gpu."""
    return source_root() / "bindings" / "emulator"


def headers(seam: Path) -> list[Path]:
    """Every header that a kernel may include, sorted: those of kernels/common and of one half of the seam."""
    entry = (seam / name for name in ("abi.h", "entry.h"))
    return sorted([*kernel_directory().glob("common/*.cuh"), *seam.glob("*.cuh"), *filter(Path.exists, entry)])


def kernel_name(instance: str) -> str:
    """Name of the kernel of an instance; raises LaunchError for a string that is not an instance."""
    match = _INSTANCE.fullmatch(instance)
    if match is None:
        raise LaunchError(f"{instance!r} is not a kernel instance; write it as in 'rms_norm<bf16, 8, OnePlus>'")
    return match["kernel"]


def find_kernel(instance: str, directory: Path | None = None) -> KernelSource:
    """The source of an instance's kernel; raises LaunchError naming the kernels there are if it is unknown."""
    name = kernel_name(instance)
    known = kernels_in(kernel_directory() if directory is None else directory)
    if name not in known:
        raise LaunchError(f"{instance}: no kernel is called {name}; there are {', '.join(sorted(known)) or 'none'}")
    return known[name]


def template_arguments(instance: str, kernel: KernelSource) -> dict[str, str]:
    """Template parameter -> what it is in an instance, as written; a parameter that has nothing is left out."""
    given = split_list(instance[instance.index("<") + 1 : instance.rindex(">")]) if "<" in instance else []
    bound = {}
    for position, declaration in enumerate(kernel.template_parameters):
        head, _, default = declaration.partition("=")
        value = given[position] if position < len(given) else default.strip()
        if value:
            bound[head.split()[-1]] = value
    return bound


def most_threads(instance: str, kernel: KernelSource) -> int | None:
    """The block size that `__launch_bounds__` allows an instance; None without, or if it is not a plain number."""
    first = next(iter(split_list(kernel.launch_bounds)), "")
    value = template_arguments(instance, kernel).get(first, first)
    return int(value) if value.isdigit() else None


def kernels_in(directory: Path) -> dict[str, KernelSource]:
    """Kernel name -> source, of every .cu file of a directory. Read again where a file changed."""
    found: dict[str, KernelSource] = {}
    for path in sorted(directory.glob("*.cu")):
        for kernel in _parse(path, state_of([path])):
            if kernel.name in found:
                raise LaunchError(f"kernel {kernel.name} is defined in {found[kernel.name].path.name} and {path.name}")
            found[kernel.name] = kernel
    return found


def state_of(paths: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Modification time and size of each file: changes when a file does."""
    return tuple((status.st_mtime_ns, status.st_size) for status in map(os.stat, paths))


def digest(paths: Iterable[Path], *parts: str) -> str:
    """Hex digest of the names and contents of files and of any further text."""
    sha = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        sha.update(f"{path.name} {len(content)}\n".encode())
        sha.update(content)
    for part in parts:
        sha.update(f"{len(part)} {part}\n".encode())
    return sha.hexdigest()[:32]


_parsed: dict[Path, tuple[tuple[tuple[int, int], ...], list[KernelSource]]] = {}


def _parse(path: Path, state: tuple[tuple[int, int], ...]) -> list[KernelSource]:
    if path not in _parsed or _parsed[path][0] != state:
        text = _COMMENT.sub(" ", path.read_text(encoding="utf-8"))
        kernels = [
            KernelSource(
                match["name"],
                path,
                tuple(_parameter(p) for p in split_list(match["parameters"])),
                tuple(split_list(match["template"] or "")),
                match["bounds"] or "",
            )
            for match in _DECLARATION.finditer(text)
        ]
        _parsed[path] = (state, kernels)
    return _parsed[path][1]


def split_list(text: str) -> list[str]:
    """The parts of a list of parameters or arguments; commas inside brackets do not separate."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "<(") - (character in ">)")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _parameter(declaration: str) -> KernelParameter:
    words = re.findall(r"\w+|\*|[^\w\s*]+", declaration)
    name = words.pop()
    is_pointer = "*" in words
    dropped = {"const", "*", "__restrict__", "__grid_constant__"}
    before_star = words[: words.index("*")] if is_pointer else words
    return KernelParameter(
        name=name,
        type=" ".join(word for word in words if word not in dropped),
        is_pointer=is_pointer,
        is_const=is_pointer and "const" in before_star,
        is_constant=is_pointer and "const" in before_star and "__restrict__" in words,
    )
