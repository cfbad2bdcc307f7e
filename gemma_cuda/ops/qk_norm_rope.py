"""Per-head norms, rotary embedding and the KV write in one launch. Kernel: kernels/qk_norm_rope.cu."""

from __future__ import annotations

import numpy as np

from ..device.protocol import Array, Device
from ..device.structs import pack_struct
from ..errors import InputError
from .checks import check_array, check_int32, check_values, check_vectors, cpp_type16, row_stride

HEAD_DIMS = (64, 128, 256, 512)
_OP = "qk_norm_rope"
_THREADS = 128
_ELEMENTS_PER_LANE = 16  # 8 of a head's lower half, and their partners
_MOST = 2**31 - _THREADS  # heads: the last block counts on, in int
_MOST_STRIDE = 2**31 - 1


def qk_norm_rope(
    x: Array,
    *,
    heads: int,
    cos: Array,
    sin: Array,
    eps: float,
    device: Device,
    q_weight: Array | None = None,
    k_weight: Array | None = None,
    plus_one: bool = False,
    v_norm: bool = False,
    k_cache: Array | None = None,
    v_cache: Array | None = None,
    slots: Array | None = None,
    positions: Array | None = None,
    pairs: int | None = None,
    k_eq_v: bool = False,
    out: Array | None = None,
) -> Array:
    """q [N, H, D] as attention reads it; k_cache[slots] and v_cache[slots] [N, KH, D] are written.

    x [N, (H + 2 KH) D], bfloat16 or float16, holds q | k | v of each token, or q | k with k_eq_v (V is the raw K), or q
    alone without caches (a layer that reads another's), or k | v alone with heads = 0 (q is then [N, 0, D]). Its rows
    are contiguous and may lie apart. D is 64, 128, 256 or 512.

    q and k: RMSNorm over D where there are weights [D] (plus_one: they hold w of 1 + w), then RoPE: pairs (i, i + D/2)
    with i < `pairs` (None: all) turn by row positions[n] of cos and sin, float32 [P, D/2]; positions int32 [N], or None
    for row n. v: as it is, or divided by its root mean square (v_norm). k_cache, v_cache [rows, KH, D]; slots int32
    [N], all different but for -1 (K and V of that token are not kept), or None for row n. out [N, H, D]: takes q.
    Raises InputError before anything is launched.
    """
    if x.ndim != 2:
        raise InputError(f"{_OP}: x is {list(x.shape)}, expected [N, (H + 2 KH) D]")
    scalar = cpp_type16(_OP, "x", x)
    head_dim, kv_heads = _check_tables(cos, sin, device), _check_caches(k_cache, v_cache, x)
    half, tokens = head_dim // 2, x.shape[0]
    _check_width(x, heads, kv_heads, head_dim, k_eq_v)
    stride = row_stride(_OP, "x", x)
    check_vectors(_OP, "x", device.address(x), stride * x.dtype.itemsize)
    if stride > _MOST_STRIDE:
        raise InputError(f"{_OP}: the rows of x are {stride} elements apart, more than {_MOST_STRIDE}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache is not None:
            check_array(_OP, name, cache, "rows, KH, D", (cache.shape[0], kv_heads, head_dim), x.dtype)
            check_vectors(_OP, name, device.address(cache))
    q_weight, k_weight = q_weight if heads else None, k_weight if kv_heads else None
    _check_weights(q_weight, k_weight, heads, kv_heads, head_dim, x, device)
    _check_index("positions", positions, tokens, "cos", cos.shape[0])
    if k_cache is not None:
        kept = slots[slots != -1] if isinstance(slots, np.ndarray) and slots.ndim == 1 else slots
        _check_index("slots", slots, tokens, "k_cache", k_cache.shape[0], kept)
    elif slots is not None:
        raise InputError(f"{_OP}: slots are given, but no k_cache and v_cache")
    if pairs is not None and not 0 <= pairs <= half:
        raise InputError(f"{_OP}: pairs is {pairs}, expected 0 to D/2 = {half}")
    rows = tokens * (heads + 2 * kv_heads)
    if rows > _MOST:
        raise InputError(f"{_OP}: {tokens} tokens of {heads} + 2 · {kv_heads} heads are more than {_MOST} heads in all")

    shape = (tokens, heads, head_dim)
    if out is not None:
        check_array(_OP, "out", out, "N, H, D", shape, x.dtype)
        check_vectors(_OP, "out", device.address(out))
    q = device.empty(shape, x.dtype) if out is None else out
    if rows == 0:
        return q
    has_norm = q_weight is not None or k_weight is not None
    norm = "Raw" if not has_norm else "OnePlus" if plus_one else "Times"
    v_column = (heads if k_eq_v else heads + kv_heads) * head_dim
    params = pack_struct(
        "qk_norm_rope", "Params", N=tokens, H=heads, KH=kv_heads, x_stride=stride, v_column=v_column,
        pairs=half if pairs is None else pairs, eps=float(eps),
    )  # fmt: skip
    device.launch(
        f"qk_norm_rope<{scalar}, {head_dim}, {norm}, {str(v_norm).lower()}>",
        (-(-rows // (_THREADS * _ELEMENTS_PER_LANE // head_dim)),), (_THREADS,), 0,
        [q if heads else None, k_cache, v_cache, x, q_weight, k_weight, cos, sin, positions, slots, params],
        overlap=True,
    )  # fmt: skip
    return q


def _check_tables(cos: Array, sin: Array, device: Device) -> int:
    """D of the rotary tables."""
    if cos.ndim != 2 or 2 * cos.shape[1] not in HEAD_DIMS:
        raise InputError(f"{_OP}: cos is {list(cos.shape)}, expected [P, D/2] with D one of {HEAD_DIMS}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != np.float32:
            raise InputError(f"{_OP}: {name} is {table.dtype.name}, expected float32")
        check_array(_OP, name, table, "P, D/2", tuple(cos.shape), cos.dtype)
        check_vectors(_OP, name, device.address(table))
    return int(2 * cos.shape[1])


def _check_caches(k_cache: Array | None, v_cache: Array | None, x: Array) -> int:
    """KH of the caches; 0 without."""
    if k_cache is None and v_cache is None:
        return 0
    if k_cache is None or v_cache is None:
        raise InputError(f"{_OP}: k_cache and v_cache are needed together")
    if k_cache.ndim != 3 or k_cache.shape[1] == 0:
        raise InputError(f"{_OP}: k_cache is {list(k_cache.shape)}, expected [rows, KH, D]")
    if tuple(v_cache.shape) != tuple(k_cache.shape):
        raise InputError(f"{_OP}: v_cache is {list(v_cache.shape)}, expected {list(k_cache.shape)} as k_cache")
    return int(k_cache.shape[1])


def _check_width(x: Array, heads: int, kv_heads: int, head_dim: int, k_eq_v: bool) -> None:
    if heads < 0 or heads + kv_heads == 0:
        raise InputError(f"{_OP}: heads is {heads} without a k_cache: there is nothing to do")
    parts = heads + (1 if k_eq_v else 2) * kv_heads
    if x.shape[1] != parts * head_dim:
        raise InputError(
            f"{_OP}: x is {list(x.shape)}, expected [N, {parts} · {head_dim}] of {heads} query heads and "
            f"{kv_heads} {'keys that are values, too' if k_eq_v else 'keys and values'}, D = {head_dim}"
        )


def _check_weights(
    q_weight: Array | None, k_weight: Array | None, heads: int, kv_heads: int, head_dim: int, x: Array, device: Device
) -> None:
    if heads and kv_heads and (q_weight is None) != (k_weight is None):
        raise InputError(f"{_OP}: q_weight and k_weight are needed together")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            check_array(_OP, name, weight, "D", (head_dim,), x.dtype)
            check_vectors(_OP, name, device.address(weight))


def _check_index(
    name: str, index: Array | None, tokens: int, target: str, rows: int, used: Array | None = None
) -> None:
    if index is not None:
        check_int32(_OP, name, index, "N", (tokens,))
        check_values(_OP, name, index if used is None else used, rows, target)
    elif tokens > rows:
        raise InputError(f"{_OP}: x has {tokens} tokens and no {name}, but {target} only {rows} rows")
