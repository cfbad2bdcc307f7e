"""`python -m tests.support.bound_launch LIBRARY`: one launch by cuda-bindings over fake_libcuda.c.

LIBRARY is loaded first, so that cuda-bindings finds it as libcuda.so.1. A process of its own: a real driver, where
there is one, must not be loaded beside it. Prints what the kernel wrote.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from tests.support.numbers_kernel import NUMBERS, pack_numbers
from tests.support.paths import KERNELS

ATTRIBUTE_BYTES = 72  # of a CUlaunchAttribute: an id, padding, a union of 64 bytes


class Config(ctypes.Structure):
    """CUlaunchConfig of the CUDA driver's ABI."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


def main(library_path: str) -> None:
    library = ctypes.CDLL(library_path, mode=ctypes.RTLD_GLOBAL)
    from tests.support.fake_cuda import LaunchAttribute, LaunchConfig, Machine

    def attribute_at(address: int) -> LaunchAttribute:
        attribute = LaunchAttribute()
        attribute.id = ctypes.c_int.from_address(address).value
        attribute.value.programmaticStreamSerializationAllowed = ctypes.c_int.from_address(address + 8).value
        return attribute

    machine = Machine(Emulator(workers=1, kernels=KERNELS))
    signature = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * 4)

    @signature
    def on_launch(config_address: int, function: int, parameters: int, extra: int | None) -> int:
        given, config = Config.from_address(config_address), LaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = given.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = given.block
        config.sharedMemBytes, config.hStream, config.numAttrs = (
            given.shared_bytes,
            given.stream or 0,
            given.attribute_count,
        )
        first = given.attributes or 0
        config.attrs = [attribute_at(first + i * ATTRIBUTE_BYTES) for i in range(given.attribute_count)]
        return int(machine.launch(config, function, parameters, extra or 0)[0])

    ctypes.c_void_p.in_dll(library, "on_launch").value = ctypes.cast(on_launch, ctypes.c_void_p).value
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch, bindings=False)
        from gemma_cuda.device.cuda.device import Cuda

        cuda = Cuda(kernels=KERNELS)
        out = cuda.empty((len(NUMBERS),), np.float64)
        with machine.new_stream():
            cuda.launch("numbers", (1,), (len(NUMBERS),), 0, [out, *pack_numbers()], overlap=True)
            assert machine.overlaps == [True]
            print(*cuda.to_host(out).tolist())


if __name__ == "__main__":
    main(sys.argv[1])
