"""Tests that test_checkup.py has the check-up run: right ones, one of a wrong kernel, one that hangs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.emulated import KernelTestDevice
from tests.support.paths import KERNELS

pytestmark = pytest.mark.gpu


def copied(instance: str, kernel_test_device: KernelTestDevice) -> bool:
    device = kernel_test_device(kernels=KERNELS)
    x, y = np.arange(32, dtype=np.float32), device.empty((32,), np.float32)
    device.launch(instance, (1,), (32,), 0, [y, x, 32])
    return bool((x == y).all())


def test_right(kernel_test_device: KernelTestDevice) -> None:
    assert copied("round_to<float>", kernel_test_device)


def test_wrong(kernel_test_device: KernelTestDevice) -> None:
    assert copied("copy_all_but_one", kernel_test_device)


def test_hangs(kernel_test_device: KernelTestDevice) -> None:
    kernel_test_device(kernels=KERNELS).launch("wait_for_ever", (1,), (1,), 0, [np.zeros(1, np.int32)])


def test_right_afterwards(kernel_test_device: KernelTestDevice) -> None:
    assert copied("round_to<float>", kernel_test_device)
