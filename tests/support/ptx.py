"""Which kernel parameters the addresses of loads come from, in the PTX that NVRTC makes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_cuda.device import sources
from gemma_cuda.device.cuda import compile as gpu_compiler
from gemma_cuda.device.cuda import nvrtc

UNKNOWN = -1
"""Stands for an address that was not computed from parameters: one that was itself loaded, or put together."""

_OPTIONS = ("--std=c++17", "--diag-suppress=177")
_READ_ONLY = re.compile(r"ld\.global[\w.:]*\.nc\b|ldu\.global")
_PREDICATE = re.compile(r"^@!?%p\d+\s+")
_PARAMETER = re.compile(r"_param_(\d+)")
_DESTINATIONS = re.compile(r"\S+\s+(?:\{([^}]*)\}|([^,]*))")
_REGISTER = re.compile(r"%(?:rd|r|rs|rb|f|fd|p|pd)\d+\b")


@dataclass(frozen=True)
class ReadOnlyLoad:
    """A load through the non-coherent path. parameters: indices of those that its address is computed from."""

    text: str
    parameters: frozenset[int]


def compile_ptx(
    instances: Sequence[str], architecture: str, *, kernels: Path | None = None
) -> Iterator[tuple[str, list[ReadOnlyLoad]]]:
    """(instance, its read-only loads) of instances of one file, compiled as one program."""
    kernel = sources.find_kernel(instances[0], kernels)
    options = (f"--gpu-architecture={architecture.replace('sm', 'compute')}", *_OPTIONS)
    source = kernel.path.read_text(encoding="utf-8")
    product = nvrtc.build(kernel.path.name, source, gpu_compiler._headers(), instances, options)
    assert len(_READ_ONLY.findall(product.ptx)) == sum(
        len(_READ_ONLY.findall(_body(product.ptx, name))) for name in set(product.names)
    ), "a function that was not inlined reads constants"
    for instance, name in zip(instances, product.names, strict=True):
        yield instance, read_only_loads(_body(product.ptx, name).splitlines())


def _body(ptx: str, entry: str) -> str:
    found = re.search(rf"\.entry {re.escape(entry)}\(.*?^\}}", ptx, re.DOTALL | re.MULTILINE)
    assert found is not None, entry
    return found[0]


def read_only_loads(lines: Iterable[str]) -> list[ReadOnlyLoad]:
    """Those of one entry function. Only 64-bit registers hold addresses; the order of instructions does not matter."""
    sources_of: dict[str, set[str]] = defaultdict(set)
    origins: dict[str, set[int]] = defaultdict(set)
    loads: list[tuple[str, str]] = []
    for line in lines:
        text = _PREDICATE.sub("", line.strip())
        if not text.endswith(";") or text.startswith(("//", ".")):
            continue
        operation = text.split()[0]
        if _READ_ONLY.match(operation):
            (address,) = re.findall(r"\[(%\w+)", text)
            loads.append((text, address))
        found = _DESTINATIONS.match(text)
        if found is None:
            continue
        destinations = [r for r in _REGISTER.findall(found[1] or found[2]) if r.startswith("%rd")]
        used = _REGISTER.findall(text[found.end() :])
        for destination in destinations:
            if operation.startswith("ld.param"):
                origins[destination] |= {int(number) for number in _PARAMETER.findall(text)}
            elif operation.startswith(("ld", "atom", "shfl")) or (operation == "mov.b64" and "{" in text):
                origins[destination].add(UNKNOWN)
            else:
                sources_of[destination] |= {register for register in used if register.startswith("%rd")}
    _propagate(sources_of, origins)
    return [ReadOnlyLoad(text, frozenset(origins[address])) for text, address in loads]


def _propagate(sources_of: dict[str, set[str]], origins: dict[str, set[int]]) -> None:
    readers: dict[str, set[str]] = defaultdict(set)
    for destination, registers in sources_of.items():
        for register in registers:
            readers[register].add(destination)
    waiting = list(origins)
    while waiting:
        register = waiting.pop()
        for reader in readers[register]:
            if not origins[register] <= origins[reader]:
                origins[reader] |= origins[register]
                waiting.append(reader)
