"""The kernels' source files: their directories, the kernels in them, digests of their content."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import LaunchError
from . import declarations

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTANCE = re.compile(r"(?P<scope>(?:[A-Za-z_]\w*\s*::\s*)*)(?P<kernel>[A-Za-z_]\w*)\s*(<[\w\s,:<>()+\-*/]*>)?\s*")


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
    scope: str = ""  # the namespaces it is in: "a::b"
    includes: tuple[str, ...] = ()  # what its file includes, with quotes or brackets


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
    """Every header that a kernel may include: those of kernels/common, then those of one half of the seam, each sorted.

    The order is the same wherever the two directories are: it is part of the digest.
    """
    entry = (seam / name for name in ("abi.h", "entry.h"))
    common = sorted(kernel_directory().glob("common/*.cuh"))
    return [*common, *sorted([*seam.glob("*.cuh"), *filter(Path.exists, entry)])]


@functools.cache
def cuda_headers(seam: Path) -> tuple[Path, ...]:
    """The emulator's headers with CUDA's names, sorted, for kernels that are written for nvcc."""
    return tuple(sorted(path for path in (seam / "cuda").rglob("*") if path.is_file()))


def local_headers(path: Path) -> list[Path]:
    """The files that a file includes by a path beside its own, and those that these include, sorted."""
    found: set[Path] = set()
    left = [path]
    while left:
        file = left.pop()
        for name in includes(file):
            header = file.parent / name[1:-1]
            if name[0] == '"' and header not in found and header.is_file():
                found.add(header)
                left.append(header)
    return sorted(found)


def includes(path: Path) -> list[str]:
    """Names in a file's #include lines, with quotes or brackets. A changed file is read again."""
    state = state_of([path])
    if path not in _included or _included[path][0] != state:
        _included[path] = (state, declarations.includes(path.read_text(encoding="utf-8")))
    return _included[path][1]


def kernel_name(instance: str) -> str:
    """Name of the kernel of an instance; raises LaunchError for a string that is not an instance."""
    match = _INSTANCE.fullmatch(instance)
    if match is None:
        raise LaunchError(f"{instance!r} is not a kernel instance; write it as in 'rms_norm<bf16, 8, OnePlus>'")
    return match["kernel"]


def find_kernel(instance: str, directory: Path | None = None) -> KernelSource:
    """The source of an instance's kernel; for an unknown one raises LaunchError with the known names."""
    name = kernel_name(instance)
    known = kernels_in(kernel_directory() if directory is None else directory)
    if name not in known:
        raise LaunchError(f"{instance}: no kernel is called {name}; there are {', '.join(sorted(known)) or 'none'}")
    return known[name]


def expression(instance: str, kernel: KernelSource) -> str:
    """The instance as a C++ expression in the kernel's namespace: a template with default arguments needs <>."""
    return f"{instance}<>" if kernel.template_parameters and "<" not in instance else instance


def template_arguments(instance: str, kernel: KernelSource) -> dict[str, str]:
    """Template parameter -> argument as written, or its default; a parameter without either is left out."""
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
    """Kernel name -> source, of every .cu file of a directory. A changed file is read again."""
    found: dict[str, KernelSource] = {}
    for path in sorted(directory.glob("*.cu")):
        for kernel in _parse(path, state_of([path])):
            if kernel.name in found:
                first = found[kernel.name].path.name
                raise LaunchError(
                    f"kernel {kernel.name} is defined twice in {path.name}: overloads cannot be told apart by name"
                    if first == path.name
                    else f"kernel {kernel.name} is defined in {first} and {path.name}"
                )
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
_included: dict[Path, tuple[tuple[tuple[int, int], ...], list[str]]] = {}


def _parse(path: Path, state: tuple[tuple[int, int], ...]) -> list[KernelSource]:
    if path not in _parsed or _parsed[path][0] != state:
        text = path.read_text(encoding="utf-8")
        included = tuple(declarations.includes(text))
        kernels = [
            KernelSource(
                found.name, path, tuple(_parameter(p) for p in split_list(found.parameters) if p != "void"),
                tuple(split_list(found.template_parameters or "")), found.launch_bounds, found.scope, included,
            )
            for found in declarations.declarations(text)
            if found.template_parameters != ""  # a specialisation: its template is the kernel
        ]  # fmt: skip
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
    declaration = declaration.partition("=")[0].strip()
    if declaration.endswith("]"):  # an array is a pointer
        declaration = re.sub(r"(\w+)\s*\[.*\]$", r"* \1", declaration)
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
