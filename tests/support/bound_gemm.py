"""`python -m tests.support.bound_gemm BINDINGS LIBCUDA LIBCUBLASLT CACHE`: a product by real bindings, our libraries.

BINDINGS: nvmath, for which both libraries are loaded first, so that it finds them instead of NVIDIA's; or ctypes, as
where nvmath-python is not installed: LIBCUBLASLT lies where ctypes finds it.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from gemma_cuda.device.cuda.cublaslt import GemmPlans
from gemma_cuda.errors import LaunchError


class HostCuda:
    """What GemmPlans asks of a Cuda, of memory of the host."""

    compute_capability, gpu_name, stream = (9, 0), "none", 77

    def current(self) -> nullcontext[None]:
        return nullcontext()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        memory = np.empty(shape, dtype)
        return SimpleNamespace(memory=memory, data=SimpleNamespace(ptr=memory.ctypes.data))


def main(bindings: str, libcuda: str, libcublaslt: str, cache: str) -> None:
    kept = []
    if bindings == "nvmath":
        kept = [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in (libcuda, libcublaslt)]
    else:
        sys.modules["nvmath"] = None  # type: ignore[assignment]
    cuda: Any = HostCuda()
    gemms = GemmPlans(cuda, cache=Path(cache))
    print(gemms.bindings, gemms.version)
    x = np.arange(3 * 16, dtype=np.float32).reshape(3, 16).astype(ml_dtypes.bfloat16)
    weight = np.arange(5 * 8, dtype=np.float32).reshape(5, 8).astype(ml_dtypes.bfloat16)
    out = np.full((3, 8), -1, np.float32)
    plan = gemms.plan(3, 5, 8, x.dtype, out.dtype, ldx=16, ldo=8)
    plan.launch(out.ctypes.data, x.ctypes.data, weight.ctypes.data, cuda.stream)
    assert (out[:, :5] == x[:, :8].astype(np.float32) @ weight.astype(np.float32).T).all()
    assert (out[:, 5:] == -1).all()
    try:
        gemms.plan(1, 8, 8, np.float16)
    except LaunchError as error:
        print(error)
    library = kept[1] if kept else ctypes.CDLL(libcublaslt)
    print(ctypes.c_void_p.in_dll(library, "last_stream").value, ctypes.c_int.in_dll(library, "alive").value)
    gemms.close()
    print(ctypes.c_int.in_dll(library, "alive").value)


if __name__ == "__main__":
    main(*sys.argv[1:])
