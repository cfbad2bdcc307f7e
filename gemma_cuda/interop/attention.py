"""One attention for the arrays of NumPy, torch, CuPy and JAX: what is asked for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import arguments
from ..device.foreign import (
    Caller,
    broadcast_to,
    caller_of,
    device_for,
    is_jax,
    is_observed,
    is_torch,
    is_traced,
    to_host,
)
from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.attention_plan import HEAD_DIMS
from .attention_mask import check_max_seqlens, given_ranges, make_mask, window_bounds
from .attention_run import run
from .attention_shapes import AXES, Sizes, check_shapes
from .causal_bias import as_bias, is_causal_bias
from .options import flag

_OP = "attention"
_FLOATS = ("float32", "float64", "bfloat16", "float16")


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    causal: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attn_bias: Any = None,
    block_ids: Any = None,
    q_offset: int | Sequence[int] | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    layout: str = "BSHD",
    out: Any = None,
    device: str | Device | None = None,
) -> Any:
    """o as q = softmax(cap(scale · q kᵀ) + attn_bias) v; query head h reads KV head h // (H // KH).

    q, k, v: arrays of NumPy, torch, CuPy, JAX or any library with DLPack or `__cuda_array_interface__`, all of one
    library, device and dtype (float32, float64, bfloat16, float16); the result is of the same library (NumPy's or
    CuPy's for others), written on its current stream. They are read where they lie; what a kernel cannot read (a last
    axis that is not contiguous, rows off 16 bytes, q of layout BHSD with B > 1) is copied first.

    layout: "BSHD" is q [B, S, H, D], k and v [B, T, KH, D]; "BHSD" has the heads before the tokens; "SHD" is packed
    sequences, q [S, H, D], k and v [T, KH, D]: sequence b has queries cu_seqlens_q[b] : cu_seqlens_q[b + 1], and keys
    by cu_seqlens_k (None: as cu_seqlens_q; both None: one sequence). max_seqlen_q, max_seqlen_k: only checked.
    D of v, and then of o, may be another than that of q and k. scale: any finite number, None is D ** -0.5.
    softcap: logits become softcap · tanh(logit / softcap).
    q_offset: query i stands at key p = q_offset + i of its sequence; an int, or one for each; None is T - S.
    causal: it sees keys up to p. sliding_window w: it sees w keys, itself included; without causal all |t - p| < w.
    block_ids: integers [T] or [B, T] ([T] of all keys in SHD). A query whose key has an id >= 0 also sees the later
    keys of that id, beyond causal and window; the window still cuts the past. An id is one run of tokens.
    attn_bias: added after the cap, of any float dtype, broadcast to [B, H, S, T] ([H, S, T] of all queries and keys in
    SHD, where what lies between two sequences is not used); -inf hides.
    A query that sees no key gives 0, and lse -inf. Keys that a sequence sees must be finite (in SHD with a bias: all).
    return_lse: returns (o, lse), lse float32 [B, H, S] ([H, S] in SHD), the log of the sum of exp of the logits.
    out: takes the result, and is what is returned; it may overlap q, k and v. Not for JAX.
    device: None is the NumPy reference for arrays on the CPU, and the kernels for those on a GPU; "emulator" runs the
    kernels on the CPU; or a Device. Kernels take one D of 64, 128 or 256, bfloat16 or float16, and a scale above 0.
    Raises InputError before anything is launched or written.
    """
    left, right = window_bounds(causal, sliding_window)
    return_lse = flag(_OP, "return_lse", return_lse)
    options: dict[str, Any] = {
        "scale": scale, "left": left, "right": right, "softcap": softcap, "attn_bias": attn_bias,
        "block_ids": block_ids, "q_offset": q_offset, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k,
        "layout": layout, "device": device,
    }  # fmt: skip
    if not is_traced(q, k, v, attn_bias):
        check_max_seqlens(layout, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if is_observed(q, k, v, attn_bias):
        from .torch import attention as custom_op

        return custom_op(
            q, k, v, scale=scale, causal=causal, sliding_window=sliding_window, softcap=softcap, attn_bias=attn_bias,
            block_ids=block_ids, q_offset=q_offset, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
            return_lse=return_lse, layout=layout, out=out, device=device,
        )  # fmt: skip
    if is_jax(q):
        from .jax import attend_jax

        if out is not None:
            raise InputError(f"{_OP}: out: JAX's arrays cannot be written; use what attention returns")
        o, lse = attend_jax(q, k, v, **options)
    else:
        o, lse = attend(q, k, v, out=out, **options)
    return (o, lse) if return_lse else o


def attend(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    attn_bias: Any,
    block_ids: Any,
    q_offset: int | Sequence[int] | None,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    layout: str,
    device: str | Device | None,
    out: Any = None,
    key_range: Any = None,
) -> tuple[Any, Any]:
    """(o, lse) of `attention`, with its window as bounds: query p sees the keys from p - left to p + right.

    key_range: int32 [B, 1, S, 2] in the place of every other mask: the (key_begin, key_end) of each query.
    """
    is_causal = is_causal_bias(attn_bias) and is_torch(q)
    caller = caller_of(_OP, {"q": q, "k": k, "v": v, "attn_bias": None if is_causal else attn_bias, "out": out})
    target = device_for(_OP, device, caller)
    with caller.stream():
        sizes = check_shapes(layout, *(tuple(x.shape) for x in (q, k, v)))
        if is_causal:
            attn_bias = as_bias(attn_bias, sizes.query_count, sizes.key_count, q)
        views = [caller.view(x) for x in (q, k, v)]
        _check_dtypes(views)
        scale, softcap = _factors(scale, softcap, sizes)
        if target is not None:
            _check_kernels(views[0], sizes, scale, target)
        bias = None if attn_bias is None else _bias(caller, attn_bias, sizes)
        if bias is not None and target is not None and bias.dtype.name == "float64":
            raise InputError(f"{_OP}: attn_bias is float64, kernels take float32, bfloat16 or float16")
        if key_range is not None:
            mask = given_ranges(to_host(_OP, "key_range", key_range), sizes)
        else:
            mask = make_mask(sizes, left, right, block_ids, q_offset, cu_seqlens_q, cu_seqlens_k)
        result = _result(caller, out, (*q.shape[:-1], sizes.value_dim), views[0], layout)
        lse = caller.empty((*sizes.queries, sizes.heads), np.dtype(np.float32))
        arrays = [tokens_first(x, layout) for x in (*views, caller.view(result))] + [caller.view(lse)]
        if bias is not None and sizes.batch is None:  # a bias of all queries and all keys: they are one sequence
            arrays, mask = [x[None] for x in arrays], mask.joined()
        q_view, k_view, v_view, out_view, lse_view = arrays
        run(
            caller, target, q_view, k_view, v_view, bias=bias, mask=mask, scale=scale, softcap=softcap, out=out_view,
            lse=lse_view,
        )  # fmt: skip
    return result, lse.swapaxes(-1, -2)


def tokens_first(x: Array, layout: str) -> Array:
    """x with its axes in the order of BSHD (or SHD)."""
    return x.transpose(0, 2, 1, 3) if layout == "BHSD" else x


def _check_dtypes(views: list[Array]) -> None:
    q = views[0]
    if q.dtype.name not in _FLOATS:
        raise InputError(f"{_OP}: q is {q.dtype.name}, expected one of {', '.join(_FLOATS)}")
    for name, array in zip("kv", views[1:], strict=True):
        if array.dtype != q.dtype:
            raise InputError(f"{_OP}: {name} is {array.dtype.name}, expected {q.dtype.name} as q")


def _factors(scale: float | None, softcap: float | None, sizes: Sizes) -> tuple[float, float | None]:
    """(scale, softcap) as finite numbers."""
    if softcap is not None:
        softcap = arguments.number(f"{_OP}: softcap", softcap, above=0, otherwise=", or None for no cap")
    if scale is None:
        return (sizes.head_dim**-0.5 if sizes.head_dim else 1.0), softcap  # every score of no elements is 0
    return arguments.number(f"{_OP}: scale", scale, otherwise=", or None for D ** -0.5"), softcap


def _check_kernels(q: Array, sizes: Sizes, scale: float, target: Device) -> None:
    way_out = "use device=None, the NumPy reference" if target.name == "emulator" else "move the arrays to the CPU"
    if q.dtype.name not in ("bfloat16", "float16"):
        raise InputError(f"{_OP}: q is {q.dtype.name}, kernels take bfloat16 or float16; {way_out}")
    if sizes.head_dim not in HEAD_DIMS:
        dims = ", ".join(map(str, HEAD_DIMS))
        raise InputError(f"{_OP}: D is {sizes.head_dim}, kernels take {dims}; {way_out}")
    if sizes.value_dim != sizes.head_dim:
        raise InputError(
            f"{_OP}: D of v is {sizes.value_dim} and D of q and k {sizes.head_dim}, kernels take one; {way_out}"
        )
    if scale <= 0:
        raise InputError(f"{_OP}: scale is {scale}, kernels take a positive one; {way_out}")


def _bias(caller: Caller, attn_bias: Any, sizes: Sizes) -> Array:
    """[B or 1, H or 1, S, T] of a bias that broadcasts to [B, H, S, T]; where it repeats its strides are 0."""
    shape = tuple(attn_bias.shape)
    full = (sizes.heads, *sizes.queries[-1:], sizes.key_count)
    full = full if sizes.batch is None else (sizes.batch, *full)
    padded = (1,) * (len(full) - len(shape)) + shape
    if len(padded) > len(full) or any(own not in (1, n) for own, n in zip(padded, full, strict=True)):
        axes = "H, S, T" if sizes.batch is None else "B, H, S, T"
        raise InputError(
            f"{_OP}: attn_bias is {list(shape)}, which does not broadcast to [{axes}] = {list(full)} "
            f"(layout {sizes.layout})"
        )
    view = caller.view(attn_bias)
    if view.dtype.name not in _FLOATS:
        raise InputError(
            f"{_OP}: attn_bias is {view.dtype.name}, expected a float that is added to the logits: 0 shows, -inf hides"
        )
    view = view.reshape((1,) * (4 - len(full)) + padded)
    if padded[-2:] == full[-2:]:
        return view
    return broadcast_to(view, (*view.shape[:2], *full[-2:]))


def _result(caller: Caller, out: Any, shape: Any, q: Array, layout: str) -> Any:
    """Memory for o: `out` as it is, or a new array; of BHSD that has the tokens before the heads."""
    if out is None:
        b, *middle, d = tuple(shape)
        fresh = caller.empty((b, *reversed(middle), d) if layout == "BHSD" else tuple(shape), q.dtype)
        return fresh.swapaxes(1, 2) if layout == "BHSD" else fresh
    view = caller.view(out)
    if tuple(out.shape) != tuple(shape) or view.dtype != q.dtype:
        raise InputError(
            f"{_OP}: out is {view.dtype.name} {list(out.shape)}, expected {q.dtype.name} [{AXES[layout][0]}] = "
            f"{list(shape)} (layout {layout})"
        )
    if isinstance(view, np.ndarray) and not view.flags.writeable:
        raise InputError(f"{_OP}: out cannot be written")
    return out
