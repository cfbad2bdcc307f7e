"""Shared by the tests of every kernel: devices, seeded inputs surrounded by NaN, least memory traffic of a launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest

from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator import memory as emulator_memory
from gemma_cuda.device.emulator.counters import Counters
from gemma_cuda.device.emulator.device import Approximation, Emulator, MmaRounding, Schedule
from gemma_cuda.device.protocol import Device
from gemma_cuda.precision import BFLOAT16, FLOAT16, FLOAT64, Precision
from tests.support.compare import DTYPES
from tests.support.compulsory import Compulsory
from tests.support.fake_cuda import Machine

Array = np.ndarray[Any, Any]
SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")
APPROXIMATIONS: tuple[Approximation, ...] = ("exact", "up", "down")
MMA_ROUNDINGS: tuple[MmaRounding, ...] = ("fast", "ampere", "hopper")
HALF_DTYPES = ("bfloat16", "float16")
ROUNDING: dict[str, Precision] = {"bfloat16": BFLOAT16, "float16": FLOAT16}
EPS_RATIOS = (0.0, 0.01, 0.25, 1.0, 4.0, 100.0)
"""Mean squares of rows as multiples of a norm's eps: 0, where it decides alone, where it matters, where it does not."""
DeviceOf = Callable[[Emulator], Device]
"""See the fixture device_of."""
_MARGIN = 128


class KernelTestDevice(Protocol):
    """The fixture kernel_test_device: makes the device on which a test of kernels runs."""

    def __call__(self, schedule: Schedule = "forward", **options: Any) -> Any: ...


def kernel_emulator(schedule: Schedule = "forward", **options: Any) -> Emulator:
    """An emulator that checks every access unless the options say otherwise."""
    return Emulator(**{"checked": True, "schedule": schedule, "seed": 11, "workers": 2, **options})


def on_cuda(runs: Emulator, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """The CUDA device on a fake GPU whose launches `runs` runs."""
    Machine(runs).install(monkeypatch)
    return Cuda()


def values(seed: int, *shape: int, dtype: str, scale: float = 1.0) -> Array:
    """Normal values of standard deviation `scale`."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(DTYPES[dtype])


def near_eps(x: Array, eps: float, dtype: str) -> Array:
    """x [EPS_RATIOS, ..., width], scaled so that the mean square of each row is eps times its ratio."""
    ratios = np.reshape(EPS_RATIOS, (-1,) + (1,) * (x.ndim - 1))
    return (x * np.sqrt(ratios * eps / np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True))).astype(
        DTYPES[dtype]
    )


def amid_nan(array: Array, device: Device, *, offset: int = 0, gap: int = 0) -> Array:
    """The same values on a device, inside memory that is NaN before, after and, by `gap` elements, between the rows.

    They start `offset` elements after a multiple of 256 bytes.
    """
    *outer, width = array.shape
    start, stop = _MARGIN + offset, _MARGIN + offset + math.prod(outer) * (width + gap)

    def inside(room: Array) -> Array:
        return room[start:stop].reshape(*outer, width + gap)[..., :width]

    room = np.full(stop + _MARGIN, np.nan, array.dtype)
    inside(room)[...] = array
    return inside(device.from_host(room))


def poisoned(*shape: int, dtype: str) -> Array:
    """Memory for a result: a kernel that reads it before writing it is reported."""
    return emulator_memory.poisoned(shape, DTYPES[dtype])


def bounds(dtype: str, reference: Callable[[Precision], Any]) -> tuple[Any, Any]:
    """(r, b) of the tolerance rule: the reference in float64, and with its rounding points in `dtype`."""
    return reference(FLOAT64), reference(ROUNDING[dtype])


def counted(device: Emulator) -> Counters:
    """What the last launch cost."""
    assert device.counters is not None
    return device.counters


def assert_moves_little_more(counters: Counters, least: Compulsory) -> None:
    """Fails if a launch touched more than 2 % beyond the compulsory sectors; or fewer, which cannot be."""
    assert least.read_sectors <= counters.global_read_sectors <= 1.02 * least.read_sectors
    assert least.write_sectors <= counters.global_write_sectors <= 1.02 * least.write_sectors
