"""What follows the language-model head: softcap, the best tokens of each row. Kernels: kernels/logits.cu."""

from __future__ import annotations

from math import gcd, isfinite

import numpy as np

from ..device.protocol import Array, Device
from ..errors import InputError
from .checks import check_array

MOST_K = 64
_VECTOR = 4  # elements of 16 bytes
_SOFTCAP_THREADS = 256
_THREADS, _SLICE = 512, 512 * 16
_MOST_ROWS, _MOST_LOGITS = 65535, 2**31 - _SLICE  # the last slice counts on, in int
_SHARED_BYTES = 2 * _THREADS // 32 * 8


def softcap(z: Array, cap: float, *, device: Device) -> Array:
    """z itself, float32 [M, V], now cap · tanh(z / cap). Raises InputError before anything is launched."""
    _check_logits("softcap", z)
    if not (isfinite(cap) and cap > 0):
        raise InputError(f"softcap: cap is {cap}, expected a positive number")
    elements = z.shape[0] * z.shape[1]
    if elements:
        vector = gcd(_VECTOR, elements, device.address(z) // z.dtype.itemsize)
        vectors = elements // vector
        blocks = -(-vectors // _SOFTCAP_THREADS)
        device.launch(f"softcap<{vector}>", (blocks,), (_SOFTCAP_THREADS,), 0, [z, vectors, float(cap)], overlap=True)
    return z


def top_k(z: Array, k: int, *, device: Device) -> tuple[Array, Array]:
    """(values, indices) [M, k], float32 and int32: the k largest of each row of z, float32 [M, V], largest first.

    Among equals the lowest index comes first; NaN counts as the largest. k is 1 to 64, at most V. Raises InputError
    before anything is launched.
    """
    _check_logits("top_k", z)
    rows, width = z.shape
    if not 1 <= k <= min(MOST_K, width):
        raise InputError(f"top_k: k is {k}, expected 1 to {min(MOST_K, width)} of {width} logits")
    if rows > _MOST_ROWS:
        raise InputError(f"top_k: z has {rows} rows, at most {_MOST_ROWS} are possible")
    values, indices = device.empty((rows, k), np.float32), device.empty((rows, k), np.int32)
    if width > _MOST_LOGITS:
        raise InputError(f"top_k: z has {width} logits in a row, at most {_MOST_LOGITS} are possible")
    candidates, count = None, width
    while rows:
        slices = -(-count // _SLICE)
        best = device.empty((rows, slices, k), np.uint64) if slices > 1 else None
        vector = gcd(_VECTOR, width, device.address(z) // z.dtype.itemsize)
        source = f"Logits, {vector}" if candidates is None else "Keys, 1"
        device.launch(
            f"top_k<{source}>", (slices, rows), (_THREADS,), _SHARED_BYTES,
            [values, indices, best, z, candidates, count, width, k], overlap=True,
        )  # fmt: skip
        if best is None:
            break
        candidates, count = best, slices * k
    return values, indices


def argmax(z: Array, *, device: Device) -> Array:
    """int32 [M]: where each row of z, float32 [M, V], is largest, at the lowest index among equals.

    Raises InputError before anything is launched.
    """
    return top_k(z, 1, device=device)[1].reshape(-1)


def _check_logits(op: str, z: Array) -> None:
    if z.ndim != 2 or z.shape[1] == 0:
        raise InputError(f"{op}: z is {list(z.shape)}, expected [M, V]")
    if z.dtype != np.float32:
        raise InputError(f"{op}: z is {z.dtype.name}, expected float32")
    check_array(op, "z", z, "M, V", tuple(z.shape), z.dtype)
