"""Functions with the signatures of torch's scaled_dot_product_attention and of flash-attn's functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import arguments
from ..errors import InputError
from .causal_bias import first_query, is_causal_bias
from .options import MOST_KEYS, AttentionOptions, flag, integer, number
from .torch_ops import attend_op
from .torch_rules import check_tensors


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention: o [..., H, S, D] of query [..., H, S, D].

    attn_mask: bool (true shows) or a float that is added, broadcast to [..., H, S, T], or a CausalBias. is_causal:
    query i sees keys up to key i, counted from the first (top-left). enable_gqa: key and value may have fewer heads,
    which divide the query's. A query that sees no key gives 0. Dropout, gradients, and attn_mask together with
    is_causal are refused. Raises InputError.
    """
    op = "scaled_dot_product_attention"
    _refuse(op, dropout_p=dropout_p)
    is_causal, enable_gqa = flag(op, "is_causal", is_causal), flag(op, "enable_gqa", enable_gqa)
    if attn_mask is not None and is_causal:
        raise InputError(f"{op}: attn_mask and is_causal are both given; put the causal part into attn_mask")
    given = {"query": query, "key": key, "value": value}
    check_tensors(op, ("query", "key", "value"), **given, attn_mask=attn_mask)
    for name, x in given.items():
        if x.dim() < 2:
            raise InputError(f"{op}: {name} is {list(x.shape)}, expected [..., H, S, D] or [S, D]")
    if _is_empty(query, key, value):  # torch returns zeros with the query's axes and does not compare those of the keys
        key, value = (x.new_empty((*query.shape[:-2], 0, x.shape[-1])) for x in (key, value))
        attn_mask, is_causal, enable_gqa = None, False, False
    rank = max(query.dim(), key.dim(), value.dim())
    q, k, v, lead = _aligned(op, query, key, value, enable_gqa)
    batch = lead if enable_gqa else lead[:-1]
    bias, first = None, [0] if is_causal else None
    if is_causal_bias(attn_mask):
        is_causal, start = True, first_query(op, attn_mask, q.shape[2], k.shape[2])
        first = [0] if start == 0 else None
    elif attn_mask is not None:
        bias = _as_bias(op, attn_mask, batch, (q.shape[1], q.shape[2], k.shape[2]), q.dtype)
    right = 0 if is_causal else None
    options = AttentionOptions(attn_bias=bias, q_offset=first, scale=scale, right=right, layout="BHSD")
    o, _ = attend_op(q, k, v, options)
    return o.reshape((*batch, *o.shape[1:])[-rank:])


