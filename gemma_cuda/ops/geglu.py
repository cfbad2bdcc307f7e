"""Gated activation of Gemma's MLP. Kernel: kernels/geglu.cu."""

from __future__ import annotations

from math import gcd

from ..device.protocol import Array, Device
from ..errors import InputError
from .checks import check_array, cpp_type16, row_stride

_OP = "geglu"
_THREADS = 256
_VECTOR = 8  # elements of 16 bytes
_MOST = 2**31 - 1


def geglu(gate: Array, up: Array, *, device: Device, out: Array | None = None) -> Array:
    """y [N, F] = gelu_tanh(gate) · up, rounded once, of gate and up [N, F], bfloat16 or float16.

    Rows are contiguous and may lie apart: gate and up may be the halves of one packed product [N, 2F], or up a slice of
    per-layer inputs [N, L, F]. out [N, F], contiguous: takes y. Raises InputError before anything is launched.
    """
    if gate.ndim != 2 or gate.shape[1] == 0:
        raise InputError(f"{_OP}: gate is {list(gate.shape)}, expected [N, F]")
    scalar = cpp_type16(_OP, "gate", gate)
    if tuple(up.shape) != tuple(gate.shape):
        raise InputError(f"{_OP}: up is {list(up.shape)}, expected [N, F] = {list(gate.shape)} as gate")
    if up.dtype != gate.dtype:
        raise InputError(f"{_OP}: up is {up.dtype.name}, expected {gate.dtype.name} as gate")
    rows, width = gate.shape
    if out is not None:
        check_array(_OP, "out", out, "N, F", (rows, width), gate.dtype)
    strides = [row_stride(_OP, name, array) for name, array in (("gate", gate), ("up", up))]
    size = gate.dtype.itemsize
    vector = gcd(
        _VECTOR, width, *strides, *(device.address(array) // size for array in (gate, up, out) if array is not None)
    )
    vectors = rows * (width // vector)
    if vectors > _MOST:
        raise InputError(f"{_OP}: {rows} rows of {width} are more than {_MOST} vectors of {vector}")
    y = device.empty((rows, width), gate.dtype) if out is None else out
    if rows:
        blocks = -(-vectors // _THREADS)
        device.launch(
            f"geglu<{scalar}, {vector}>", (blocks,), (_THREADS,), 0, [y, gate, up, rows, width, *strides], overlap=True,
        )  # fmt: skip
    return y
