"""Rotary angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config import RopeConfig

if TYPE_CHECKING:
    from ..precision import Array, Precision


@dataclass(frozen=True)
class Rope:
    """Rotary tables cos, sin [P, D/2], and the row of each token in them (int32 [N]; None: token n has row n)."""

    cos: Array
    sin: Array
    positions: Array | None = None


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> NDArray[np.float32]:
    """float32 [D/2]: the angle per position of each pair (i, i + D/2).

    default: theta^(-2i/D); linear: that divided by factor; proportional: that (divided by factor) for the first
    int(partial · D/2) pairs and 0, no rotation, for the others. Source: transformers modeling_rope_utils.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power is rounded once from float64: NumPy's and PyTorch's float32 pow differ in the last bit.
    power = np.power(np.float64(rope.rope_theta), exponent.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / power
    if rope.rope_type == "proportional":
        frequencies[int(rope.partial_rotary_factor * head_dim // 2) :] = 0
    return np.asarray(frequencies / np.float32(rope.factor), np.float32)


def cos_sin(
    rope: RopeConfig, head_dim: int, position_ids: NDArray[np.int64], precision: Precision
) -> tuple[Array, Array]:
    """(cos, sin) [N, D/2] of position · frequency.

    The product is a float32, as in HuggingFace: at large positions it is what the model knows.
    """
    angle = position_ids.astype(np.float32)[:, None] * inverse_frequencies(rope, head_dim)
    angle = angle.astype(precision.compute, copy=False)
    return np.cos(angle), np.sin(angle)
