"""torch.nn.attention.bias.CausalBias: a tensor subclass that holds its mask in attributes, not in memory."""

from __future__ import annotations

from typing import Any

from ..device.foreign import is_of
from ..errors import InputError


def is_causal_bias(x: Any) -> bool:
    """Whether x is a CausalBias (of causal_upper_left or causal_lower_right)."""
    return is_of(x, "torch.nn.attention.bias", "CausalBias")


def first_query(op: str, mask: Any, queries: int, keys: int) -> int:
    """The key position of query 0; negative with fewer keys than queries.

    As in torch, an upper-left bias, or one with seq_len_q == seq_len_kv, fits any number of queries and keys.
    """
    if mask.variant.name == "UPPER_LEFT" or mask.seq_len_q == mask.seq_len_kv:
        return 0
    if (mask.seq_len_q, mask.seq_len_kv) != (queries, keys):
        raise InputError(
            f"{op}: the causal_lower_right bias is of [{mask.seq_len_q}, {mask.seq_len_kv}], expected [S, T] = "
            f"[{queries}, {keys}]"
        )
    return keys - queries


def as_bias(mask: Any, queries: int, keys: int, q: Any) -> Any:
    """[S, T] of 0 and -inf, of the dtype and device of the tensor q."""
    import torch

    first = first_query("attention", mask, queries, keys)
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(first + 1)
    return torch.zeros(queries, keys, dtype=q.dtype, device=q.device).masked_fill(hidden, -torch.inf)
