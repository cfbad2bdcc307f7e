"""Attention as its definition has it, in float32 and with gradients: what ours stands beside in tests of others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Sequence[Tensor],
    scale: float | None,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """o like q, lse [B, H, S] float32, of [B, S, H, D]; of [S, H, D] with cu_seqlens of queries and keys lse is [H, S].

    Windows count from the last key, -1 is no limit. A query that sees no key gives 0 and lse +inf, as in flash-attn.
    """
    if not cu_seqlens:
        parts = [_one(*row, scale, left, right, softcap) for row in zip(q, k, v, strict=True)]
        return torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts])
    bounds = zip(*(pairwise(offsets.tolist()) for offsets in cu_seqlens), strict=True)
    parts = [_one(q[a:b], k[c:d], v[c:d], scale, left, right, softcap) for (a, b), (c, d) in bounds]
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts], -1)


def _one(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, left: int, right: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """o [S, H, D], lse [H, S] of one sequence."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(group, 1) for x in (k, v))
    logits = torch.einsum("shd,thd->hst", q.float(), keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    distance = torch.arange(len(k)) - torch.arange(len(q))[:, None] - (len(k) - len(q))
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    is_empty = ~seen.any(-1)
    logits = logits.masked_fill(~(seen | is_empty[:, None]), -torch.inf)
    o = torch.einsum("hst,thd->shd", logits.softmax(-1), values)
    lse = logits.logsumexp(-1).masked_fill(is_empty, torch.inf)
    return o.masked_fill(is_empty[:, None, None], 0.0).to(q.dtype), lse
