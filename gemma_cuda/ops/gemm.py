"""Matrix-product backends: NumPy's BLAS, kernels/linear.cu, cuBLASLt, or the latter two by the number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..device.protocol import Array, Device
from .geglu import geglu
from .linear import linear, linear_geglu, split_counters

if TYPE_CHECKING:
    from ..device.cuda.device import Cuda

_BF16 = np.dtype(ml_dtypes.bfloat16)
_FEW_ROWS = 64


class Gemm(Protocol):
    """A matrix-product backend. element_bytes: size of an element of an uploaded weight. name: for reports."""

    element_bytes: int

    @property
    def name(self) -> str: ...

    def upload(self, weight: NDArray[np.float32]) -> Array:
        """The weight [N, K], bfloat16 values in float32 on the host, in the form that `product` takes."""

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        """x [M, K] times the transpose of an uploaded weight [N, K], accumulated in float32 and rounded once."""

    def gated(self, x: Array, weight: Array) -> Array:
        """gelu(gate) · up [M, F] of the product with an uploaded gate | up [2F, K]."""


class BlasGemm:
    """Products by NumPy's BLAS in float32, for the emulator: those of cuBLASLt except for the order of sums."""

    element_bytes, name = 4, "NumPy's BLAS"

    def __init__(self, device: Device) -> None:
        self.device = device

    def upload(self, weight: NDArray[np.float32]) -> Array:
        return weight

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        return np.matmul(x.astype(np.float32), weight.T).astype(out_dtype, copy=False)

    def gated(self, x: Array, weight: Array) -> Array:
        return _geglu_of(self.product(x, weight, x.dtype), self.device)


class KernelGemm:
    """Products by kernels/linear.cu, on any device."""

    element_bytes, name = 2, "kernels/linear.cu"

    def __init__(self, device: Device) -> None:
        self.device, self.counters = device, split_counters(device)

    def upload(self, weight: NDArray[np.float32]) -> Array:
        return self.device.from_host(weight.astype(_BF16))

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        return linear(x, weight, device=self.device, out_dtype=out_dtype, counters=self.counters)

    def gated(self, x: Array, weight: Array) -> Array:
        return linear_geglu(x, weight, device=self.device, counters=self.counters)


class DryRunGemm:
    """Notes the shapes of products on a DryRunDevice. shapes: (M, N, K, dtype of the product) of each."""

    element_bytes, name = 2, "dry run"

    def __init__(self, device: Device) -> None:
        self.device = device
        self.shapes: list[tuple[int, int, int, np.dtype[Any]]] = []

    def upload(self, weight: NDArray[np.float32]) -> Array:
        return weight

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        self.shapes.append((x.shape[0], weight.shape[0], x.shape[1], out_dtype))
        return self.device.empty((x.shape[0], weight.shape[0]), out_dtype)

    def gated(self, x: Array, weight: Array) -> Array:
        return _geglu_of(self.product(x, weight, x.dtype), self.device)


class LibraryGemm:
    """Products by cuBLASLt."""

    element_bytes = 2

    def __init__(self, device: Cuda) -> None:
        from ..device.cuda.cublaslt import GemmPlans

        self.device, self.gemms = device, GemmPlans(device)
        self.name = f"cuBLASLt {self.gemms.version} by {self.gemms.bindings}"

    def upload(self, weight: NDArray[np.float32]) -> Array:
        return self.device.from_host(weight.astype(_BF16))

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        out = self.device.empty((x.shape[0], weight.shape[0]), out_dtype)
        plan = self.gemms.plan(x.shape[0], weight.shape[0], x.shape[1], x.dtype, out_dtype, ldx=_row_stride(x))
        self.gemms.run(plan, out, x, weight)
        return out

    def gated(self, x: Array, weight: Array) -> Array:
        return _geglu_of(self.product(x, weight, x.dtype), self.device)

    def tune(self, m: int, n: int, k: int, out_dtype: np.dtype[Any]) -> None:
        """Measures the fastest algorithm for a product of contiguous rows, unless it is known."""
        self.gemms.tune(m, n, k, _BF16, out_dtype)


class GemmByRows:
    """Few rows by kernels/linear.cu, which reads a weight once and applies GeGLU to the tile; more rows by `many`."""

    element_bytes = 2

    def __init__(self, few: KernelGemm, many: LibraryGemm | DryRunGemm) -> None:
        self.few, self.many = few, many
        self.name = f"{few.name} for up to {_FEW_ROWS} rows, else {many.name}"

    def upload(self, weight: NDArray[np.float32]) -> Array:
        return self.few.upload(weight)

    def product(self, x: Array, weight: Array, out_dtype: np.dtype[Any]) -> Array:
        return self._by(x).product(x, weight, out_dtype)

    def gated(self, x: Array, weight: Array) -> Array:
        return self._by(x).gated(x, weight)

    def _by(self, x: Array) -> KernelGemm | LibraryGemm | DryRunGemm:
        return self.few if x.shape[0] <= _FEW_ROWS else self.many


def _geglu_of(gate_up: Array, device: Device) -> Array:
    width = gate_up.shape[1] // 2
    return geglu(gate_up[:, :width], gate_up[:, width:], device=device)


def _row_stride(x: Array) -> int:
    return int(x.strides[0] // x.dtype.itemsize if x.shape[0] > 1 else x.shape[1])
