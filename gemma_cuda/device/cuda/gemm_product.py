"""Description of a matrix product for cuBLASLt, and checks of its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import LaunchError
from ..protocol import Array


@dataclass(frozen=True)
class Product:
    """out [m, n] = x [m, k] · weight [n, k]ᵀ; rows of x lie ldx elements apart, those of out ldo, of weight k.

    alignment: bytes that each of the three arrays starts at a multiple of.
    """

    m: int
    n: int
    k: int
    dtype: str
    out_dtype: str
    ldx: int
    ldo: int
    alignment: int

    def __str__(self) -> str:
        return (
            f"{self.dtype} [{self.m}, {self.k}] · [{self.n}, {self.k}]ᵀ to {self.out_dtype}, "
            f"rows {self.ldx} and {self.ldo} apart, {self.alignment}-byte alignment"
        )


def product_of(
    m: int, n: int, k: int, dtype: Any, out_dtype: Any, ldx: int | None, ldo: int | None, alignment: int
) -> Product:
    """The Product; raises LaunchError for impossible sizes, strides, dtypes or alignments."""
    kind = np.dtype(dtype).name
    out = kind if out_dtype is None else np.dtype(out_dtype).name
    product = Product(m, n, k, kind, out, k if ldx is None else ldx, n if ldo is None else ldo, alignment)
    if kind not in ("bfloat16", "float16") or out not in (kind, "float32"):
        raise LaunchError(f"gemm {product}: expected bfloat16 or float16, to the same or float32")
    if min(m, n, k) < 1 or product.ldx < k or product.ldo < n:
        raise LaunchError(f"gemm {product}: expected sizes of 1 and more, and rows that do not overlap")
    if alignment < 1 or alignment & (alignment - 1):
        raise LaunchError(f"gemm {product}: expected an alignment that is a power of two")
    return product


def check_array(product: Product, name: str, array: Array, shape: tuple[int, int], dtype: str, stride: int) -> None:
    rows = array.strides[0] // array.dtype.itemsize if array.shape[0] > 1 else stride
    if tuple(array.shape) != shape or array.dtype.name != dtype or rows != stride:
        raise LaunchError(
            f"gemm {product}: {name} is {array.dtype.name} {list(array.shape)}, rows {rows} apart, "
            f"expected {dtype} {list(shape)}, rows {stride} apart"
        )
    if array.shape[1] > 1 and array.strides[1] != array.dtype.itemsize:
        raise LaunchError(f"gemm {product}: the rows of {name} are not contiguous")
    if array.data.ptr % product.alignment:
        raise LaunchError(f"gemm {product}: {name} starts off a multiple of {product.alignment} bytes")
