"""What test_checkup.py has the check-up run: a test that is right, one of a wrong kernel, one that hangs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.emulated import checked
from tests.support.golden import KERNELS

pytestmark = pytest.mark.gpu


def copied(instance: str) -> bool:
    device = checked(kernels=KERNELS)
    x, y = np.arange(32, dtype=np.float32), device.empty((32,), np.float32)
    device.launch(instance, (1,), (32,), 0, [y, x, 32])
    return bool((x == y).all())


def test_right() -> None:
    assert copied("round_to<float>")


def test_wrong() -> None:
    assert copied("copy_all_but_one")


def test_hangs() -> None:
    checked(kernels=KERNELS).launch("wait_for_ever", (1,), (1,), 0, [np.zeros(1, np.int32)])


def test_right_afterwards() -> None:
    assert copied("round_to<float>")
