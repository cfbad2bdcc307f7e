"""Kernels written for nvcc: their preparation for the host's compiler, and errors for unsupported CUDA features."""

from __future__ import annotations

import functools
import re
import struct
from pathlib import Path

from ...errors import LaunchError
from .. import declarations, sources
from ..sources import KernelSource

FLAGS = (
    # Shared variables that the instance does not reach take no shared memory.
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
    "-fno-extern-tls-init",  # `extern __shared__` needs no constructor call
)
# A vector is read by one access, not by one for each of its components.
CHECKED_FLAGS = ("-fno-tree-sra", "-fno-ipa-sra")


def is_cuda(kernel: KernelSource, seam: Path) -> bool:
    """Whether a kernel is written for nvcc: its file includes a header of CUDA's, or none of the seam's."""
    names = {name[1:-1] for name in kernel.includes}
    return not names.isdisjoint(_cuda_names(seam)) or not _includes_seam(kernel, seam)


def prelude(kernel: KernelSource, seam: Path) -> str:
    """Text before such a kernel's source: nvcc's implicit include."""
    hidden = "" if _includes_seam(kernel, seam) else "#define EMULATOR_HIDE_HELPERS\n"
    return f"{hidden}#include <cuda_runtime.h>\n"


def _names(kernel: KernelSource) -> set[str]:
    """Names that a kernel's file and its local headers include."""
    files = [kernel.path, *sources.local_headers(kernel.path)]
    return {name[1:-1] for file in files for name in sources.includes(file)}


def _includes_seam(kernel: KernelSource, seam: Path) -> bool:
    names = {name[1:-1] for name in kernel.includes}  # mostly enough to tell
    return _is_seam(names, seam) or _is_seam(_names(kernel), seam)


def _is_seam(names: set[str], seam: Path) -> bool:
    return any(name.startswith("common/") for name in names) or not names.isdisjoint(_seam_names(seam))


@functools.cache
def _seam_names(seam: Path) -> frozenset[str]:
    return frozenset(path.name for path in seam.glob("*.cuh"))


@functools.cache
def _cuda_names(seam: Path) -> frozenset[str]:
    names = (path.relative_to(seam / "cuda").as_posix() for path in sources.cuda_headers(seam))
    return frozenset(names) - {"assert.h"}


# --- dynamic shared memory ---

_SECTION_HEADER, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_DYNAMIC_SYMBOLS, _THREAD_LOCAL, _WEAK = 11, 6, 2


def leave_dynamic_shared_open(library: Path) -> None:
    """Lets the loader accept `extern __shared__` names, which no library defines, as module 0 at offset 0.

    They are undefined thread-local symbols; made weak and nameless they resolve to nothing, which the emulator's
    __tls_get_addr takes for dynamic shared memory.
    """
    data = bytearray(library.read_bytes())
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for section in range(count):
        _, kind, _, _, start, length, *_ = _SECTION_HEADER.unpack_from(data, sections + section * size)
        if kind != _DYNAMIC_SYMBOLS:
            continue
        for at in range(start, start + length, _SYMBOL.size):
            _, info, other, index, value, extent = _SYMBOL.unpack_from(data, at)
            if info & 15 == _THREAD_LOCAL and index == 0:
                _SYMBOL.pack_into(data, at, 0, _WEAK << 4 | _THREAD_LOCAL, other, index, value, extent)
    library.write_bytes(data)


# --- what cannot be compiled, in words ---

