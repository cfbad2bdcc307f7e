"""What stands for a device is one: every device has what the ops above it may ask for, in the same words."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.dry_run import DryRunDevice
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.device.protocol import Device
from tests.support.fake_cuda import Machine
from tests.support.host_backed_gpu import HostBackedGpu
from tests.support.paths import KERNELS

METHODS = {name: value for name, value in vars(Device).items() if inspect.isfunction(value) and name[0] != "_"}
METHOD_KEYWORDS = {"overlap"}  # a device may have more keywords, with defaults
PROPERTIES = [name for name, value in vars(Device).items() if isinstance(value, property)]


@pytest.mark.parametrize("kind", [Cuda, Emulator, HostBackedGpu, DryRunDevice])
def test_every_device_has_the_methods_of_the_protocol(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(METHODS) == 9 and PROPERTIES == ["name", "shared_bytes"]
    for name, method in METHODS.items():
        wanted, given = (list(inspect.signature(f).parameters.values()) for f in (method, getattr(kind, name, list)))
        own = [p for p in given if p.kind is not p.KEYWORD_ONLY or p.default is p.empty or p.name in METHOD_KEYWORDS]
        assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in wanted], name
    Machine(Emulator()).install(monkeypatch)
    device = DryRunDevice(1 << 16) if kind is DryRunDevice else kind()
    assert isinstance(device.name, str) and device.shared_bytes > 0 and device.free_bytes() > 0


def test_a_host_backed_gpu_copies_as_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(Emulator(kernels=KERNELS)).install(monkeypatch)
    device = HostBackedGpu(kernels=KERNELS)
    source, target = device.from_host(np.arange(12, dtype=np.float32).reshape(3, 4)), device.zeros((2, 3), np.float32)
    device.copy(target, source[1:, 1:])
    device.launch("adds_one", (1,), (6,), 0, [target.reshape(-1)])
    assert device.to_host(target).tolist() == [[6, 7, 8], [10, 11, 12]]
