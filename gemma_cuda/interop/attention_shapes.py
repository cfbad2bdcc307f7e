"""The axes of an attention call in each layout, and the check of their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .. import arguments
from ..errors import InputError

_OP = "attention"
AXES = {
    "BSHD": ("B, S, H, D", "B, T, KH, D"),
    "BHSD": ("B, H, S, D", "B, KH, T, D"),
    "SHD": ("S, H, D", "T, KH, D"),
}
"""Axes of q, and of k and v, in each layout."""


@dataclass(frozen=True)
class Sizes:
    """The axis sizes of a call; in layout SHD batch is None, and the token counts are over all sequences."""

    layout: str
    batch: int | None
    query_count: int
    key_count: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def queries(self) -> tuple[int, ...]:
        """(B, S), or (S,) in layout SHD."""
        return (self.query_count,) if self.batch is None else (self.batch, self.query_count)


def check_shapes(layout: str, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> Sizes:
    """The Sizes of a call; raises InputError where shapes do not fit the layout or each other."""
    arguments.choice(f"{_OP}: layout", layout, AXES)
    for name, shape, axes in zip("qkv", (q, k, v), (AXES[layout][0], *AXES[layout][1:] * 2), strict=True):
        if len(shape) != len(layout):
            raise InputError(f"{_OP}: {name} is {list(shape)}, expected [{axes}] (layout {layout})")
    tokens, heads = (1, 2) if layout == "BSHD" else (2, 1) if layout == "BHSD" else (0, 1)
    expected = list(k)
    expected[-1] = q[-1]
    if layout != "SHD":
        expected[0] = q[0]
    for name, shape in (("k", k), ("v", v)):
        if name == "v":
            expected[-1] = v[-1]
        if list(shape) != expected:
            raise InputError(
                f"{_OP}: {name} is {list(shape)}, expected [{AXES[layout][1]}] = {expected} "
                f"(layout {layout}, q {list(q)}{', k ' + str(list(k)) if name == 'v' else ''})"
            )
    if q[heads] and (k[heads] == 0 or q[heads] % k[heads]):
        raise InputError(f"{_OP}: {q[heads]} query heads do not divide among {k[heads]} KV heads (layout {layout})")
    batch = None if layout == "SHD" else q[0]
    return Sizes(layout, batch, q[tokens], k[tokens], q[heads], k[heads], q[-1], v[-1])
