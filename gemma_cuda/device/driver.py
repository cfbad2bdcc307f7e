"""The NVIDIA driver's version and GPUs, through ctypes: no CuPy, no CUDA context.

Imports only the standard library, so that it runs before anything is installed.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

MIN_COMPUTE_CAPABILITY = (8, 0)
INSTALL_CUDA = "pip install 'gemma-cuda[cuda13]' (cuda12 for a driver of CUDA 12)"

_CUDA_ERROR_NO_DEVICE = 100
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver describes it."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def supported(self) -> bool:
        return self.compute_capability >= MIN_COMPUTE_CAPABILITY

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor}, {self.memory_bytes / 2**30:.0f} GiB)"


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs. `problem` and `remedy` are set where a GPU seems to be there but cannot be reached."""

    gpus: tuple[Gpu, ...] = ()
    cuda_version: tuple[int, int] | None = None
    problem: str | None = None
    remedy: str | None = None


def detect(load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """The driver's CUDA version and visible GPUs, subject to CUDA_VISIBLE_DEVICES. Never raises.

    load: opens a shared library by name; raises OSError where there is none.
    """
    try:
        library = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return _without_library()
    try:
        return _ask(library)
    except (AttributeError, OSError, ValueError) as error:
        return Driver(problem=f"the CUDA driver does not answer ({error})", remedy="reinstall the NVIDIA driver")


def _without_library() -> Driver:
    if not any(os.path.exists(path) for path in _DRIVER_FILES):
        return Driver()
    return Driver(
        problem="the NVIDIA kernel module is loaded, but libcuda.so.1 cannot be opened",
        remedy="install the driver's user libraries (Debian: apt install libcuda1), "
        "or start the container with GPU support (docker run --gpus all)",
    )


def _ask(library: Any) -> Driver:
    code = library.cuInit(0)
    if code == _CUDA_ERROR_NO_DEVICE:
        return Driver(cuda_version=_cuda_version(library))
    if code != 0:
        return Driver(
            cuda_version=_cuda_version(library),
            problem=f"the CUDA driver does not start: {_error_name(library, code)}",
            remedy="see whether nvidia-smi works; after a driver update, reboot",
        )
    count = ctypes.c_int(0)
    _check(library, library.cuDeviceGetCount(ctypes.byref(count)))
    return Driver(gpus=tuple(_gpu(library, index) for index in range(count.value)), cuda_version=_cuda_version(library))


def _gpu(library: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    memory, name = ctypes.c_size_t(0), ctypes.create_string_buffer(256)
    _check(library, library.cuDeviceGet(ctypes.byref(device), index))
    _check(library, library.cuDeviceGetName(name, len(name), device))
    _check(library, library.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    _check(library, library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device))
    _check(library, library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device))
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _cuda_version(library: Any) -> tuple[int, int] | None:
    version = ctypes.c_int(0)  # 13000 is 13.0, 12090 is 12.9
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _check(library: Any, code: int) -> None:
    if code != 0:
        raise OSError(_error_name(library, code))


def _error_name(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(text)) != 0 or text.value is None:
        return f"CUDA error {code}"
    return text.value.decode(errors="replace")


def cuda_extra(driver: Driver) -> str | None:
    """`cuda13` or `cuda12`, the extra to install for this driver; None where no supported GPU can be used."""
    if driver.cuda_version is None or not any(gpu.supported for gpu in driver.gpus):
        return None
    major = driver.cuda_version[0]
    if major >= 13:
        return "cuda13"
    return "cuda12" if major == 12 else None


def is_installed(module: str) -> bool:
    """Whether a module can be found; imports at most its parent package."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False
