"""Per-head norms, rotary embedding and the KV write, from the packed projection."""

from __future__ import annotations

import numpy as np

from ..host.threads import for_row_blocks
from ..precision import Array, Precision
from .rms_norm import multiplier, normalise


def qk_norm_rope(
    x: Array,
    *,
    heads: int,
    cos: Array,
    sin: Array,
    eps: float,
    precision: Precision,
    q_weight: Array | None = None,
    k_weight: Array | None = None,
    plus_one: bool = False,
    v_norm: bool = False,
    k_cache: Array | None = None,
    v_cache: Array | None = None,
    slots: Array | None = None,
    positions: Array | None = None,
    k_eq_v: bool = False,
) -> Array:
    """q [N, H, D] as attention reads it; k_cache[slots] and v_cache[slots] [N, KH, D] are written.

    x [N, (H + 2 KH) D] holds q | k | v of each token, or q | k with k_eq_v (V is the raw K), or q alone without caches
    (a layer that reads another's), or k | v alone with heads = 0.
    q and k: RMSNorm over D where there are weights [D] (plus_one: they hold w of 1 + w), then RoPE: the pairs
    (i, i + D/2) turn by row positions[n] of cos, sin [P, D/2] (None: by row n). v: as it is, or divided by its root
    mean square (v_norm).
    k_cache, v_cache [rows, KH, D]; slots [N], all different.
    """
    head_dim = 2 * cos.shape[1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    n, q_width = len(x), heads * head_dim
    q = x[:, :q_width].reshape(n, heads, head_dim)
    q_out = np.empty(q.shape, x.dtype)
    q_weight, k_weight = multiplier(q_weight, plus_one), multiplier(k_weight, plus_one)

    def turn_q(rows: slice) -> None:
        _norm_rope(q[rows], q_weight, cos[rows], sin[rows], eps, q_out[rows])
        precision.round_in_place(q_out[rows])

    for_row_blocks(n, q_width, turn_q)
    if k_cache is None or v_cache is None or slots is None:
        return q_out

    kv_heads = k_cache.shape[1]
    k = x[:, q_width : q_width + kv_heads * head_dim].reshape(n, kv_heads, head_dim)
    v = k if k_eq_v else x[:, q_width + kv_heads * head_dim :].reshape(n, kv_heads, head_dim)
    # Tokens of one prompt fill neighbouring slots: then rows are written in place, without a scatter.
    first = int(slots[0]) if n else 0
    contiguous = n > 0 and bool(np.array_equal(slots, np.arange(first, first + n)))

    def write_kv(rows: slice) -> None:
        target = slice(first + rows.start, first + rows.stop) if contiguous else slots[rows]
        k_out = k_cache[target] if contiguous else np.empty(k[rows].shape, k_cache.dtype)
        v_out = v_cache[target] if contiguous else np.empty(v[rows].shape, v_cache.dtype)
        _norm_rope(k[rows], k_weight, cos[rows], sin[rows], eps, k_out)
        if v_norm:
            normalise(v[rows], None, eps, v_out)
        else:
            v_out[...] = v[rows]
        precision.round_in_place(k_out)
        precision.round_in_place(v_out)
        if not contiguous:
            k_cache[target], v_cache[target] = k_out, v_out

    for_row_blocks(n, kv_heads * head_dim, write_kv)
    return q_out


def _norm_rope(x: Array, weight: Array | None, cos: Array, sin: Array, eps: float, out: Array) -> None:
    if weight is not None:
        x = normalise(x, weight, eps, np.empty_like(x))
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    np.multiply(low, cos, out=out[..., :half])
    out[..., :half] -= high * sin
    np.multiply(high, cos, out=out[..., half:])
    out[..., half:] += low * sin
