"""Kernel libraries for the emulator: one .cu file, one instance string, the host's C++ compiler."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import DeviceError, LaunchError
from .. import product_cache, sources
from ..product_cache import ProductCache
from ..sources import KernelSource
from . import dialect, precompiled

_FLAGS = (
    *(
        "-std=gnu++17",
        "-O2",
        # Reports need only lines; -fvar-tracking takes a fifth of the compilation time.
        *("-g1", "-gdwarf-4", "-fno-var-tracking"),
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-exceptions",
        "-fno-rtti",
    ),
    # One rounding per operation as written, and no assumption that a GPU compiler would not make either.
    *("-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-attributes"),
    # A return address must identify its call: calls must not become jumps, be merged, or move out of the inlined code
    # around them.
    *("-fno-optimize-sibling-calls", "-fno-crossjumping", "-fno-tree-tail-merge", "-fno-schedule-insns2"),
)
_CHECKED_FLAGS = (
    *("-DEMULATOR_CHECKED", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
    "-fstack-clash-protection",
    # An uninitialised variable holds a conspicuous value.
    "-ftrivial-auto-var-init=pattern",
    # Copies are memory accesses: they stay calls, which the runtime intercepts.
    *(flag for name in ("memcpy", "memmove", "memset") for flag in (f"-fno-builtin-{name}", f"-Wl,--wrap={name}")),
    # An index beyond a local array traps at an illegal instruction, which the runtime reports.
    *("-fsanitize=bounds-strict", "-fsanitize-undefined-trap-on-error"),
)
_FAST_FLAGS = ("-fstack-clash-protection",)
# The default libraries of -fsanitize=thread include libtsan; the runtime takes its place.
_LIBRARIES = ("-nodefaultlibs", "-lm", "-lgcc", "-lc")
_PRELUDE = "#include <platform.cuh>\n"  # every header of the seam does so itself
# Directory of the seam in debug information: a library in the cache may come from another checkout.
_SEAM_IN_DEBUG = "/emulator"
_TIMEOUT_S = 300
_NO_ROOM = re.compile(r"No space left on device|File too large|File size limit exceeded|Disk quota exceeded")
_PROBED_BYTES = 32


@dataclass(frozen=True)
class Frame:
    """A source line of a call; lists of frames start with the innermost one."""

    path: str
    line: int

    @property
    def name(self) -> str:
        """Path from kernels/ on, and the line: "common/reduce.cuh:12"."""
        parts = Path(self.path).parts
        tail = parts[-2:] if len(parts) > 1 and parts[-2] == "common" else parts[-1:]
        return f"{'/'.join(tail)}:{self.line}"


class HostCompiler:
    """Compiles kernel instances to libraries, each once; they are kept on disk by a digest of all inputs."""

    def __init__(self, kernels: Path, runtime: Path, cache: ProductCache) -> None:
        self.kernels = kernels
        self._runtime = runtime
        self._cache = cache
        self._seam = sources.emulator_directory()
        self._known: dict[tuple[str, bool], tuple[object, Path]] = {}

    def library(self, instance: str, *, checked: bool) -> Path:
        """Path of the library of an instance, compiled now if its sources changed.

        Raises LaunchError for an unknown kernel or template arguments that do not compile, DeviceError without a
        compiler, or without room for what it makes.
        """
        kernel = sources.find_kernel(instance, self.kernels)
        is_cuda = dialect.is_cuda(kernel, self._seam)
        files = [kernel.path, *sources.headers(self._seam)]
        if is_cuda:
            files += [*sources.cuda_headers(self._seam), *sources.local_headers(kernel.path)]
        state = sources.state_of(files)
        known = self._known.get((instance, checked))
        if known is not None and known[0] == state and known[1].exists():
            return known[1]
        flags = (*_FLAGS, *(_CHECKED_FLAGS if checked else _FAST_FLAGS), *_architecture_flags())
        if is_cuda:
            flags += (*dialect.FLAGS, *(dialect.CHECKED_FLAGS if checked else ()))
        name = sources.digest(files, instance, compiler_version(), *flags, *_LIBRARIES, _SEAM_IN_DEBUG)
        file = f"{kernel.name}-{name}{'-checked' if checked else ''}.so"
        path = self._cache.find(file)
        if path is None:
            try:
                library = self._compile(kernel, instance, flags, is_cuda=is_cuda)
            except OSError as error:  # of the temporary directory
                raise DeviceError(f"{instance} cannot be compiled: {error}") from error
            path = self._cache.keep(lambda directory: product_cache.write(directory / file, library))
        self._known[instance, checked] = (state, path)
        return path

    def forget(self) -> None:
        """Makes `library` look at files again."""
        self._known.clear()

    def _compile(self, kernel: KernelSource, instance: str, flags: tuple[str, ...], *, is_cuda: bool) -> bytes:
        """The library, as a file."""
        if is_cuda:
            dialect.check(kernel)
        prelude = dialect.prelude(kernel, self._seam) if is_cuda else ""
        text = f'{prelude}#include "{kernel.path.resolve()}"\n#include <entry.h>\n'
        text += f"using namespace {kernel.scope};\n" if kernel.scope else ""
        text += f"EMULATOR_KERNEL({sources.expression(instance, kernel)})\n"
        directories = [self._seam / "cuda"] if is_cuda else []
        directories += [self._seam, sources.kernel_directory()]
        prefix_map = f"-fdebug-prefix-map={self._seam}={_SEAM_IN_DEBUG}"
        command = [*compiler(), *flags, prefix_map, *(f"-I{directory}" for directory in directories)]
        headers = [*sources.headers(self._seam), *(sources.cuda_headers(self._seam) if is_cuda else ())]
        command += precompiled.options(prelude or _PRELUDE, headers, command, compiler_version(), self._cache)
        with tempfile.TemporaryDirectory(prefix="gemma-cuda-") as directory:
            product = Path(directory, "kernel.so")
            command += ["-x", "c++", "-", "-o", str(product), "-x", "none", str(self._runtime), *_LIBRARIES]
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode != 0:
                if _NO_ROOM.search(done.stderr):
                    raise DeviceError(
                        f"{product.parents[1]} has no room to compile {instance}; set TMPDIR to another disk"
                    )
                words = dialect.explain(done.stderr, self._seam) if is_cuda else None
                raise LaunchError(f"{instance} does not compile: {words or _first_errors(done.stderr)}")
            if is_cuda:
                dialect.leave_dynamic_shared_open(product)
            return product.read_bytes()


def compiler() -> list[str]:
    """Command of the host's C++ compiler, $CXX or g++; raises DeviceError saying what is missing."""
    chosen = os.environ.get("CXX", "").strip() or "g++"
    try:
        command = shlex.split(chosen)
    except ValueError as error:
        raise DeviceError(
            f"device 'emulator' compiles kernels with $CXX, and {chosen} is no command: {error}"
        ) from error
    needs = f"device 'emulator' compiles kernels with {shlex.join(command)}, which"
    if shutil.which(command[0]) is None:
        raise DeviceError(f"{needs} is not installed (Debian: apt install g++)")
    version = _version(tuple(command))
    if "Free Software Foundation" not in version:
        raise DeviceError(f"{needs} is not GCC, as the flags and the checks need: set CXX=g++")
    return command


