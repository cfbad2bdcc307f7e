"""torch.nn.attention.bias.CausalBias, a tensor whose memory says nothing: its mask is in its attributes."""

from __future__ import annotations

from typing import Any

from ..device.foreign import is_of
from ..errors import InputError


def is_causal_bias(x: Any) -> bool:
    """Whether x is made by torch.nn.attention.bias.causal_upper_left or causal_lower_right."""
    return is_of(x, "torch.nn.attention.bias", "CausalBias")


def first_query(op: str, mask: Any, queries: int, keys: int) -> int:
    """The key at which query 0 stands, below 0 where there are fewer keys than queries.

    As torch has it, a bias from the upper left, or of as many queries as keys, is a causal mask of whatever size.
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
