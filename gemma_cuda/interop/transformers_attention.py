"""`attn_implementation="gemma_cuda"`: the attention and mask functions that Transformers calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from .. import arguments
from ..device.foreign import is_traced
from ..errors import InputError
from .causal_bias import as_bias, is_causal_bias
from .options import AttentionOptions
from .torch_ops import attend_op

_MASK_ELEMENTS = 1 << 22  # of one block of mask rows, evaluated together
_WINDOWS = {
    causal_mask_function: sliding_window_causal_mask_function,
    bidirectional_mask_function: sliding_window_bidirectional_mask_function,
}
_CONCATENATING = ("t5gemma2_decoder",)  # models that concatenate the masks of self and cross attention


def register(name: str = "gemma_cuda", *, device: str | None = None) -> None:
    """Makes `attn_implementation=name` an attention of Transformers, for this process.

    device: None is the NumPy reference for models on the CPU and the kernels for those on a GPU; "emulator" runs the
    kernels on the CPU. Forward passes and generate() with any cache, padding and image spans; no gradients.
    """
    name = arguments.text("name", name)
    if device is not None:
        arguments.text("device", device)
    AttentionInterface.register(name, partial(attention_forward, device=device))
    AttentionMaskInterface.register(name, key_range_mask)


def key_range_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor:
    """int32 [B, 1, S, 2] on the CPU: each query sees the keys key_begin <= t < key_end.

    A mask that has other than one ascending interval per query (holes in a prompt, say) is returned dense, bool
    [B, 1, S, T] as for Transformers' SDPA; so is one without readable values (traces, fake and meta tensors), and one
    with allow_is_causal_skip or allow_is_bidirectional_skip False: that model computes with its mask.
    The mask is evaluated in blocks of rows, so that the dense mask never exists as a whole.
    """

    def rows(start: int, count: int) -> Tensor:
        first: Any = q_offset + start  # a tensor where the cache is static
        seen = sdpa_mask(
            batch_size, count, kv_length, first, kv_offset, mask_function, attention_mask,
            allow_is_causal_skip=False, allow_is_bidirectional_skip=False, use_vmap=use_vmap, device=device,
        )  # fmt: skip
        assert seen is not None
        return seen

    if torch.compiler.is_compiling():
        return rows(0, q_length)
    may_skip = {causal_mask_function: allow_is_causal_skip, bidirectional_mask_function: allow_is_bidirectional_skip}
    is_wanted = not may_skip.get(_base(mask_function, local_size), True)
    # For one query over a static cache Transformers passes False for every model.
    if is_wanted and (q_length > 1 or getattr(options.get("config"), "model_type", None) in _CONCATENATING):
        return rows(0, q_length)
    if is_traced(rows(0, min(1, q_length))):  # its values cannot be read
        return rows(0, q_length)
    at_once = max(1, _MASK_ELEMENTS // max(1, batch_size * kv_length))
    parts = []
    for start in range(0, q_length, at_once):
        part = _intervals(rows(start, min(at_once, q_length - start)))
        if part is None:
            return rows(0, q_length)
        parts.append(part)
    begin, end = torch.cat(parts, dim=2).unbind(-1)
    is_empty = begin >= end
    latest = end.cummax(-1).values
    begin, end = torch.where(is_empty, latest, begin), torch.where(is_empty, latest, end)
    if bool((begin.diff() < 0).any()) or bool((end.diff() < 0).any()):
        return rows(0, q_length)
    return torch.stack([begin, end], -1).to("cpu", torch.int32)


def _base(mask_function: Callable[..., Any], local_size: int | None) -> Callable[..., Any]:
    """The mask function without its sliding window, or `mask_function` itself if it is no plain window."""
    if local_size is not None:
        for base, window in _WINDOWS.items():
            if _parts(mask_function) == _parts(window(local_size)):
                return base
    return mask_function


def _parts(mask_function: Callable[..., Any]) -> list[Any]:
    """Code objects of the mask function and of the functions that `and_masks` or `or_masks` combined into it."""
    joined = [cell.cell_contents for cell in getattr(mask_function, "__closure__", None) or ()]
    functions = [f for x in joined if isinstance(x, tuple) for f in x]
    return [getattr(f, "__code__", f) for f in (mask_function, *functions)]


def _intervals(seen: Tensor) -> Tensor | None:
    """int64 [B, 1, S, 2] of bool [B, 1, S, T]: (begin, end) of each row, (0, 0) of an empty one; None for holes."""
    keys = seen.shape[-1]
    if keys == 0:
        return torch.zeros(*seen.shape[:-1], 2, dtype=torch.int64, device=seen.device)
    count = seen.sum(-1)
    bits = seen.to(torch.uint8)
    begin, end = bits.argmax(-1), keys - bits.flip(-1).argmax(-1)
    end = torch.where(count == 0, 0, end)
    if bool((count != end - begin).any()):
        return None
    return torch.stack([begin, end], -1)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    *,
    device: str | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """(o [B, S, H, D], None) of query [B, H, S, D], key and value [B, KH, T, D].

    attention_mask: the result of `key_range_mask`; bool (true shows) or an additive float, [B, H or 1, S, T]; or None:
    for a causal module causal with the last query at the last key, and windowed; for others no mask.
    With output_attentions among the options: (o, weights [B, H, S, T]) of eager attention, with a warning.
    """
    _refuse(dropout, options)
    left = right = bias = ranges = None
    if attention_mask is None:
        if is_causal if is_causal is not None else getattr(module, "is_causal", True):
            left, right = None if sliding_window is None else sliding_window - 1, 0
    elif attention_mask.dtype == torch.int32:
        ranges = attention_mask
    elif attention_mask.dtype == torch.bool:
        bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    else:
        bias = attention_mask
    if options.get("output_attentions"):
        if bias is None:
            bias = _dense(query, key, left, right, ranges)
        return _eager(query, key, value, bias, scaling, softcap)
    given = AttentionOptions(
        attn_bias=bias, key_range=ranges, scale=scaling, left=left, right=right, softcap=softcap, layout="BHSD",
        device=device,
    )  # fmt: skip
    o, _ = attend_op(query, key, value, given)
    return o.transpose(1, 2), None


def _dense(query: Tensor, key: Tensor, left: int | None, right: int | None, ranges: Tensor | None) -> Tensor:
    """The additive bias [B or 1, 1, S, T], 0 or -inf, of a window or of key ranges."""
    queries, keys = query.shape[2], key.shape[2]
    t = torch.arange(keys, device=query.device)
    if ranges is not None:
        begin, end = ranges.to(query.device)[..., None].unbind(-2)
    else:
        p = torch.arange(queries, device=query.device)[None, None, :, None] + keys - queries
        begin = torch.zeros_like(p) if left is None else p - left
        end = torch.full_like(p, keys) if right is None else p + right + 1
    seen = (t >= begin) & (t < end)
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -torch.inf)


def _eager(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """(o, weights) as in the eager attention of Transformers' Gemmas."""
    warnings.warn(
        "attn_implementation 'gemma_cuda' makes no attention weights; this call is computed by eager attention",
        stacklevel=3,
    )
    if is_causal_bias(bias):
        bias = as_bias(bias, query.shape[2], key.shape[2], query)
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + bias.clamp(min=torch.finfo(bias.dtype).min)  # no NaN in a row that sees no key
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


_UNSERVED = {
    "position_bias": "use attn_implementation='sdpa'",
    "s_aux": "attention sinks are not Gemma's; use attn_implementation='eager'",
    "cache": "continuous batching is not served; use generate()",
}


def _refuse(dropout: float, options: dict[str, Any]) -> None:
    if dropout:
        raise InputError("attn_implementation 'gemma_cuda': dropout is for training; call model.eval()")
    for name, way_out in _UNSERVED.items():
        if options.get(name) is not None and options[name] is not False:
            raise InputError(f"attn_implementation 'gemma_cuda': {name} is not supported: {way_out}")
