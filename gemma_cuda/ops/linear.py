"""Matrix product with a Linear's weight, and what follows it. Kernel: kernels/linear.cu."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, isfinite
from typing import Any

import numpy as np

from ..device.protocol import Array, Device
from ..device.structs import pack_struct
from ..errors import InputError
from .checks import check_array, check_vectors, cpp_type, cpp_type16, row_stride

_BLOCK_K = 64
_K_MULTIPLE = 8  # elements of the 16 bytes that are copied at once
_MOST_BLOCKS = 2**31 - 1
_MOST = 2**31 - 256  # rows, columns, depth: the last tile counts on, in int
_MULTIPROCESSORS = 128  # about those of a large GPU
_SPLIT_STEPS, _MOST_SPLITS = 4, 16  # a sum starts anew every 4 steps of _BLOCK_K, or more if that were too often
_SPLIT_BELOW = 2 * _MULTIPROCESSORS * 16  # blocks · their rows: two blocks of 16 rows on each multiprocessor


@dataclass(frozen=True)
class Tiling:
    """Rows and columns of a block's tile of x · weightᵀ, and steps of K in shared memory.

    split: blocks share K, too. Results do not depend on any of it.
    """

    block_m: int
    block_n: int
    stages: int
    split: bool = False

    @property
    def threads(self) -> int:
        """As linear_threads of the kernel: four warps for each 64 rows."""
        return max(1, self.block_m // 64) * 128

    def blocks(self, rows: int, columns: int) -> int:
        return -(-rows // self.block_m) * -(-columns // self.block_n)

    def shared_bytes(self, out_bytes: int) -> int:
        stages = self.stages * (self.block_m + self.block_n) * _BLOCK_K * 2
        return max(stages, self.block_m * self.block_n * out_bytes)


SMALL, MEDIUM = (Tiling(16, 64, 4), Tiling(32, 64, 4), Tiling(64, 64, 4)), Tiling(64, 128, 3)
LARGE, DEEP = Tiling(128, 128, 3), Tiling(128, 128, 4)  # 96 KiB, which every GPU has, and 128
TILINGS = (*SMALL, MEDIUM, LARGE, DEEP)


def choose_tiling(rows: int, columns: int, shared_bytes: int) -> Tiling:
    """The tile of x · weightᵀ [rows, columns] where a block may have shared_bytes. Up to 64 rows it holds all of them.

    What would leave multiprocessors idle is split along K: the more rows, the less, since their sums are moved twice.
    """
    tiling = next((small for small in SMALL if rows <= small.block_m), None)
    if tiling is None:
        large = DEEP if shared_bytes >= DEEP.shared_bytes(4) else LARGE
        tiling = large if large.blocks(rows, columns) >= _MULTIPROCESSORS else MEDIUM
    return replace(tiling, split=tiling.blocks(rows, columns) * tiling.block_m < _SPLIT_BELOW)


def split_steps(depth: int) -> int:
    """Steps of 64 along K before a sum starts anew. K alone decides, since a row's bits depend on it."""
    return _SPLIT_STEPS * -(-depth // (_SPLIT_STEPS * _BLOCK_K * _MOST_SPLITS))


def split_counters(device: Device) -> Array:
    """int32 zeros for the `counters` of linear and linear_geglu, which leave them zero.

    Any number of launches share them, on one stream or on streams that wait for each other.
    """
    return device.from_host(np.zeros(2 * _MULTIPROCESSORS, np.int32))


def linear(
    x: Array,
    weight: Array,
    *,
    device: Device,
    out_dtype: Any = None,
    residual: Array | None = None,
    softcap: float | None = None,
    tiling: Tiling | None = None,
    counters: Array | None = None,
) -> Array:
    """y [M, N] = x [M, K] · weight [N, K]ᵀ, summed in float32 and rounded once to out_dtype: x's (None) or float32.

    x and weight are bfloat16 or float16; K is a multiple of 8. Their rows are contiguous and may lie apart, by a
    multiple of 8. residual: [M, N] of x's dtype, contiguous: y is residual + the product, rounded again. softcap: y,
    of out_dtype float32, is softcap · tanh(product / softcap). A row of y has the same bits alone and among others, and
    as without these options followed by an addition or by softcap.
    tiling: instead of the one that suits the shape. counters: of split_counters (None: made for this call, which then
    cannot be captured).
    Raises InputError before anything is launched.
    """
    dtype = x.dtype if out_dtype is None else np.dtype(out_dtype)
    if dtype not in (x.dtype, np.float32):
        raise InputError(f"linear: out_dtype is {dtype.name}, expected {x.dtype.name} or float32")
    epilogue = "Store"
    if softcap is not None:
        epilogue = "SoftCap"
        if not (isfinite(softcap) and softcap > 0):
            raise InputError(f"linear: softcap is {softcap}, expected a positive number or None")
        if dtype != np.float32 or residual is not None:
            raise InputError("linear: softcap is for out_dtype float32, without a residual")
    if residual is not None:
        epilogue = "Residual"
        if dtype != x.dtype:
            raise InputError(f"linear: out_dtype is {dtype.name}, expected {x.dtype.name} with a residual")
    return _launch("linear", epilogue, x, weight, dtype, residual, float(softcap or 0), tiling, counters, device)


def linear_geglu(
    x: Array, weight: Array, *, device: Device, tiling: Tiling | None = None, counters: Array | None = None
) -> Array:
    """y [M, F] = gelu_tanh(x · gateᵀ) · (x · upᵀ) of weight [2F, K]: gate, then up. The products are never stored.

    dtypes, layouts and options as of linear; the bits are those of geglu of linear's product.
    Raises InputError before anything is launched.
    """
    if weight.ndim == 2 and weight.shape[0] % 2:
        raise InputError(f"linear_geglu: weight is {list(weight.shape)}, expected [2F, K]")
    return _launch("linear_geglu", "GeGlu", x, weight, x.dtype, None, 0.0, tiling, counters, device)


def _launch(
    op: str, epilogue: str, x: Array, weight: Array, dtype: Any, residual: Array | None, cap: float,
    tiling: Tiling | None, counters: Array | None, device: Device,
) -> Array:  # fmt: skip
    scalar = cpp_type16(op, "x", x)
    x_stride, w_stride = _check(op, x, weight, device)
    (rows, depth), products = x.shape, weight.shape[0]
    parts = 2 if epilogue == "GeGlu" else 1
    columns = products // parts
    tiling = choose_tiling(rows, products, device.shared_bytes) if tiling is None else tiling
    tiles = -(-rows // tiling.block_m) * -(-columns // (tiling.block_n // parts))
    if tiles > _MOST_BLOCKS:
        raise InputError(f"{op}: y would be [{rows}, {columns}], more than {_MOST_BLOCKS} tiles")
    vector = gcd(16 // dtype.itemsize, columns)
    if residual is not None:
        check_array(op, "residual", residual, "M, N", (rows, columns), x.dtype)
        check_vectors(op, "residual", device.address(residual), vector_bytes=vector * dtype.itemsize)
    steps = split_steps(depth)
    splits = -(-depth // (steps * _BLOCK_K)) if tiling.split else 1
    if splits > 1 and counters is not None:
        _check_counters(op, counters, tiles)
    y = device.empty((rows, columns), dtype)
    if tiles == 0:
        return y
    partial, arrived = None, None
    if splits > 1:
        partial = device.empty((tiles, splits, tiling.block_m * tiling.block_n), np.float32)
        arrived = device.from_host(np.zeros(tiles, np.int32)) if counters is None else counters
    params = pack_struct(
        "linear", "Params", x_stride=x_stride, w_stride=w_stride, M=rows, N=columns, K=depth, split_steps=steps, cap=cap
    )
    shape = f"{tiling.block_m}, {tiling.block_n}, {tiling.stages}, {vector}, {epilogue}"
    device.launch(
        f"linear<{scalar}, {cpp_type(op, 'y', y)}, {shape}>",
        (tiles, splits), (tiling.threads,), tiling.shared_bytes(dtype.itemsize),
        [y, x, weight, residual, partial, arrived, params], overlap=True,
    )  # fmt: skip
    return y


def _check(op: str, x: Array, weight: Array, device: Device) -> list[int]:
    """The row strides of x and weight; raises InputError unless the kernel can take both."""
    for name, array, axes in (("x", x, "M, K"), ("weight", weight, "N, K")):
        if array.ndim != 2:
            raise InputError(f"{op}: {name} is {list(array.shape)}, expected [{axes}]")
    depth, products = x.shape[1], weight.shape[0]
    if weight.shape[1] != depth:
        raise InputError(f"{op}: weight is {list(weight.shape)}, expected [N, K] = [{products}, {depth}]")
    if weight.dtype != x.dtype:
        raise InputError(f"{op}: weight is {weight.dtype.name}, expected {x.dtype.name} as x")
    if max(x.shape[0], products, depth) > _MOST:
        raise InputError(f"{op}: x is {list(x.shape)} and weight {list(weight.shape)}, no axis may exceed {_MOST}")
    if depth == 0 or depth % _K_MULTIPLE:
        raise InputError(f"{op}: x is {list(x.shape)}, expected [M, K] with K a multiple of {_K_MULTIPLE}")
    strides = [row_stride(op, name, array) for name, array in (("x", x), ("weight", weight))]
    for name, array, stride in zip(("x", "weight"), (x, weight), strides, strict=True):
        check_vectors(op, name, device.address(array), stride * array.dtype.itemsize)
    return strides


def _check_counters(op: str, counters: Array, tiles: int) -> None:
    if counters.ndim != 1 or counters.dtype != np.int32 or counters.shape[0] < tiles:
        given = f"{counters.dtype.name} {list(counters.shape)}"
        raise InputError(f"{op}: counters is {given}, expected int32 [{tiles} or more] as of split_counters")