_HOST_CODE = "the file holds host code, a launch or a call of CUDA's runtime: give the kernels a file of their own"
_NO_PTX = (
    "PTX is not emulated: inline asm has no meaning on a CPU. Use CUDA's functions, or the primitives of <mma.cuh> "
    "(ldmatrix, stmatrix, mma) and <async_copy.cuh> (cp.async)"
)
# (pattern in the source line or the compiler's message, error message)
_REFUSALS = [
    (r"<<<", _HOST_CODE),
    (r"\bcuda(Malloc|Free|Memcpy|Memset|DeviceSynchronize|GetLastError|Event|Stream|Error_t|Success)\w*", _HOST_CODE),
    (r"\basm\b|\b__asm__\b|\b__asm\b|Assembler messages", _NO_PTX),
    (r"\b(wmma|nvcuda)\b", "wmma is not emulated: use ldmatrix and mma of <mma.cuh>"),
    (r"\b(texture|surface)\s*<|\btex[123]D\w*|\bsurf[123]D\w*", "textures and surfaces are not emulated"),
    (r"\bcuda(Texture|Surface)Object_t\b", "textures and surfaces are not emulated"),
    (r"\b(new|delete|free|malloc)\b", "memory cannot be allocated in a kernel here: pass an array as an argument"),
    (r"\b__cvta_\w+|\b__nv_cvta_\w+", _NO_PTX),
    (r"\b(cluster_group|this_cluster|map_shared_rank)\b", "thread block clusters are not emulated"),
    (r"\b(try|catch|throw)\b", "a kernel has no exceptions"),
]
_ERROR = re.compile(
    r"^(?P<path>[^\s:][^:\n]*):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<message>.*)$", re.MULTILINE
)
_ON_THE_WAY = re.compile(
    r"^(?:In file included from | +from )?(?P<path>[^\s:][^:\n]*):(?P<line>\d+)(?:[:,]$|:\d+: +required from here)",
    re.MULTILINE,
)
_INITIALISED = re.compile(r"\b__shared__\b[^;{}=]*(?<![<>=!])=(?!=)")
_UNKNOWN = re.compile(
    r"[‘'](?P<name>[\w:]+)[’'] (was not declared in this scope|has not been declared|is not a member of)"
)


def check(kernel: KernelSource) -> None:
    """Raises LaunchError for code that g++ accepts with another meaning than CUDA."""
    for path in (kernel.path, *sources.local_headers(kernel.path)):
        code = declarations.without_comments(path.read_text(encoding="utf-8"))
        initialised = _INITIALISED.search(code)
        if initialised is not None:
            line = code.count("\n", 0, initialised.end()) + 1
            raise LaunchError(
                f"{path.name}:{line}: CUDA has no __shared__ variables with an initialiser: assign, then sync"
            )


def explain(stderr: str, seam: Path) -> str | None:
    """One sentence for the compiler's errors in a kernel; None if there is none for them."""
    errors = list(_ERROR.finditer(stderr))
    if not errors:
        return _NO_PTX if "Assembler messages" in stderr or "Error: " in stderr else None
    for error in errors:
        words = _words(error["message"], _line(Path(error["path"]), int(error["line"])))
        if words is not None:
            return f"{_location(error, stderr, seam)}: {words}"
    return f"{_location(errors[0], stderr, seam)}: error: {errors[0]['message']}"


def _words(message: str, line: str) -> str | None:
    missing = re.match(r"(?P<name>\S+): No such file or directory", message)
    if missing is not None:
        return f"<{missing['name']}> is not among the emulator's headers: docs/your-kernel.md lists them"
    if "not emulated" in message or "here:" in message:
        return message.rpartition("attribute error: ")[2].removeprefix("#error ").strip('"')
    for pattern, words in _REFUSALS:
        if re.search(pattern, line) or re.search(pattern, message):
            return words
    unknown = _UNKNOWN.search(message)
    if unknown is not None and unknown["name"].startswith("__"):
        return f"{unknown['name']} is not among the functions that the emulator has: docs/your-kernel.md lists them"
    return None


def _location(error: re.Match[str], stderr: str, seam: Path) -> str:
    """File and line of an error; for one in a header of the seam or of C++, of the kernel's line that leads there."""
    on_the_way = sorted(_ON_THE_WAY.finditer(stderr), key=lambda match: "required" not in match[0])
    for match in (error, *on_the_way):
        if not match["path"].startswith((str(seam), "/usr/")):
            return f"{Path(match['path']).name}:{match['line']}"
    return f"{Path(error['path']).name}:{error['line']}"


def _line(path: Path, number: int) -> str:
    try:
        return declarations.without_comments(path.read_text(encoding="utf-8")).splitlines()[number - 1]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""
