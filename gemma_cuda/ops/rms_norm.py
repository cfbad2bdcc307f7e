"""RMSNorm alone, and fused with the residual add between two branches. Kernel: kernels/rms_norm.cu."""

from __future__ import annotations

from math import gcd

from ..device.protocol import Array, Device
from ..errors import InputError
from .checks import check_array, cpp_type

_MAX_THREADS = 512
_VECTOR_BYTES = 16
_SHARED_BYTES = 99 * 1024  # what a block may have on every architecture from sm_80 on


def rms_norm(
    x: Array,
    weight: Array | None,
    *,
    eps: float,
    device: Device,
    plus_one: bool = False,
    out: Array | None = None,
) -> Array:
    """y [S, E] = x / sqrt(mean(x²) + eps) · weight over each row, rounded once to x's dtype.

    x [S, E] bfloat16, float16 or float32; weight [E] of the same dtype, or None. plus_one: weight holds w of 1 + w.
    out [S, E]: takes y, and may be x. Raises InputError before anything is launched.
    """
    _check_row("rms_norm", x, "x")
    if weight is not None:
        check_array("rms_norm", "weight", weight, "E", (x.shape[1],), x.dtype)
    if out is not None:
        check_array("rms_norm", "out", out, "S, E", tuple(x.shape), x.dtype)
    y = device.empty(x.shape, x.dtype) if out is None else out
    _launch(device, y, None, x, None, weight, None, before="Nothing", plus_one=plus_one, eps=eps)
    return y


def add_norm(
    residual: Array,
    branch: Array,
    *,
    post_weight: Array | None,
    pre_weight: Array | None,
    eps: float,
    device: Device,
    layer_scalar: float = 1.0,
    plus_one: bool = False,
) -> tuple[Array, Array]:
    """(residual', normed), both [S, E]: the end of one branch and the start of the next in one pass.

    residual' = (residual + branch · rstd · post_weight) · layer_scalar, rounded once; without post_weight the branch is
    added as it is. normed = rms_norm(residual', pre_weight); without pre_weight it is residual' itself.
    residual' takes the storage of residual. residual, branch [S, E], weights [E], all of one dtype. plus_one: weights
    hold w of 1 + w. Raises InputError before anything is launched.
    """
    _check_row("add_norm", residual, "residual")
    check_array("add_norm", "branch", branch, "S, E", tuple(residual.shape), residual.dtype)
    for name, weight in (("post_weight", post_weight), ("pre_weight", pre_weight)):
        if weight is not None:
            check_array("add_norm", name, weight, "E", (residual.shape[1],), residual.dtype)
    normed = None if pre_weight is None else device.empty(residual.shape, residual.dtype)
    before = "Add" if post_weight is None else "NormAdd"
    _launch(
        device, normed, residual, branch, residual, pre_weight, post_weight,
        before=before, plus_one=plus_one, eps=eps, layer_scalar=layer_scalar,
    )  # fmt: skip
    return residual, residual if normed is None else normed


def _check_row(op: str, x: Array, name: str) -> None:
    cpp_type(op, name, x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise InputError(f"{op}: {name} is {list(x.shape)}, expected [S, E]")
    if not x.flags.c_contiguous:
        raise InputError(f"{op}: {name} is not contiguous")
    threads = _threads(x.shape[1], 1)
    if _shared_bytes(x, threads) > _SHARED_BYTES:
        raise InputError(
            f"{op}: a row of {name} takes {x.shape[1] * x.dtype.itemsize} bytes, a block has {_SHARED_BYTES}"
        )


def _launch(
    device: Device,
    y: Array | None,
    h: Array | None,
    x: Array,
    residual: Array | None,
    weight: Array | None,
    post_weight: Array | None,
    *,
    before: str,
    plus_one: bool,
    eps: float,
    layer_scalar: float = 1.0,
) -> None:
    rows, width = x.shape
    if rows == 0:
        return
    arrays = [array for array in (y, h, x, residual, weight, post_weight) if array is not None]
    vector = gcd(_VECTOR_BYTES // x.dtype.itemsize, width, *(device.address(a) // x.dtype.itemsize for a in arrays))
    threads = _threads(width, vector)
    kind = "Unit" if weight is None and post_weight is None else "OnePlus" if plus_one else "Times"
    instance = f"rms_norm<{cpp_type('rms_norm', 'x', x)}, {vector}, {kind}, {before}, {threads}>"
    arguments = [y, h, x, residual, weight, post_weight, width, float(eps), float(layer_scalar)]
    device.launch(instance, (rows,), (threads,), _shared_bytes(x, threads), arguments, overlap=True)


def _threads(width: int, vector: int) -> int:
    """Whole warps, as few as cover a row in the fewest steps."""
    vectors = -(-width // vector)
    steps = -(-vectors // _MAX_THREADS)
    return -(-vectors // (steps * 32)) * 32


def _shared_bytes(x: Array, threads: int) -> int:
    partial_sums = -(-threads // 128) * 32
    return int(partial_sums + x.shape[1] * x.dtype.itemsize)
