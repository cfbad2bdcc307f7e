"""Arrays on the fake GPU, as CuPy and torch show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.support.fake_cuda import Device, DeviceArray, Machine

Array = np.ndarray[Any, Any]


def on_gpu(machine: Machine, host: Array, index: int = 0) -> DeviceArray:
    with Device(machine, index):
        array = machine.empty(host.shape, host.dtype)
        array.set(host)
        return array


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU; its memory is what the fake GPU takes for its own."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)
