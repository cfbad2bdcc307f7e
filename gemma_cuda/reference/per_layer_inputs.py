"""Gemma 4's per-layer inputs."""

from __future__ import annotations

from ..precision import Array, Precision
from .linear import linear
from .rms_norm import rms_norm


def per_layer_inputs(
    x: Array, token: Array, *, projection: Array, norm: Array | None, eps: float, precision: Precision
) -> Array:
    """[N, L, P]: (norm(projection [L P, E] of x [N, E] / sqrt(E)) + token [N, L P]) / sqrt(2); norm [P]."""
    context = linear(x, projection, precision=precision)
    context *= context.dtype.type(x.shape[1] ** -0.5)
    precision.round_in_place(context)
    width = context.shape[1] if norm is None else len(norm)
    context = rms_norm(context.reshape(len(x), -1, width), norm, eps=eps, precision=precision)
    context += token.reshape(context.shape)
    precision.round_in_place(context)
    context *= context.dtype.type(2**-0.5)
    precision.round_in_place(context)
    return context
