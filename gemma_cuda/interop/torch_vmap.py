"""torch.vmap rules of the custom ops: one call over a larger batch where the op has a batch, else one per element."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .causal_bias import as_bias, is_causal_bias
from .options import AttentionOptions

_raw = torch.ops.gemma_cuda
Dims = tuple[int | None, ...]


def attention(info: Any, dims: Dims, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    """((o, lse), (0, 0)) of torch.ops.gemma_cuda.attention, mapped over the axes `dims` of its arguments."""
    options = AttentionOptions(*rest)
    size, layout, attn_bias = info.batch_size, options.layout, options.attn_bias
    q_offset: Any = options.q_offset
    if layout == "SHD":
        return _each(_raw.attention, size, dims, (q, k, v, *rest), outputs=2)
    q, k, v = (_front(x, dim, size) for x, dim in zip((q, k, v), dims, strict=False))
    batch, tokens = q.shape[1], -2 if layout == "BHSD" else -3
    if is_causal_bias(attn_bias):
        attn_bias = as_bias(attn_bias, q.shape[tokens], k.shape[tokens], q)
    given = zip((attn_bias, options.block_ids, options.key_range), dims[3:6], (4, 2, 4), strict=True)
    masks = [_fold(x, dim, size, batch, rank) for x, dim, rank in given]
    if q_offset is not None and len(q_offset) > 1:
        q_offset = list(q_offset) * size
    options = replace(options, attn_bias=masks[0], block_ids=masks[1], key_range=masks[2], q_offset=q_offset)
    o, lse = _raw.attention(*(x.flatten(0, 1) for x in (q, k, v)), *options.values())
    return (o.unflatten(0, (size, batch)), lse.unflatten(0, (size, batch))), (0, 0)


def rms_norm(info: Any, dims: Dims, x: Tensor, weight: Tensor | None, *options: Any) -> Any:
    """(y, 0): one call for a shared weight, one per element for mapped weights."""
    if dims[1] is not None:
        return _each(_raw.rms_norm, info.batch_size, dims, (x, weight, *options))
    return _raw.rms_norm(_front(x, dims[0], info.batch_size), weight, *options), 0


def geglu(info: Any, dims: Dims, gate: Tensor, up: Tensor, device: str | None) -> Any:
    """(y, 0) in one call."""
    return _raw.geglu(*(_front(x, dim, info.batch_size) for x, dim in zip((gate, up), dims, strict=False)), device), 0


def qk_norm_rope(info: Any, dims: Dims, *arguments: Any) -> Any:
    """(q, 0): one call per element, which writes its own caches."""
    for name, i in (("k_cache", 5), ("v_cache", 6)):
        if arguments[i] is not None and dims[i] is None:
            raise InputError(
                f"qk_norm_rope: {name} is one for all that vmap maps over, and each would write it; give each its own"
            )
    return _each(_raw.qk_norm_rope, info.batch_size, dims, arguments)


def _each(op: Any, size: int, dims: Dims, arguments: tuple[Any, ...], outputs: int = 1) -> Any:
    """(results, out_dims) of one call per element; slices are views, so that caches are written in place."""
    results = []
    for i in range(size):
        own = (x if dim is None else x.select(dim, i) for x, dim in zip(arguments, dims, strict=True))
        results.append(op(*own))
    if outputs == 1:
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * outputs


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    """x with the mapped axis first; an unmapped x is expanded with stride 0."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _fold(x: Tensor | None, dim: int | None, size: int, batch: int, rank: int) -> Tensor | None:
    """[size · batch, ...] of a mask with up to `rank` axes, of which the first is the batch; or x, shared by all."""
    if x is None or (dim is None and (x.dim() < rank or x.shape[0] == 1)):
        return x
    x = _front(x, dim, size)
    x = x.reshape(size, *(1,) * (rank + 1 - x.dim()), *x.shape[1:])
    return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)
