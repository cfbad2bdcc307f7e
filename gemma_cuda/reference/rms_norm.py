"""RMSNorm alone, and fused with the residual add between two branches."""

from __future__ import annotations

import numpy as np

from ..host.threads import for_row_blocks
from ..precision import Array, Precision


def rms_norm(x: Array, weight: Array | None, *, eps: float, precision: Precision, plus_one: bool = False) -> Array:
    """y = x / sqrt(mean(x²) + eps) · weight over the last axis.

    x [..., E]; weight [E] or None. plus_one: weight holds w of 1 + w (Gemma 1-3).
    """
    weight = multiplier(weight, plus_one)
    out = np.empty_like(x)
    flat, flat_out = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])

    def block(rows: slice) -> None:
        normalise(flat[rows], weight, eps, flat_out[rows])
        precision.round_in_place(flat_out[rows])

    for_row_blocks(len(flat), flat.shape[1], block)
    return out


def add_norm(
    residual: Array,
    branch: Array,
    *,
    post_weight: Array | None,
    pre_weight: Array | None,
    eps: float,
    precision: Precision,
    layer_scalar: float = 1.0,
    plus_one: bool = False,
) -> tuple[Array, Array]:
    """(residual', normed), both [N, E]: the end of one branch and the start of the next in one pass.

    residual' = (residual + branch · rstd · post_weight) · layer_scalar, rounded once; without post_weight the branch
    is added as it is.
    normed = rms_norm(residual', pre_weight); without pre_weight it is residual' itself. plus_one: weights hold w of
    1 + w. The storage of both arguments is reused.
    """
    post_weight, pre_weight = multiplier(post_weight, plus_one), multiplier(pre_weight, plus_one)
    normed = residual if pre_weight is None else np.empty_like(residual)

    def block(rows: slice) -> None:
        r, b = residual[rows], branch[rows]
        if post_weight is not None:
            b = normalise(b, post_weight, eps, b)
        r += b
        if layer_scalar != 1.0:
            r *= r.dtype.type(layer_scalar)
        precision.round_in_place(r)
        if pre_weight is not None:
            normalise(r, pre_weight, eps, normed[rows])
            precision.round_in_place(normed[rows])

    for_row_blocks(len(residual), residual.shape[1], block)
    return residual, normed


def multiplier(weight: Array | None, plus_one: bool) -> Array | None:
    """The factor of RMSNorm: 1 + weight or weight; None without a weight."""
    return weight + weight.dtype.type(1) if plus_one and weight is not None else weight


def normalise(x: Array, weight: Array | None, eps: float, out: Array) -> Array:
    """out = x / sqrt(mean(x²) + eps) · weight over the last axis, not rounded; out may be x."""
    mean_square = np.einsum("...i,...i->...", x, x) / x.dtype.type(x.shape[-1])
    rstd = 1 / np.sqrt(mean_square + x.dtype.type(eps))
    np.multiply(x, rstd[..., None], out=out)
    if weight is not None:
        out *= weight
    return out
