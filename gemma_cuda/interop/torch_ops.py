"""The custom ops `torch.ops.gemma_cuda.attention`, `rms_norm`, `geglu` and `qk_norm_rope`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import layers, torch_vmap
from .attention import attend
from .attention_shapes import check_shapes
from .causal_bias import as_bias, is_causal_bias
from .options import AttentionOptions, number
from .qk_norm_rope import QkNormRopeArguments, apply_qk_norm_rope
from .torch_rules import check_tensors, register_rules

_TENSORS = ("attn_bias", "block_ids", "key_range", "cu_seqlens_q", "cu_seqlens_k")  # fields of AttentionOptions


@torch.library.custom_op(
    "gemma_cuda::attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? attn_bias, Tensor? block_ids, Tensor? key_range, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt[]? q_offset, float? scale, SymInt? left, SymInt? right, "
    "float? softcap, str layout, str? device) -> (Tensor, Tensor)",
)
def _attention(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return attend(q, k, v, AttentionOptions(*options))


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    layout = AttentionOptions(*options).layout
    tokens = q.swapaxes(1, 2) if layout == "BHSD" else q
    o = q.new_empty((*tokens.shape[:-1], v.shape[-1]))
    lse = q.new_empty(tokens.shape[:-1], dtype=torch.float32).swapaxes(-1, -2)
    return (o.swapaxes(1, 2) if layout == "BHSD" else o), lse


@torch.library.custom_op("gemma_cuda::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool, device: str | None) -> Tensor:
    y: Tensor = layers.rms_norm(x, weight, eps=eps, plus_one=plus_one, device=device)
    return y


@_rms_norm.register_fake
def _(x: Tensor, *options: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("gemma_cuda::geglu", mutates_args=())
def _geglu(gate: Tensor, up: Tensor, device: str | None) -> Tensor:
    y: Tensor = layers.geglu(gate, up, device=device)
    return y


@_geglu.register_fake
def _(gate: Tensor, *options: Any) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "gemma_cuda::qk_norm_rope",
    mutates_args=("k_cache", "v_cache"),
    schema="(Tensor x, Tensor cos, Tensor sin, Tensor? q_weight, Tensor? k_weight, Tensor(a5!)? k_cache, "
    "Tensor(a6!)? v_cache, Tensor? slots, Tensor? positions, SymInt heads, float eps, bool plus_one, bool v_norm, "
    "SymInt? pairs, bool k_eq_v, str? device) -> Tensor",
)
def _qk_norm_rope(*arguments: Any) -> Tensor:
    q: Tensor = apply_qk_norm_rope(_named(arguments))
    return q


@_qk_norm_rope.register_fake
def _(*arguments: Any) -> Tensor:
    given = _named(arguments)
    q: Tensor = given.x.new_empty((given.x.shape[0], given.heads, 2 * given.cos.shape[1]))
    return q


def _named(arguments: tuple[Any, ...]) -> QkNormRopeArguments:
    return QkNormRopeArguments(**dict(zip(QkNormRopeArguments.__dataclass_fields__, arguments, strict=True)))


register_rules("attention", ("q", "k", "v", "attn_bias"))
register_rules("rms_norm", ("x", "weight"))
register_rules("geglu", ("gate", "up"))
register_rules("qk_norm_rope", ("x", "q_weight", "k_weight"))  # tables stay float32
_attention.register_vmap(torch_vmap.attention)
_rms_norm.register_vmap(torch_vmap.rms_norm)
_geglu.register_vmap(torch_vmap.geglu)
_qk_norm_rope.register_vmap(torch_vmap.qk_norm_rope)


def attend_op(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """(o, lse) of the custom op; raises InputError for options and shapes before torch records the call."""
    arrays = {name: getattr(options, name) for name in _TENSORS}
    check_tensors("attention", ("q", "k", "v"), q=q, k=k, v=v, **arrays)
    scale, softcap, attn_bias = options.scale, options.softcap, options.attn_bias
    scale = None if scale is None else number("attention", "scale", scale, otherwise=", or None for D ** -0.5")
    softcap = None if softcap is None else number("attention", "softcap", softcap, above=0, otherwise=", or None")
    # While torch.jit traces, lengths are tensors, and a comparison would be recorded as a constant.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        sizes = check_shapes(options.layout, tuple(q.shape), tuple(k.shape), tuple(v.shape))
        if is_causal_bias(attn_bias):
            attn_bias = as_bias(attn_bias, sizes.query_count, sizes.key_count, q)
    options = replace(options, scale=scale, softcap=softcap, attn_bias=attn_bias)
    result: tuple[Tensor, Tensor] = torch.ops.gemma_cuda.attention(q, k, v, *options.values())
    return result