def _is_empty(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is no query or no element of a value, in tensors with matching D and T."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return False
    return query.shape[-2] == 0 or 0 in value.shape


def _aligned(
    op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """q, k, v as [B, H or KH, S or T, D], and the broadcast axes before S: [..., H], or [...] with enable_gqa."""
    q, k, v = (x[(None,) * max(0, 4 - x.dim())] for x in (query, key, value))
    heads = q.shape[-3]
    if enable_gqa and k.shape[-3] != v.shape[-3]:
        few = [x.shape[-3] for x in (k, v)]
        if heads and (0 in few or heads % few[0] or heads % few[1]):
            raise InputError(f"{op}: {heads} query heads do not divide among {few[0]} of key and {few[1]} of value")
        k, v = (
            x.repeat_interleave(heads // n, -3) if heads else x[..., :0, :, :] for x, n in zip((k, v), few, strict=True)
        )
    free = 3 if enable_gqa else 2  # last axes that may differ
    try:
        lead = tuple(torch.broadcast_shapes(*(x.shape[:-free] for x in (q, k, v))))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        hint = "" if enable_gqa else "; enable_gqa=True lets key and value have fewer heads"
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise InputError(f"{op}: batch and heads of {shapes} do not match{hint}") from error
    q, k, v = (x.expand(*lead, *x.shape[-free:]).flatten(0, -4) for x in (q, k, v))
    return q, k, v, lead


def _as_bias(op: str, mask: Tensor, batch: tuple[int, ...], own: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """The additive bias [B or 1, H or 1, S or 1, T or 1] of a mask that broadcasts to [*batch, H, S, T]."""
    padded = mask[(None,) * max(0, 4 - mask.dim())]
    if mask.dim() > 4 or len(batch) > 1:
        try:
            padded = padded.expand(*batch, *padded.shape[-3:]).flatten(0, -4)
        except RuntimeError as error:
            full = [*batch, *own]
            raise InputError(f"{op}: attn_mask is {list(mask.shape)}, which does not broadcast to {full}") from error
    if padded.dtype != torch.bool:
        return padded
    return torch.zeros_like(padded, dtype=dtype).masked_fill(~padded, -torch.inf)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    return_softmax_lse: bool = False,
) -> Any:
    """flash_attn.flash_attn_func: o [B, S, H, D] of q [B, S, H, D], k, v [B, T, KH, D].

    The last query has the position of the last key (bottom-right). window_size (left, right): query p sees the keys
    p - left <= t <= p + right, -1 is no bound; causal makes right 0. softcap 0 is no cap. A query that sees no key
    gives 0 and lse -inf (flash_attn: +inf). Results are always deterministic. return_attn_probs: (o, lse [B, H, S]
    float32, an empty tensor in place of the dropout mask); return_softmax_lse: (o, lse).
    Dropout, gradients and alibi_slopes are refused with InputError.
    """
    _refuse("flash_attn_func", dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    return _flash(
        q, k, v, "BSHD", softmax_scale, causal, window_size, softcap, return_attn_probs, return_softmax_lse
    )  # fmt: skip


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    return_softmax_lse: bool = False,
) -> Any:
    """flash_attn.flash_attn_varlen_func: o [S, H, D] of packed q [S, H, D], k, v [T, KH, D].

    Sequence b has queries cu_seqlens_q[b] : cu_seqlens_q[b + 1] and keys cu_seqlens_k[b] : cu_seqlens_k[b + 1]; the
    largest lengths are not needed. lse is [H, S]. The rest is as in `flash_attn_func`; block_table is refused.
    """
    _refuse("flash_attn_varlen_func", dropout_p=dropout_p, alibi_slopes=alibi_slopes, block_table=block_table)
    return _flash(
        q, k, v, "SHD", softmax_scale, causal, window_size, softcap, return_attn_probs, return_softmax_lse,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: str,
    scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    return_attn_probs: bool,
    return_softmax_lse: bool,
    **lengths: Any,
) -> Any:
    """The result of either flash-attn function, by `attend_op`."""
    op = "flash_attn"
    given: Any = window_size
    if not isinstance(given, tuple | list):  # a tensor, an array
        given = arguments.integers(f"{op}: window_size", given).tolist()
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise InputError(f"{op}: window_size is {arguments.shown(window_size)}, expected (left, right)")
    bounds = [integer(op, "window_size", bound) for bound in given]
    left, right = (None if bound < 0 else min(bound, MOST_KEYS) for bound in bounds)
    causal, softcap = flag(op, "causal", causal), number(op, "softcap", softcap, least=0)
    return_attn_probs = flag(op, "return_attn_probs", return_attn_probs)
    return_softmax_lse = flag(op, "return_softmax_lse", return_softmax_lse)
    right, cap = 0 if causal else right, None if softcap == 0 else softcap
    options = AttentionOptions(scale=scale, left=left, right=right, softcap=cap, layout=layout, **lengths)
    o, lse = attend_op(q, k, v, options)
    if return_attn_probs:
        return o, lse, q.new_empty(0)
    return (o, lse) if return_softmax_lse else o


_WAYS_OUT = {
    "dropout_p": "it is for training; pass 0.0, as model.eval() does",
    "alibi_slopes": "pass the slopes' bias as attn_bias of gemma_cuda.attention",
    "block_table": "gather the pages into k and v, or pass each sequence's keys packed",
}


def _refuse(op: str, **given: Any) -> None:
    for name, value in given.items():
        is_none = number(op, name, value, least=0, most=1) == 0 if name == "dropout_p" else value is None
        if not is_none:
            raise InputError(f"{op}: {name} is not supported: {_WAYS_OUT[name]}")
