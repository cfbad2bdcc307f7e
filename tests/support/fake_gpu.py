"""The fake GPU with the fake cuBLASLt, for a whole process: what rehearses work on a GPU where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_cuda.bench import run, timing
from gemma_cuda.device import sources
from gemma_cuda.device.cuda.cublaslt import Gemms
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from tests.support.fake_cublaslt import CublasLt, hide_nvmath
from tests.support.fake_cuda import Machine
from tests.support.paths import KERNELS

FAKES = {"fake": True, "fake-without-cublaslt": False}
"""What --gpu takes besides "real", and whether there is a cuBLASLt then."""
WORK_MS = 1.0  # what events make of a launch or a copy; no time of anything, but enough to be timed at once


class _AnyKernels(Emulator):
    """An emulator of the package's kernels and of those of the tests."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._of_tests = Emulator(kernels=KERNELS, **options)

    def launch(self, instance: str, *arguments: Any, **options: Any) -> None:
        is_of_tests = sources.kernel_name(instance) in sources.kernels_in(KERNELS)
        launch = self._of_tests.launch if is_of_tests else super().launch
        launch(instance, *arguments, **options)


def install(patch: pytest.MonkeyPatch, *, has_cublaslt: bool = True) -> Machine:
    """Makes both what `import cupy` and nvmath-python's bindings find. has_cublaslt: whether there is one."""
    machine = Machine(_AnyKernels(workers=2), memory=2**33)
    machine.work_ms = WORK_MS
    machine.install(patch)
    if has_cublaslt:
        CublasLt(machine).install(patch)
    else:
        hide_nvmath(patch)
    return machine


def for_bench(patch: pytest.MonkeyPatch) -> Cuda:
    """A fake GPU on which gemma_cuda/bench/ takes few rounds of few inputs, and tunes nothing."""
    install(patch)
    patch.setattr(run, "_MOST_SETS", 2)
    patch.setattr(timing, "FEWEST_ROUNDS", 3)
    patch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    patch.setattr(Gemms, "tune", Gemms.plan)  # on the emulator it takes a minute
    return Cuda()
