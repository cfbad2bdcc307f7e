"""Options of the ops as checked values. While torch traces they pass unchecked: numbers may be symbols then."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import arguments
from ..device.protocol import Device

MOST_KEYS = 1 << 40  # a wider window has no bound


@dataclass(frozen=True)
class AttentionOptions:
    """The arguments of one attention call beside q, k, v and out, in the order of the custom op's schema.

    Each argument is as in `gemma_cuda.attention`, but for the mask: query p sees the keys from p - left to p + right
    (None: no bound), or, with key_range int32 [B, 1, S, 2], its keys are (key_begin, key_end) and no other mask counts.
    """

    attn_bias: Any = None
    block_ids: Any = None
    key_range: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None
    q_offset: int | Sequence[int] | None = None
    scale: float | None = None
    left: int | None = None
    right: int | None = None
    softcap: float | None = None
    layout: str = "BSHD"
    device: str | Device | None = None

    @classmethod
    def from_window(
        cls, *, causal: bool = False, sliding_window: int | None = None, **options: Any
    ) -> AttentionOptions:
        """The options with `causal` and `sliding_window` as the bounds left and right."""
        causal, left = flag("attention", "causal", causal), None
        if sliding_window is not None:
            ends = " (the query itself), or None"
            window = integer("attention", "sliding_window", sliding_window, least=1, otherwise=ends)
            left = min(window, MOST_KEYS) - 1
        return cls(left=left, right=0 if causal else left, **options)

    def values(self) -> tuple[Any, ...]:
        """All options in the order of the fields."""
        return tuple(vars(self).values())


def flag(op: str, name: str, value: Any) -> bool:
    """The option as a bool; InputError for a value other than True and False."""
    return bool(value) if _is_traced() else arguments.flag(f"{op}: {name}", value)


def integer(op: str, name: str, value: Any, *, otherwise: str = "", **bounds: Any) -> int:
    """The option as an int within bounds (least, most)."""
    if _is_traced():
        return value  # type: ignore[no-any-return]
    return arguments.integer(f"{op}: {name}", value, otherwise=otherwise, **bounds)


def number(op: str, name: str, value: Any, *, otherwise: str = "", **bounds: Any) -> float:
    """The option as a float within bounds (least, above, most)."""
    if _is_traced():
        return value  # type: ignore[no-any-return]
    return arguments.number(f"{op}: {name}", value, otherwise=otherwise, **bounds)


def _is_traced() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling() or torch.jit.is_tracing())
