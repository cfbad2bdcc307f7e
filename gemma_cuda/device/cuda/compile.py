"""Cubins of kernel instances: compiled once by NVRTC, on any machine, and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import DeviceError, LaunchError
from ...host.files import cache_directory
from .. import product_cache, sources
from ..arguments import Parameter, names_of
from ..product_cache import ProductCache
from ..sources import KernelSource
from . import nvrtc
from .cubin import Resources, parse_notes, parse_resources, read_symbol

SHARED_BYTES = {
    **{"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024},
    **{"sm_90a": 227 * 1024, "sm_100a": 227 * 1024, "sm_120a": 99 * 1024},
}
"""Most shared memory of a block, for each architecture that every kernel is tested to compile for."""
ARCHITECTURES = tuple(SHARED_BYTES)

_ARCHITECTURE = re.compile(r"sm_\d+[af]?")
# 177, "declared but never referenced", is issued for functions that only another kernel of the same file uses.
_OPTIONS = ("--std=c++17", "--generate-line-info", "--no-source-include", "--diag-suppress=177", "--ptxas-options=-v")
_ENTRY = '#include <entry.h>\n#line 1 "template arguments"\nDESCRIBE_PARAMETERS({})\n'
_PARAMETERS = "kernel_parameters"  # in kernels/gpu/entry.h, as is the layout of a record
_RECORD_BYTES = 16
_KINDS = {"p": "pointer", "i": "signed", "u": "unsigned", "f": "float", "s": "struct"}


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel instance compiled for one architecture.

    cubin: the file. lowered_name: of the kernel in it. parameters: as C++ declares them. notes: warnings and remarks of
    the compiler. compiler: for example "NVRTC 13.0". seconds: wall-clock time of the compilation.
    """

    instance: str
    architecture: str
    cubin: Path
    lowered_name: str
    parameters: tuple[Parameter, ...]
    resources: Resources
    notes: tuple[str, ...]
    compiler: str
    seconds: float


def compile_kernels(
    instances: Sequence[str], architecture: str, *, kernels: Path | None = None, cache: Path | None = None
) -> list[CompiledKernel]:
    """compile_kernel of each instance, on all processors at once: NVRTC releases the GIL."""
    compile_one = partial(compile_kernel, architecture=architecture, kernels=kernels, cache=cache)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, instances))


def compile_kernel(
    instance: str, architecture: str, *, kernels: Path | None = None, cache: Path | None = None
) -> CompiledKernel:
    """The cubin of an instance for an architecture such as "sm_90a", from the cache or compiled now.

    kernels: directory of .cu files (None: the package's own). cache: directory (None: the user's). A cache that cannot
    be written is read only; an entry that is damaged is made anew.
    Raises LaunchError for an unknown kernel or an instance that does not compile, DeviceError without NVRTC or room in
    the cache, GemmaError for a cache that others can change.
    """
    if _ARCHITECTURE.fullmatch(architecture) is None:
        raise LaunchError(f"architecture is {architecture!r}, expected one such as {', '.join(ARCHITECTURES)}")
    kernel = sources.find_kernel(instance, kernels)
    source = f"{kernel.path.read_text(encoding='utf-8')}\n{_ENTRY.format(instance)}"
    headers = _headers()
    options = (f"--gpu-architecture={architecture}", *_OPTIONS)
    contents = (text.decode() for text in headers.values())
    key = sources.digest([], instance, nvrtc.version(), *options, source, *headers, *contents)
    products = ProductCache((cache_directory() if cache is None else cache) / "cuda")
    stem = f"{kernel.name}-{architecture}-{key}"
    for directory in products.directories():
        found = _read(directory, stem)
        if found is not None:
            return found
    start = time.perf_counter()
    try:
        product = nvrtc.build(kernel.path.name, source, headers, (instance, f"&{_PARAMETERS}"), options)
    except nvrtc.CompilationError as error:
        raise LaunchError(f"{instance} does not compile for {architecture}: {_first_error(str(error))}") from error
    seconds = time.perf_counter() - start
    compiled = _describe(kernel, instance, architecture, product, seconds)
    return products.keep(lambda directory: _write(directory, stem, compiled, product.cubin))


