"""Attention of packed query tokens over each sequence's cached keys. Kernel: kernels/attention.cu."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..device.protocol import Array, Device
from ..device.structs import pack_struct
from ..errors import InputError
from .attention_plan import BLOCK_K, HEAD_DIMS, AttentionPlan, Int32, SplitKeys, plan_attention
from .checks import cpp_type

_LOG2_E = math.log2(math.e)
_COPY_BYTES = 16  # what cp.async moves at once
_MAX_GRID_Y = 65535
_MOST_PARTIAL_ROWS = 2**31 - 1
_MERGE_THREADS = 128
_QUERY_AXES, _BIAS_AXES = {"batch": None, "token": 0, "head": 1}, {"batch": 0, "head": 1, "query": 2}


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    key_begin: Int32,
    key_end: Int32,
    cu_seqlens: Int32,
    scale: float,
    softcap: float | None,
    bias: Array | None,
    device: Device,
    cu_seqlens_k: Int32 | None = None,
    split_keys: SplitKeys = "auto",
    out: Array | None = None,
    lse: Array | None = None,
) -> Array:
    """o [N, H, D] = softmax(cap(scale · q kᵀ) + bias) v; query head h reads KV head h // (H // KH).

    q [N, H, D] packed, bfloat16 or float16, D 64, 128 or 256; sequence b holds rows cu_seqlens[b] : cu_seqlens[b + 1];
    k, v [B, T, KH, D]. Strides are free, the last axis is contiguous. key_begin, key_end, cu_seqlens are on the host.
    Query n sees the keys key_begin[n] <= t < key_end[n] of its sequence (int32 [N], neither falls within a sequence); a
    query that sees none gives 0. The keys from the first to the last that a sequence sees must be finite and, with a
    bias, must not give infinite q · k either.
    bias [B or 1, H or 1, S, T], S the (equal) query count of every sequence, is added after the cap.
    cu_seqlens_k int32 [B + 1]: k, v are [1, T, KH, D]; sequence b has the keys cu_seqlens_k[b] : cu_seqlens_k[b + 1].
    split_keys: how few queries over many keys are spread over a GPU; see plan_attention. out [N, H, D] of q's dtype,
    with rows as q's, takes the result. lse, float32 [N, H], gets the log of each row's sum of exponentials.
    Raises InputError before anything is launched.
    """
    _check_queries(q, k)
    plan = plan_attention(
        key_begin, key_end, cu_seqlens,
        group=q.shape[1] // k.shape[2], head_dim=q.shape[2], is_plain=softcap is None and bias is None, device=device,
        split_keys=split_keys, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    return attend(plan, q, k, v, scale=scale, softcap=softcap, bias=bias, device=device, out=out, lse=lse)


def attend(
    plan: AttentionPlan, q: Array, k: Array, v: Array, *, scale: float, softcap: float | None, bias: Array | None,
    device: Device, out: Array | None = None, lse: Array | None = None,
) -> Array:  # fmt: skip
    """o [N, H, D] as of `attention`, with a plan that serves every layer of one mask and shape."""
    _check(plan, q, k, v, scale, softcap, bias, out, lse, device)
    head_dim, kv_heads, tiling = q.shape[2], k.shape[2], plan.tiling
    o = device.empty(q.shape, q.dtype) if out is None else out
    if len(q) == 0:
        return o
    partial_o = partial_softmax = None
    if plan.partials:
        rows = _partial_rows(plan, kv_heads)
        partial_o, partial_softmax = device.empty((rows, head_dim), np.float32), device.empty((rows, 2), np.float32)
    scalar = cpp_type("attention", "q", q)
    policy, factors = _logit_policy(scale, softcap, bias)
    key_axes = {"batch": 1 if plan.packed_keys else 0, "token": 1, "head": 2}
    params = pack_struct(
        "attention", "Params", q=_strides(q, _QUERY_AXES), o=_strides(o, _QUERY_AXES), k=_strides(k, key_axes),
        v=_strides(v, key_axes), bias=_strides(bias, _BIAS_AXES), heads_per_group=plan.group, kv_heads=kv_heads,
    )  # fmt: skip
    instance = f"attention<{scalar}, {head_dim}, {tiling.block_q}, {BLOCK_K}, {tiling.pairs}, {policy}>"
    inputs = [q, k, v, bias, plan.key_begin, plan.key_end]
    results = [o, lse, partial_o, partial_softmax]
    for table in _grids(plan.table):
        device.launch(
            instance, (kv_heads, len(table)), (tiling.threads(head_dim),), tiling.shared_bytes(head_dim),
            [*results, *inputs, table, params, pack_struct("attention", "LogitFactors", **factors)], overlap=True,
        )  # fmt: skip
    for merges in () if plan.merges is None else _grids(plan.merges):
        device.launch(
            f"attention_merge<{scalar}, {head_dim}, {tiling.block_q}>", (kv_heads, len(merges)), (_MERGE_THREADS,), 0,
            [*results, merges, params, factors["exponent"]], overlap=True,
        )  # fmt: skip
    return o


def _partial_rows(plan: AttentionPlan, kv_heads: int) -> int:
    """Rows of partial results that blocks leave for attention_merge."""
    return plan.partials * kv_heads * plan.tiling.block_q


def _grids(rows: Array) -> list[Array]:
    """Rows of a table, as many at once as a grid's second axis may have."""
    return [rows[start : start + _MAX_GRID_Y] for start in range(0, len(rows), _MAX_GRID_Y)]


