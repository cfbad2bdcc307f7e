"""torch custom ops, and functions with the signatures of the attentions they replace.

Custom ops: `torch.ops.gemma_cuda.attention`, `rms_norm`, `geglu`, `qk_norm_rope`. torch.compile traces them whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import layers
from .attention import attend
from .attention_mask import window_bounds
from .attention_shapes import check_shapes
from .qk_norm_rope import qk_norm_rope as gemma_qk_norm_rope


@torch.library.custom_op("gemma_cuda::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor | None,
    block_ids: Tensor | None,
    key_range: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    q_offset: Sequence[int] | None,
    scale: float | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    layout: str,
    device: str | None,
) -> tuple[Tensor, Tensor]:
    return attend(
        q, k, v, scale=scale, left=left, right=right, softcap=softcap, attn_bias=attn_bias, block_ids=block_ids,
        q_offset=q_offset, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, layout=layout, device=device,
        key_range=key_range,
    )  # fmt: skip


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Any,
    block_ids: Any,
    key_range: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    q_offset: Any,
    scale: Any,
    left: Any,
    right: Any,
    softcap: Any,
    layout: str,
    device: Any,
) -> tuple[Tensor, Tensor]:
    tokens_first = q.swapaxes(1, 2) if layout == "BHSD" else q
    o = q.new_empty(tokens_first.shape)
    lse = q.new_empty(tokens_first.shape[:-1], dtype=torch.float32).swapaxes(-1, -2)
    return (o.swapaxes(1, 2) if layout == "BHSD" else o), lse


@torch.library.custom_op("gemma_cuda::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool, device: str | None) -> Tensor:
    y: Tensor = layers.rms_norm(x, weight, eps=eps, plus_one=plus_one, device=device)
    return y


@_rms_norm.register_fake
def _(x: Tensor, *options: Any, **more: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("gemma_cuda::geglu", mutates_args=())
def _geglu(gate: Tensor, up: Tensor, device: str | None) -> Tensor:
    y: Tensor = layers.geglu(gate, up, device=device)
    return y


@_geglu.register_fake
def _(gate: Tensor, *options: Any, **more: Any) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@torch.library.custom_op("gemma_cuda::qk_norm_rope", mutates_args=("k_cache", "v_cache"))
def _qk_norm_rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    slots: Tensor | None,
    positions: Tensor | None,
    heads: int,
    eps: float,
    plus_one: bool,
    v_norm: bool,
    pairs: int | None,
    k_eq_v: bool,
    device: str | None,
) -> Tensor:
    q: Tensor = gemma_qk_norm_rope(
        x, heads=heads, cos=cos, sin=sin, eps=eps, q_weight=q_weight, k_weight=k_weight, plus_one=plus_one,
        v_norm=v_norm, k_cache=k_cache, v_cache=v_cache, slots=slots, positions=positions, pairs=pairs, k_eq_v=k_eq_v,
        device=device,
    )  # fmt: skip
    return q


@_qk_norm_rope.register_fake
def _(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    slots: Tensor | None,
    positions: Tensor | None,
    heads: int,
    *options: Any,
    **more: Any,
) -> Tensor:
    return x.new_empty((x.shape[0], heads, 2 * cos.shape[1]))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attn_bias: Tensor | None = None,
    block_ids: Tensor | None = None,
    q_offset: int | Sequence[int] | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    return_lse: bool = False,
    layout: str = "BSHD",
    out: Tensor | None = None,
    device: Any = None,
) -> Any:
    """`gemma_cuda.attention` of tensors as a custom op, which torch.compile traces; `out` gets a copy."""
    left, right = window_bounds(causal, sliding_window)
    offsets = [q_offset] if isinstance(q_offset, int) else q_offset
    o, lse = attend_op(
        q, k, v, scale=scale, left=left, right=right, softcap=softcap, attn_bias=attn_bias, block_ids=block_ids,
        q_offset=offsets, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, layout=layout, device=device,
    )  # fmt: skip
    o = o if out is None else out.copy_(o)
    return (o, lse) if return_lse else o


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    plus_one: bool = False,
    out: Tensor | None = None,
    device: Any = None,
) -> Tensor:
    """`gemma_cuda.rms_norm` of tensors as a custom op; `out` gets a copy."""
    _refuse_gradients("rms_norm", x, weight)
    y: Tensor = torch.ops.gemma_cuda.rms_norm(x, weight, eps, plus_one, device)
    return y if out is None else out.copy_(y)


def geglu(gate: Tensor, up: Tensor, *, out: Tensor | None = None, device: Any = None) -> Tensor:
    """`gemma_cuda.geglu` of tensors as a custom op; `out` gets a copy."""
    _refuse_gradients("geglu", gate, up)
    y: Tensor = torch.ops.gemma_cuda.geglu(gate, up, device)
    return y if out is None else out.copy_(y)


def qk_norm_rope(
    x: Tensor,
    *,
    heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float = 1e-6,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    plus_one: bool = False,
    v_norm: bool = False,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    slots: Tensor | None = None,
    positions: Tensor | None = None,
    pairs: int | None = None,
    k_eq_v: bool = False,
    device: Any = None,
) -> Tensor:
    """`gemma_cuda.qk_norm_rope` of tensors as a custom op; it writes k_cache and v_cache."""
    _refuse_gradients("qk_norm_rope", x, q_weight, k_weight, k_cache, v_cache)
    q: Tensor = torch.ops.gemma_cuda.qk_norm_rope(
        x, cos, sin, q_weight, k_weight, k_cache, v_cache, slots, positions, heads, eps, plus_one, v_norm, pairs,
        k_eq_v, device,
    )  # fmt: skip
    return q


def _refuse_gradients(op: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise InputError(
            f"{op}: an input requires gradients and there is no backward pass; call it inside torch.no_grad() or "
            "torch.inference_mode(), or keep torch's own function where you train"
        )


def attend_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    layout: str,
    attn_bias: Tensor | None = None,
    block_ids: Tensor | None = None,
    key_range: Tensor | None = None,
    q_offset: Sequence[int] | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    device: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The custom op, by names."""
    _refuse_gradients("attention", q, k, v, attn_bias)
    check_shapes(layout, tuple(q.shape), tuple(k.shape), tuple(v.shape))
    result: tuple[Tensor, Tensor] = torch.ops.gemma_cuda.attention(
        q, k, v, attn_bias, block_ids, key_range, cu_seqlens_q, cu_seqlens_k, q_offset, scale, left, right, softcap,
        layout, device,
    )  # fmt: skip
    return result


def __getattr__(name: str) -> Any:
    """The functions of `torch_signatures`, which are public here."""
    if name not in ("scaled_dot_product_attention", "flash_attn_func", "flash_attn_varlen_func"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import torch_signatures

    return getattr(torch_signatures, name)
