"""The fake GPU with the fake cuBLASLt, for a whole process: for rehearsals without a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_cuda.bench import run, timing
from gemma_cuda.device import sources
from gemma_cuda.device.cuda.cublaslt import GemmPlans
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from tests.support.fake_cublaslt import CublasLt, hide_nvmath
from tests.support.fake_cuda import Machine
from tests.support.paths import KERNELS

FAKES = {"fake": True, "fake-without-cublaslt": False}
"""Values of --gpu besides "real": whether that GPU has cuBLASLt."""
WORK_MS = 1.0  # between events, of a launch or a copy: no real time, but long enough that one round suffices


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
    """Replaces CuPy and, with has_cublaslt, nvmath-python's bindings by the fakes."""
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
    patch.setattr(GemmPlans, "tune", GemmPlans.plan)  # on the emulator it takes a minute
    return Cuda()