def _logit_policy(scale: float, softcap: float | None, bias: Array | None) -> tuple[str, dict[str, float]]:
    """The policy's name, and its LogitFactors."""
    name = "Plain" if softcap is None else "SoftCap"
    exponent, cap = scale * _LOG2_E if softcap is None else softcap * _LOG2_E, softcap or 0.0
    if bias is not None:
        name = f"{'Bias' if softcap is None else 'SoftCapBias'}<{cpp_type('attention', 'bias', bias)}>"
        exponent = _LOG2_E
    return name, {"exponent": exponent, "scale": scale if softcap is None else scale / softcap, "cap": cap}


def _strides(array: Array | None, axes: Mapping[str, int | None]) -> dict[str, int]:
    """Elements from one index to the next along each axis; 0 for None and for an axis of one, which is broadcast."""
    if array is None:
        return dict.fromkeys(axes, 0)
    shape, strides, size = array.shape, array.strides, array.itemsize
    return {name: 0 if axis is None or shape[axis] == 1 else strides[axis] // size for name, axis in axes.items()}


def _check_queries(q: Array, k: Array) -> None:
    if q.ndim != 3 or q.shape[2] not in HEAD_DIMS:
        raise InputError(
            f"attention: q is {list(q.shape)}, expected [N, H, D] with D one of {', '.join(map(str, HEAD_DIMS))}"
        )
    if q.dtype.name not in ("bfloat16", "float16"):
        raise InputError(f"attention: q is {q.dtype.name}, expected bfloat16 or float16")
    if k.ndim != 4 or k.shape[3] != q.shape[2]:
        raise InputError(f"attention: k is {list(k.shape)}, expected [B, T, KH, D] with D = {q.shape[2]}")
    if k.shape[2] == 0 or q.shape[1] % k.shape[2]:
        raise InputError(f"attention: {q.shape[1]} query heads do not divide among {k.shape[2]} KV heads")


def _check(
    plan: AttentionPlan, q: Array, k: Array, v: Array, scale: float, softcap: float | None, bias: Array | None,
    out: Array | None, lse: Array | None, device: Device,
) -> None:  # fmt: skip
    """Raises InputError for whatever the kernel could not take as it is."""
    _check_queries(q, k)
    tokens, heads, head_dim = q.shape
    if (tokens, heads // k.shape[2], head_dim) != (plan.tokens, plan.group, plan.head_dim):
        raise InputError(
            f"attention: q is {list(q.shape)} over {k.shape[2]} KV heads, but the key ranges are of {plan.tokens} "
            f"queries and the plan of {plan.group} heads per KV head, head_dim {plan.head_dim}"
        )
    if tuple(v.shape) != tuple(k.shape):
        raise InputError(f"attention: v is {list(v.shape)}, expected [B, T, KH, D] = {list(k.shape)} as k")
    for name, array in (("k", k), ("v", v)):
        if array.dtype != q.dtype:
            raise InputError(f"attention: {name} is {array.dtype.name}, expected {q.dtype.name} as q")
    rows = 1 if plan.packed_keys else plan.sequences
    if k.shape[0] != rows:
        described = f"cu_seqlens describes {plan.sequences} sequences{' of packed keys' if plan.packed_keys else ''}"
        raise InputError(f"attention: k has {k.shape[0]} cache rows, {described}")
    if plan.keys > k.shape[1]:
        raise InputError(f"attention: key_end reaches {plan.keys}, k has T = {k.shape[1]} keys")
    if out is not None and (tuple(out.shape) != tuple(q.shape) or out.dtype != q.dtype):
        raise InputError(
            f"attention: out is {out.dtype.name} {list(out.shape)}, expected {q.dtype.name} [N, H, D] = {list(q.shape)}"
        )
    if _partial_rows(plan, k.shape[2]) > _MOST_PARTIAL_ROWS:
        raise InputError(
            f"attention: split_keys cuts the keys of {k.shape[2]} KV heads into {plan.partials} partial results of "
            f"{plan.tiling.block_q} rows, more than {_MOST_PARTIAL_ROWS} rows in all"
        )
    for name, array in (("q", q), ("k", k), ("v", v), ("out", out)):
        if array is not None:
            _check_layout(name, array, device)
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"attention: scale is {scale}, expected a positive number")
    if softcap is not None and not (np.isfinite(softcap) and softcap > 0):
        raise InputError(f"attention: softcap is {softcap}, expected a positive number or None")
    if bias is not None:
        if plan.packed_keys:
            raise InputError("attention: a bias needs keys in one cache row per sequence, not packed ones")
        _check_bias(plan, bias, k.shape[0], heads)
    if lse is not None and (
        tuple(lse.shape) != (tokens, heads) or lse.dtype != np.float32 or not lse.flags.c_contiguous
    ):
        raise InputError(
            f"attention: lse is {lse.dtype.name} {list(lse.shape)}, "
            f"expected contiguous float32 [N, H] = {[tokens, heads]}"
        )


def _check_layout(name: str, array: Array, device: Device) -> None:
    """16-byte copies: the last axis is contiguous, and rows start at multiples of 16 bytes."""
    if array.size == 0:
        return
    if array.strides[-1] != array.itemsize:
        raise InputError(f"attention: the last axis of {name} is not contiguous (strides {list(array.strides)} bytes)")
    steps = [step for step, length in zip(array.strides, array.shape, strict=True) if length > 1][:-1]
    if device.address(array) % _COPY_BYTES or any(step % _COPY_BYTES for step in steps):
        raise InputError(
            f"attention: rows of {name} do not start at multiples of 16 bytes (strides {list(array.strides)} bytes)"
        )


def _check_bias(plan: AttentionPlan, bias: Array, sequences: int, heads: int) -> None:
    cpp_type("attention", "bias", bias)
    if plan.equal_queries is None:
        raise InputError("attention: a bias needs sequences of equal length, cu_seqlens has different ones")
    queries = plan.equal_queries
    fits = (
        bias.ndim == 4 and bias.shape[0] in (1, sequences) and bias.shape[1] in (1, heads) and bias.shape[2] == queries
    )
    if not fits or bias.shape[3] < plan.keys:
        shown = f"[{sequences} or 1, {heads} or 1, {queries}, {plan.keys} or more]"
        raise InputError(f"attention: bias is {list(bias.shape)}, expected [B or 1, H or 1, S, T] = {shown}")
    if bias.shape[3] > 1 and bias.strides[3] != bias.itemsize:
        raise InputError(f"attention: the last axis of bias is not contiguous (strides {list(bias.strides)} bytes)")
