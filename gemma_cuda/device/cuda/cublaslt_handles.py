"""Resources of cuBLASLt: handle, workspace, descriptors. Each is freed by close(), or with its owner."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ...errors import DeviceError, LaunchError
from ..driver import INSTALL_CUDA
from .cublaslt_bindings import bindings
from .gemm_product import Product
from .memory import CudaMemory

# Values of cudaDataType, cublasOperation_t, cublasComputeType_t and cublasLtReductionScheme_t.
DATA_TYPES = {"bfloat16": 14, "float16": 2, "float32": 0}
TRANSPOSED, COMPUTE_FLOAT32, REDUCE_IN_FLOAT32 = 1, 68, 2

_WORKSPACE_BYTES, _WORKSPACE_BYTES_SM90 = 8 << 20, 32 << 20
_REMEDY = f"{INSTALL_CUDA}, or nvidia-cublas alone"


class Closable(Protocol):
    """A user of the Library, closed with it."""

    def close(self) -> None: ...


class Library:
    """cuBLASLt on one GPU: its handle, and the workspace that all products share.

    name: "nvmath-python", or the library that ctypes calls. Raises DeviceError where no library works.
    """

    def __init__(self, cuda: CudaMemory) -> None:
        self.bindings, self.name, self.handle, self.version = _started(cuda)
        self._destroy = weakref.finalize(self, self.bindings.destroy, self.handle)
        self.workspace_bytes = _WORKSPACE_BYTES_SM90 if cuda.compute_capability >= (9, 0) else _WORKSPACE_BYTES
        self.workspace = cuda.empty((self.workspace_bytes,), np.uint8)
        self.error: type[Exception] = self.bindings.cuBLASLtError
        self.plans: weakref.WeakSet[Closable] = weakref.WeakSet()

    def open(self) -> Any:
        """The bindings; raises LaunchError after close()."""
        if not self._destroy.alive:
            raise LaunchError("gemm: this GemmPlans is closed")
        return self.bindings

    def close(self) -> None:
        for plan in list(self.plans):
            plan.close()
        self._destroy()
        self.workspace = None

    @contextmanager
    def reporting(self, kind: type[Exception], what: str) -> Iterator[None]:
        """Raises `kind` for an error of cuBLASLt inside."""
        try:
            yield
        except self.error as error:
            raise kind(f"{what}: {error}") from error


class Descriptors:
    """cuBLASLt's descriptors of a product, in column-major terms: outᵀ = (weightᵀ)ᵀ · xᵀ over the same memory."""

    def __init__(self, library: Library, product: Product) -> None:
        self._library, self.product = library, product
        lt = library.bindings
        self._made: list[tuple[Callable[[int], None], int]] = []
        self.close = weakref.finalize(self, _destroy_all, self._made)
        self.operation = self._own(
            lt.matmul_desc_destroy, lt.matmul_desc_create(COMPUTE_FLOAT32, DATA_TYPES["float32"])
        )
        kind = lt.MatmulDescAttribute.TRANSA
        self._set(lt.matmul_desc_set_attribute, lt.get_matmul_desc_attribute_dtype, self.operation, kind, TRANSPOSED)
        self.weight = self._layout(product.dtype, product.k, product.n, product.k)
        self.x = self._layout(product.dtype, product.k, product.m, product.ldx)
        self.out = self._layout(product.out_dtype, product.n, product.m, product.ldo)
        self.preference = self._own(lt.matmul_preference_destroy, lt.matmul_preference_create())
        preferences = {
            "MAX_WORKSPACE_BYTES": library.workspace_bytes,
            "REDUCTION_SCHEME_MASK": REDUCE_IN_FLOAT32,  # parts of a sum are never rounded to the dtype of out
            **{f"MIN_ALIGNMENT_{matrix}_BYTES": product.alignment for matrix in "ABCD"},
        }
        for name, value in preferences.items():
            kind = getattr(lt.MatmulPreferenceAttribute, name)
            dtype_of = lt.get_matmul_preference_attribute_dtype
            self._set(lt.matmul_preference_set_attribute, dtype_of, self.preference, kind, value)

    def _own(self, destroy: Callable[[int], None], handle: int) -> int:
        self._made.append((destroy, handle))
        return handle

    def _layout(self, dtype: str, rows: int, columns: int, stride: int) -> int:
        lt = self._library.bindings
        layout = lt.matrix_layout_create(DATA_TYPES[dtype], rows, columns, stride)
        return self._own(lt.matrix_layout_destroy, layout)

    def _set(self, setter: Any, dtype_of: Any, handle: int, kind: int, value: int) -> None:
        data = np.array([value], dtype_of(kind))
        setter(handle, kind, data.ctypes.data, data.nbytes)


def _destroy_all(made: list[tuple[Callable[[int], None], int]]) -> None:
    while made:
        destroy, handle = made.pop()
        destroy(handle)


def _started(cuda: CudaMemory) -> tuple[Any, str, int, int]:
    """(bindings, their name, handle, version of the library) of the first that works on this GPU."""
    reasons: list[str] = []
    for name, lt in bindings(reasons):
        try:
            with cuda.current():
                return lt, name, lt.create(), lt.get_version()
        except (lt.cuBLASLtError, RuntimeError) as error:  # nvmath-python looks for the library at the first call
            reasons.append(f"{name}: {error}")
    raise DeviceError(f"cuBLASLt cannot be used ({'; '.join(reasons)}): {_REMEDY}")
