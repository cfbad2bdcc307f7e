"""Devices by name: `choose_device` finds the one to run on and the reason, `open_device` opens it."""

import re
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from .driver import MIN_COMPUTE_CAPABILITY, Driver, cuda_extra, detect, is_installed

if TYPE_CHECKING:
    from .protocol import Device

__all__ = [
    "DEVICES", "MIN_COMPUTE_CAPABILITY", "DeviceChoice", "Driver", "choose_device", "cuda_extra", "detect",
    "open_device",
]  # fmt: skip

DEVICES = ("auto", "cuda", "emulator", "numpy")
_CUDA = re.compile(r"cuda(?::(\d+))?")
_PACKAGES = {"cupy": "CuPy", "cuda.bindings": "cuda-bindings"}


class DeviceChoice(NamedTuple):
    """A device, the reason for it, and why a visible GPU cannot be used (None: it can, or none is visible)."""

    name: str
    reason: str
    warning: str | None


def choose_device(requested: str, *, driver: Driver | None = None) -> DeviceChoice:
    """The device to run on, the reason for it, and a warning where a GPU is visible that cannot be used.

    requested: "auto", "cuda", "cuda:1" (a GPU's index), "emulator" or "numpy". driver: result of `detect()`
    (None: detected here). Raises InputError for any other name and DeviceError for a device that cannot be opened.
    """
    if requested not in DEVICES and not _CUDA.fullmatch(requested):
        from ..arguments import shown  # imports NumPy, which choosing a device does not need

        raise InputError(f"device is {shown(requested)}, expected one of {', '.join(DEVICES)}, cuda:1, ...")
    if requested != "auto":
        if requested != "numpy":
            open_device(requested)  # says what is missing where it cannot run
        return DeviceChoice(requested, "it was asked for", None)
    driver = detect() if driver is None else driver
    if driver.problem is not None:
        return DeviceChoice("numpy", "no GPU can be used", f"{driver.problem}; to use it: {driver.remedy}")
    if not driver.gpus:
        return DeviceChoice("numpy", "no NVIDIA GPU is visible", None)
    usable = [index for index, gpu in enumerate(driver.gpus) if gpu.supported]
    if not usable:
        major, minor = MIN_COMPUTE_CAPABILITY
        return DeviceChoice(
            "numpy",
            "no GPU can be used",
            f"{driver.gpus[0]} is visible, but CUDA needs compute capability {major}.{minor} or newer; "
            "nothing can be installed to change that, --device numpy silences this",
        )
    gpu = driver.gpus[usable[0]]
    missing = [title for module, title in _PACKAGES.items() if not is_installed(module)]
    if missing:
        return DeviceChoice(
            "numpy",
            "no GPU can be used",
            f"{gpu} is visible, but {' and '.join(missing)} not installed: pip install "
            f"'gemma-cuda[{cuda_extra(driver)}]', or --device numpy silences this",
        )
    return DeviceChoice(f"cuda:{usable[0]}", f"{gpu} is there", None)


def open_device(name: str) -> "Device":
    """The device "cuda", "cuda:1" or "emulator"; raises DeviceError where it cannot be opened."""
    if name == "emulator":
        from .emulator.device import Emulator

        return Emulator()
    from .cuda.device import Cuda

    return Cuda.named(name)
