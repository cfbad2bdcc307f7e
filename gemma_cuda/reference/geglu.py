"""Gated activation of Gemma's MLP."""

from __future__ import annotations

import math

import numpy as np

from ..host.threads import for_row_blocks
from ..precision import Array, Precision


def geglu(gate: Array, up: Array, *, precision: Precision) -> Array:
    """y [N, F] = gelu_tanh(gate) · up, rounded once. gate, up [N, F] may be the halves of one packed product."""
    out = np.empty(gate.shape, gate.dtype)

    def block(rows: slice) -> None:
        gelu_tanh(gate[rows], out[rows])
        out[rows] *= up[rows]
        precision.round_in_place(out[rows])

    for_row_blocks(len(gate), gate.shape[1], block)
    return out


def gelu_tanh(z: Array, out: Array) -> None:
    """out = ½ z (1 + tanh(√(2/π) (z + 0.044715 z³))), written as z / (1 + exp(-2u)).

    One exponential, exact at both ends.
    """
    real = z.dtype.type
    np.multiply(z, z, out=out)
    out *= real(-2 * math.sqrt(2 / math.pi) * 0.044715)
    out += real(-2 * math.sqrt(2 / math.pi))
    out *= z
    with np.errstate(over="ignore", under="ignore"):  # exp(-2u) is inf for a very negative z; z / inf is the right 0
        np.exp(out, out=out)
    out += real(1)
    np.divide(z, out, out=out)