def compiler_version() -> str:
    """First line of the host compiler's --version."""
    return _version(tuple(compiler())).splitlines()[0]


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@functools.cache
def _architecture_flags() -> tuple[str, ...]:
    """-march of this machine, one of two levels; results have the same bits with either."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 2)[1]))
    except (OSError, IndexError):
        return ()
    needed = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}
    return ("-march=x86-64-v3",) if needed <= flags else ()


def frames(library: Path, address: int) -> list[Frame]:
    """Frames of a return address in kernel sources, innermost inlined function first; empty without any.

    Where inlining has lost a call's debug information, the next instruction that has some is taken.
    """
    tool = shutil.which("addr2line")
    if tool is None:
        return []
    addresses = [f"{max(probed, 0):#x}" for probed in range(address - 1, address + _PROBED_BYTES)]
    command = [tool, "-e", str(library), "-a", "-i", *addresses]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for answer in re.split(r"^0x[0-9a-f]+\n", output, flags=re.MULTILINE)[1:]:
        found = [frame for frame in map(_frame, answer.splitlines()) if frame is not None]
        if any(frame.path.endswith(".cu") for frame in found):
            return found
    return []


def _frame(line: str) -> Frame | None:
    path, _, number = line.split(" ")[0].rpartition(":")
    is_kernel = path.endswith((".cu", ".cuh", ".h", ".hpp", ".inc")) and not path.startswith(
        (f"{_SEAM_IN_DEBUG}/", "/usr/")
    )
    return Frame(path, int(number)) if is_kernel and number.isdigit() else None


def _first_errors(stderr: str, limit: int = 3) -> str:
    lines = [line for line in stderr.splitlines() if "error:" in line or "undefined reference" in line]
    return "; ".join(re.sub(r"^.*/", "", line) for line in lines[:limit]) or stderr.strip()[-500:]
