"""Attention of packed query tokens over each sequence's cached keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..host.threads import for_row_blocks
from ..precision import Array, Precision

# Scores of one block of queries, all heads of a group together: large enough for BLAS, small enough to stay in cache.
_SCORE_ELEMENTS = 1 << 21
_MAX_QUERIES = 256


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    key_begin: Array,
    key_end: Array,
    cu_seqlens: Array,
    scale: float,
    softcap: float | None,
    bias: Array | None,
    precision: Precision,
    lse: Array | None = None,
) -> Array:
    """o [N, H, D] = softmax(cap(scale · q kᵀ) + bias) v; query head h reads KV head h // (H // KH).

    q [N, H, D] packed: sequence b is rows cu_seqlens[b] : cu_seqlens[b + 1]; k, v [B, T, KH, D]. D of v and o may
    differ from D of q and k, and any length may be 0.
    Query n sees the keys key_begin[n] <= t < key_end[n] of its sequence (int32 [N]); a query that sees none gives 0.
    bias [B or 1, H or 1, S, T], S the (equal) query count of every sequence, added after the cap; None for no bias.
    lse, float [N, H], gets the log of each row's sum of exponentials, -inf for a query that sees no key.
    Rounding: exp(s - max) before the product with v, and the output.
    """
    out = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for b in range(len(cu_seqlens) - 1):
        rows = slice(int(cu_seqlens[b]), int(cu_seqlens[b + 1]))
        if rows.start == rows.stop or q.shape[1] == 0:
            continue
        own_bias, own_lse = None if bias is None else bias[b % bias.shape[0]], None if lse is None else lse[rows]
        _one_sequence(
            q[rows], k[b], v[b], key_begin[rows], key_end[rows], scale, softcap, own_bias, out[rows], own_lse, precision
        )
    return out


def saturated(x: Array, dtype: Any) -> Array:
    """x as `dtype`, in which a finite number stays finite: the least float64 hides a key like the least float32."""
    if x.dtype.itemsize <= np.dtype(dtype).itemsize:
        return x.astype(dtype, copy=False)
    limit = np.finfo(dtype).max
    return np.where(np.isfinite(x), np.clip(x, -limit, limit), x).astype(dtype)


def _one_sequence(
    q: Array,
    k: Array,
    v: Array,
    key_begin: Array,
    key_end: Array,
    scale: float,
    softcap: float | None,
    bias: Array | None,
    out: Array,
    lse: Array | None,
    precision: Precision,
) -> None:
    n, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    start = 0
    while start < n:
        stop = min(n, start + _block_rows(int(key_begin[start]), int(key_end[start]), group))
        begin, end = key_begin[start:stop], key_end[start:stop]
        lo, hi = int(begin.min()), max(int(end.max()), int(begin.min()))
        for kv_head in range(kv_heads):
            own = slice(kv_head * group, (kv_head + 1) * group)
            q_rows = q[start:stop, own].reshape((stop - start) * group, head_dim)
            scores = np.matmul(q_rows, k[lo:hi, kv_head].T).reshape(stop - start, group, hi - lo)
            own_bias = None if bias is None else (bias if len(bias) == 1 else bias[own])[:, start:stop, lo:hi]
            row_max, row_sum = _softmax(scores, begin - lo, end - lo, scale, softcap, own_bias, precision)
            if lse is not None:
                with np.errstate(divide="ignore"):
                    lse[start:stop, own] = saturated(row_max + np.log(row_sum), lse.dtype)
            row_sum[row_sum == 0] = 1  # a row that sees no key has only zeros to divide
            o = np.matmul(scores.reshape(len(q_rows), hi - lo), v[lo:hi, kv_head]).reshape(
                stop - start, group, v.shape[-1]
            )
            o /= row_sum[..., None]
            out[start:stop, own] = o
        start = stop
    precision.round_in_place(out)


def _softmax(
    scores: Array,
    begin: Array,
    end: Array,
    scale: float,
    softcap: float | None,
    bias: Array | None,
    precision: Precision,
) -> tuple[Array, Array]:
    """(row max, row sums) [n, group] of exp(s - row max), which replaces the raw scores [n, group, t]."""
    row_max, row_sum = np.empty(scores.shape[:2], scores.dtype), np.empty(scores.shape[:2], scores.dtype)

    def block(rows: slice) -> None:
        s = scores[rows]
        _scale_and_cap(s, scale, softcap)
        if bias is not None:
            with np.errstate(over="ignore"):  # -inf hides as well as a number below the least
                s += bias[:, rows].transpose(1, 0, 2)
        _hide(s, begin[rows], end[rows])
        row_max[rows], row_sum[rows] = _exponentials(s, precision)

    for_row_blocks(len(scores), scores.shape[1] * scores.shape[2], block)
    return row_max, row_sum


def _block_rows(key_begin: int, key_end: int, group: int) -> int:
    keys = max(1, key_end - key_begin)
    return max(1, min(_MAX_QUERIES, _SCORE_ELEMENTS // (keys * group)))


def _scale_and_cap(scores: Array, scale: float, softcap: float | None) -> None:
    real = scores.dtype.type
    if softcap is None:
        scores *= real(scale)
    else:
        scores *= real(scale / softcap)
        np.tanh(scores, out=scores)
        scores *= real(softcap)


def _hide(scores: Array, begin: Array, end: Array) -> None:
    """Sets scores [n, group, t] outside begin[n] <= t < end[n] to -inf.

    Only the columns that some row does not see are touched.
    """
    keys = scores.shape[-1]
    left = int(begin.max())
    if left > 0:
        hidden = np.arange(min(left, keys)) < begin[:, None]
        np.copyto(scores[..., :left], -np.inf, where=hidden[:, None, :])
    right = max(0, int(end.min()))
    if right < keys:
        hidden = np.arange(right, keys) >= end[:, None]
        np.copyto(scores[..., right:], -np.inf, where=hidden[:, None, :])


def _exponentials(scores: Array, precision: Precision) -> tuple[Array, Array]:
    """(row max, row sums) [n, group] of exp(scores - row max), which replaces the scores (rounded) in place."""
    if scores.shape[-1] == 0:
        return np.zeros(scores.shape[:-1], scores.dtype), np.zeros(scores.shape[:-1], scores.dtype)
    row_max = scores.max(axis=-1, keepdims=True)
    row_max[np.isneginf(row_max)] = 0  # a row that sees no key: exp(-inf) = 0 everywhere
    with np.errstate(over="ignore"):  # a score too far below the maximum to be told from -inf
        scores -= row_max
    np.exp(scores, out=scores)
    row_sum: Array = scores.sum(axis=-1)
    precision.round_in_place(scores)
    return row_max[..., 0], row_sum
