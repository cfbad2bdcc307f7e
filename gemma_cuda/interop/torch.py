"""The ops as custom ops, `torch.ops.gemma_cuda.*`, and functions with the signatures of SDPA and flash-attn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..arguments import shown
from ..device.foreign import host_integers
from ..errors import InputError
from .options import AttentionOptions, flag, integer, number
from .qk_norm_rope import FLAGS, MOST_HEADS, QkNormRopeArguments
from .torch_functions import flash_attn_func, flash_attn_varlen_func, scaled_dot_product_attention
from .torch_ops import attend_op
from .torch_rules import check_tensors

__all__ = [
    "attention", "flash_attn_func", "flash_attn_varlen_func", "geglu", "qk_norm_rope", "rms_norm",
    "scaled_dot_product_attention",
]  # fmt: skip


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, out: Tensor | None = None, **options: Any
) -> Any:
    """`gemma_cuda.attention` of tensors as a custom op; `out` gets a copy.

    options: those of `gemma_cuda.attention`, without max_seqlen_q and max_seqlen_k.
    """
    checked = AttentionOptions.from_window(**options)
    return_lse = flag("attention", "return_lse", return_lse)
    o, lse = attend(q, k, v, checked, out)
    return (o, lse) if return_lse else o


def attend(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(o, lse) by the custom op, which takes block_ids, lengths and offsets of any library."""
    changes: dict[str, Any] = {
        name: _as_tensor(name, getattr(options, name)) for name in ("block_ids", "cu_seqlens_q", "cu_seqlens_k")
    }
    changes |= {"q_offset": _as_list(options.q_offset), "device": _device_name("attention", options.device)}
    options = replace(options, **changes)
    o, lse = attend_op(q, k, v, options)
    return _into("attention", out, o), lse


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


def qk_norm_rope(x: Tensor, **options: Any) -> Tensor:
    """`gemma_cuda.qk_norm_rope` of tensors as a custom op; it writes k_cache and v_cache."""
    return apply_qk_norm_rope(QkNormRopeArguments(x=x, **options))


def apply_qk_norm_rope(given: QkNormRopeArguments) -> Tensor:
    """`qk_norm_rope`, with its arguments in one object."""
    op, pairs = "qk_norm_rope", given.pairs
    check_tensors(op, ("x", "cos", "sin"), **given.arrays())
    heads, eps = integer(op, "heads", given.heads, least=0, most=MOST_HEADS), number(op, "eps", given.eps, least=0)
    flags = {name: flag(op, name, getattr(given, name)) for name in FLAGS}
    pairs = None if pairs is None else integer(op, "pairs", pairs, least=0, most=MOST_HEADS)
    given = replace(given, heads=heads, eps=eps, pairs=pairs, device=_device_name(op, given.device), **flags)
    q: Tensor = torch.ops.gemma_cuda.qk_norm_rope(*vars(given).values())
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
    return torch.as_tensor(host_integers("attention", name, given))


def _as_list(offsets: Any) -> Sequence[int] | None:
    if offsets is None or isinstance(offsets, int):
        return None if offsets is None else [offsets]
    if torch.compiler.is_compiling():
        return cast("Sequence[int]", offsets)
    return cast("list[int]", host_integers("attention", "q_offset", offsets).reshape(-1).tolist())


def _device_name(op: str, device: Any) -> str | None:
    if device is None or (isinstance(device, str) and device.isascii()):
        return device
    raise InputError(
        f"{op}: device is {shown(device)}; what torch traces, maps or casts takes None or a name: 'emulator'"
    )
