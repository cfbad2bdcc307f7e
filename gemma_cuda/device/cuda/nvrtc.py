"""NVRTC, NVIDIA's run-time compiler, through cuda-bindings: needs neither a driver nor a GPU."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DeviceError
from ..driver import INSTALL_CUDA

LIBRARY_VARIABLE = "GEMMA_CUDA_NVRTC"
"""Environment variable: path of the libnvrtc to use instead of the one that cuda-bindings finds."""


@dataclass(frozen=True)
class Product:
    """NVRTC's output for one program. names: lowered name of each name expression, in order.

    cubin: empty for a virtual architecture such as "compute_90a".
    """

    cubin: bytes
    ptx: str
    names: tuple[str, ...]
    log: str


class CompilationError(Exception):
    """The program does not compile; the message is NVRTC's log."""


@functools.cache
def version() -> str:
    """For example "NVRTC 13.0"; raises DeviceError, with the remedy, without NVRTC."""
    status, major, minor = _bindings().nvrtcVersion()
    _check(status)
    return f"NVRTC {major}.{minor}"


def build(
    name: str, source: str, headers: Mapping[str, bytes], expressions: Sequence[str], options: Sequence[str]
) -> Product:
    """Compiles one program. name: of the source, for messages. headers: content of each by the name of its #include.

    Raises CompilationError for errors in the source, DeviceError for failures of NVRTC.
    """
    nvrtc = _bindings()
    include_names = [header.encode() for header in headers]
    status, program = nvrtc.nvrtcCreateProgram(
        source.encode(), name.encode(), len(headers), list(headers.values()), include_names
    )
    _check(status)
    try:
        for expression in expressions:
            _check(*nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        (outcome,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = (
            _read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            .decode(errors="replace")
            .strip("\0\n ")
        )
        if outcome in (
            nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION,
            nvrtc.nvrtcResult.NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID,
        ):
            raise CompilationError(log)
        if outcome == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise DeviceError(f"{version()} does not know an option among {' '.join(options)}: {log}")
        if outcome != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise DeviceError(f"{version()} fails: {log or outcome.name}")
        names = []
        for expression in expressions:
            status, lowered = nvrtc.nvrtcGetLoweredName(program, expression.encode())
            _check(status)
            names.append(lowered.decode())
        ptx = _read(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).rstrip(b"\0").decode()
        return Product(_read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), ptx, tuple(names), log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@functools.cache
def _bindings() -> Any:
    """The module cuda.bindings.nvrtc with its library loaded."""
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        if "/" in chosen and not Path(chosen).is_absolute():
            raise DeviceError(f"{LIBRARY_VARIABLE} is {chosen!r}, expected an absolute path or the name of a library")
        # A bare name is left to the loader: the working directory, which may belong to anybody, is not searched.
        builtins = sorted(Path(chosen).parent.glob("libnvrtc-builtins.so.*.*")) if "/" in chosen else []
        # cuda-bindings, and NVRTC for its builtins, take libraries of these names that are already loaded.
        try:
            for library in (*builtins, Path(chosen)):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except (OSError, ValueError) as error:  # ValueError: the loader's message repeats a name that is not UTF-8
            raise DeviceError(f"{LIBRARY_VARIABLE}={chosen}: {error}") from error
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except ImportError as error:
        raise DeviceError(f"compiling for a GPU needs cuda-bindings, which is not installed: {INSTALL_CUDA}") from error
    except RuntimeError as error:
        raise DeviceError(
            f"compiling for a GPU needs NVRTC, which cannot be loaded ({error}): {INSTALL_CUDA}"
        ) from error
    return nvrtc


def _read(program: Any, get_size: Any, get: Any) -> bytes:
    status, size = get_size(program)
    _check(status)
    data = bytearray(size)
    _check(*get(program, data))
    return bytes(data)


def _check(status: Any) -> None:
    if int(status) != 0:
        raise DeviceError(f"NVRTC fails: {status.name}")
