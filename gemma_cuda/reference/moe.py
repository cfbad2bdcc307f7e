"""Gemma 4's mixture of experts."""

from __future__ import annotations

import numpy as np

from ..precision import Array, Precision
from .linear import linear, linear_geglu
from .rms_norm import rms_norm


def route(
    x: Array, *, scale: Array, proj: Array, per_expert_scale: Array, top_k: int, eps: float, precision: Precision
) -> tuple[Array, Array]:
    """(experts int [N, top_k], weights [N, top_k]) for tokens x [N, E].

    Softmax over all experts of proj [X, E] · (rms(x) · scale [E] · E^-½), the top_k renormalised to sum to 1, then ·
    per_expert_scale [X].
    """
    r = rms_norm(x, None, eps=eps, precision=precision)
    r = precision.round(precision.round(r * scale) * x.dtype.type(x.shape[-1] ** -0.5))
    scores = linear(r, proj, precision=precision)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    experts = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, experts, axis=-1)
    weights /= weights.sum(axis=-1, keepdims=True)
    return experts, weights * per_expert_scale[experts]


def moe(z: Array, experts: Array, weights: Array, *, gate_up: Array, down: Array, precision: Precision) -> Array:
    """y [N, E] = Σ_j weights[:, j] · down_e(gelu_tanh(gate_e z) · up_e z), e = experts[:, j]; z [N, E].

    gate_up [X, 2F, E] (gate first), down [X, E, F]. Summed in float32 or wider and rounded once.
    """
    y = np.zeros_like(z)
    for expert in np.unique(experts):
        token, choice = np.nonzero(experts == expert)
        hidden = linear_geglu(z[token], gate_up[expert], precision=precision)
        y[token] += linear(hidden, down[expert], precision=precision) * weights[token, choice, None]
    precision.round_in_place(y)
    return y
