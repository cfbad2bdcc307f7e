"""torch custom ops, and functions with the signatures of the attentions they replace.

Custom ops: `torch.ops.gemma_cuda.attention`, `rms_norm`, `geglu`, `qk_norm_rope`. torch.compile traces them whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..arguments import shown
from ..device.foreign import to_host
from ..errors import InputError
from . import torch_vmap
from .attention import attend
from .attention_mask import window_bounds
from .attention_shapes import check_shapes
from .causal_bias import as_bias, is_causal_bias
from .layers import apply_geglu, apply_rms_norm
from .options import flag, integer, number
from .qk_norm_rope import MOST_HEADS, apply_qk_norm_rope
from .torch_rules import check_tensors, register_rules


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
    o = q.new_empty((*tokens_first.shape[:-1], v.shape[-1]))
    lse = q.new_empty(tokens_first.shape[:-1], dtype=torch.float32).swapaxes(-1, -2)
    return (o.swapaxes(1, 2) if layout == "BHSD" else o), lse


@torch.library.custom_op("gemma_cuda::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool, device: str | None) -> Tensor:
    y: Tensor = apply_rms_norm(x, weight, eps=eps, plus_one=plus_one, device=device)
    return y


@_rms_norm.register_fake
def _(x: Tensor, *options: Any, **more: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("gemma_cuda::geglu", mutates_args=())
def _geglu(gate: Tensor, up: Tensor, device: str | None) -> Tensor:
    y: Tensor = apply_geglu(gate, up, device=device)
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
    given = {
        "x": x, "cos": cos, "sin": sin, "q_weight": q_weight, "k_weight": k_weight, "k_cache": k_cache,
        "v_cache": v_cache, "slots": slots, "positions": positions,
    }  # fmt: skip
    q: Tensor = apply_qk_norm_rope(
        given, heads=heads, eps=eps, plus_one=plus_one, v_norm=v_norm, pairs=pairs, k_eq_v=k_eq_v, device=device
    )
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


register_rules("attention", ("q", "k", "v", "attn_bias"))
register_rules("rms_norm", ("x", "weight"))
register_rules("geglu", ("gate", "up"))
register_rules("qk_norm_rope", ("x", "q_weight", "k_weight"))  # tables stay float32
_attention.register_vmap(torch_vmap.attention)
_rms_norm.register_vmap(torch_vmap.rms_norm)
_geglu.register_vmap(torch_vmap.geglu)
_qk_norm_rope.register_vmap(torch_vmap.qk_norm_rope)


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
    return_lse = flag("attention", "return_lse", return_lse)
    indices = {"block_ids": block_ids, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    block_ids, cu_seqlens_q, cu_seqlens_k = (_as_tensor(name, x) for name, x in indices.items())
    o, lse = attend_op(
        q, k, v, scale=scale, left=left, right=right, softcap=softcap, attn_bias=attn_bias, block_ids=block_ids,
        q_offset=_as_list(q_offset), cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, layout=layout,
        device=_device_name("attention", device),
    )  # fmt: skip
    o = _into("attention", out, o)
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
    check_tensors("rms_norm", ("x",), x=x, weight=weight, out=out)
    eps, plus_one = number("rms_norm", "eps", eps, least=0), flag("rms_norm", "plus_one", plus_one)
    y: Tensor = torch.ops.gemma_cuda.rms_norm(x, weight, eps, plus_one, _device_name("rms_norm", device))
    return _into("rms_norm", out, y)


def geglu(gate: Tensor, up: Tensor, *, out: Tensor | None = None, device: Any = None) -> Tensor:
    """`gemma_cuda.geglu` of tensors as a custom op; `out` gets a copy."""
    check_tensors("geglu", ("gate", "up"), gate=gate, up=up, out=out)
    y: Tensor = torch.ops.gemma_cuda.geglu(gate, up, _device_name("geglu", device))
    return _into("geglu", out, y)


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
    op = "qk_norm_rope"
    check_tensors(
        op, ("x", "cos", "sin"), x=x, cos=cos, sin=sin, q_weight=q_weight, k_weight=k_weight, k_cache=k_cache,
        v_cache=v_cache, slots=slots, positions=positions,
    )  # fmt: skip
    heads, eps = integer(op, "heads", heads, least=0, most=MOST_HEADS), number(op, "eps", eps, least=0)
    plus_one, v_norm, k_eq_v = (
        flag(op, name, value) for name, value in (("plus_one", plus_one), ("v_norm", v_norm), ("k_eq_v", k_eq_v))
    )
    pairs = None if pairs is None else integer(op, "pairs", pairs, least=0, most=MOST_HEADS)
    q: Tensor = torch.ops.gemma_cuda.qk_norm_rope(
        x, cos, sin, q_weight, k_weight, k_cache, v_cache, slots, positions, heads, eps, plus_one, v_norm, pairs,
        k_eq_v, _device_name(op, device),
    )  # fmt: skip
    return q


def _into(op: str, out: Tensor | None, result: Tensor) -> Tensor:
    """result, or out, which gets a copy of it."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype:
        own, expected = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (out, result))
        raise InputError(f"{op}: out is {own}, expected {expected}")
    return out.copy_(result)


def _as_tensor(name: str, given: Any) -> Tensor | None:
    if given is None or isinstance(given, Tensor):
        return given
    return torch.as_tensor(to_host("attention", name, given))


def _as_list(offsets: Any) -> Sequence[int] | None:
    if offsets is None or isinstance(offsets, int):
        return None if offsets is None else [offsets]
    if torch.compiler.is_compiling():
        return cast("Sequence[int]", offsets)
    return cast("list[int]", to_host("attention", "q_offset", offsets).reshape(-1).tolist())


def _device_name(op: str, device: Any) -> str | None:
    if device is None or (isinstance(device, str) and device.isascii()):
        return device
    raise InputError(
        f"{op}: device is {shown(device)}; what torch traces, maps or casts takes None or a name: 'emulator'"
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
    check_tensors(
        "attention", ("q", "k", "v"), q=q, k=k, v=v, attn_bias=attn_bias, block_ids=block_ids, key_range=key_range,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    scale = None if scale is None else number("attention", "scale", scale, otherwise=", or None for D ** -0.5")
    softcap = None if softcap is None else number("attention", "softcap", softcap, above=0, otherwise=", or None")
    # While torch.jit traces, lengths are tensors, and what is compared would be baked in.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        sizes = check_shapes(layout, tuple(q.shape), tuple(k.shape), tuple(v.shape))
        if is_causal_bias(attn_bias):
            attn_bias = as_bias(attn_bias, sizes.query_count, sizes.key_count, q)
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