def architecture_of(compute_capability: tuple[int, int]) -> str:
    """The architecture to compile for on a GPU: "sm_90a" for (9, 0), with its architecture-specific instructions."""
    major, minor = compute_capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def missing() -> str | None:
    """Why kernels cannot be compiled for GPUs here; None if they can."""
    try:
        nvrtc.version()
    except DeviceError as error:
        return str(error)
    return None


def _headers() -> dict[str, bytes]:
    """Content of every header, by the name in kernels' #include lines."""
    kernels = sources.kernel_directory()
    seam = kernels / "gpu"
    paths = sources.headers(seam)
    return {(p.name if p.parent == seam else p.relative_to(kernels).as_posix()): p.read_bytes() for p in paths}


def _describe(
    kernel: KernelSource, instance: str, architecture: str, product: nvrtc.Product, seconds: float
) -> CompiledKernel:
    lowered_name = product.names[0]
    try:
        table = read_symbol(product.cubin, _PARAMETERS)
        resources = parse_resources(product.log, lowered_name)
    except ValueError as error:
        raise DeviceError(f"{instance} for {architecture}: {nvrtc.version()} tells nothing usable: {error}") from error
    return CompiledKernel(
        instance, architecture, Path(), lowered_name, _parameters(kernel, table), resources, parse_notes(product.log),
        nvrtc.version(), seconds,
    )  # fmt: skip


def _parameters(kernel: KernelSource, table: bytes) -> tuple[Parameter, ...]:
    records = [table[i : i + _RECORD_BYTES] for i in range(0, len(table) - _RECORD_BYTES, _RECORD_BYTES)]
    return tuple(
        Parameter(
            name=name,
            kind=_KINDS[chr(record[0])],
            type=record[2:12].rstrip(b"\0").decode(),
            is_const=bool(record[1]),
            size=int.from_bytes(record[12:16], "little"),
        )
        for name, record in zip(names_of(kernel, len(records)), records, strict=True)
    )


def _write(directory: Path, stem: str, compiled: CompiledKernel, cubin: bytes) -> CompiledKernel:
    """Writes the files of a cache entry; gives the kernel with the path of its cubin."""
    # The cubin is named by its content and the description is written last: files of two processes never mix into one
    # entry.
    content = hashlib.sha256(cubin).hexdigest()
    fields = {**dataclasses.asdict(compiled), "cubin": _cubin_name(stem, content), "sha256": content}
    product_cache.write_private(directory / fields["cubin"], cubin)
    product_cache.write_json(directory / f"{stem}.json", fields)
    return _from_fields(directory, fields)


def _read(directory: Path, stem: str) -> CompiledKernel | None:
    """The cache entry; None without one, or if part of it is damaged or other users could have written it."""
    fields = product_cache.read_json(directory / f"{stem}.json")
    try:
        if fields is None or fields["cubin"] != _cubin_name(stem, fields["sha256"]):  # never a path out of the cache
            return None
        cubin = product_cache.read_private(directory / fields["cubin"])
        is_whole = cubin is not None and hashlib.sha256(cubin).hexdigest() == fields["sha256"]
        return _from_fields(directory, fields) if is_whole else None
    except (KeyError, TypeError):  # of another version
        return None


def _cubin_name(stem: str, sha256: str) -> str:
    return f"{stem}-{sha256[:8]}.cubin"


def _from_fields(directory: Path, fields: dict[str, Any]) -> CompiledKernel:
    read = {
        **fields, "cubin": directory / fields["cubin"], "resources": Resources(**fields["resources"]),
        "parameters": tuple(Parameter(**each) for each in fields["parameters"]), "notes": tuple(fields["notes"]),
    }  # fmt: skip
    return CompiledKernel(**{field.name: read[field.name] for field in dataclasses.fields(CompiledKernel)})


def _first_error(log: str) -> str:
    """File, line and message of the first error in NVRTC's log."""
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if "error" in line), None)
    return log[-500:] if first is None else lines[first].strip()
