"""NumPy twins of the kernels' ops: the oracle in float64, the default backend in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import RopeConfig
from ..model.rope import Rope, cos_sin
from ..precision import Array, Precision
from .attention import attention
from .embed import embed
from .geglu import geglu
from .linear import linear
from .logits import logits
from .moe import moe, route
from .qk_norm_rope import qk_norm_rope
from .rms_norm import add_norm, rms_norm


class ReferenceOps:
    """The ops of this package at one precision, as the orchestrator calls them; `KernelOps` is the same on a device."""

    takes_packed = True  # tables of which rows are looked up may stay packed in their file

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.hidden_dtype = precision.compute
        self.embed = partial(embed, precision=precision)
        self.linear = partial(linear, precision=precision)
        self.rms_norm = partial(rms_norm, precision=precision)
        self.add_norm = partial(add_norm, precision=precision)
        self.qk_norm_rope = partial(qk_norm_rope, precision=precision)
        self.attention = partial(attention, precision=precision)
        self.geglu = partial(geglu, precision=precision)
        self.route = partial(route, precision=precision)
        self.moe = partial(moe, precision=precision)
        self.logits = partial(logits, precision=precision)

    def gated(self, x: Array, weight: Array) -> Array:
        """gelu(gate) · up [N, F] of x [N, E] and gate | up [2F, E]."""
        gate_up = self.linear(x, weight)
        width = len(weight) // 2
        return self.geglu(gate_up[:, :width], gate_up[:, width:])

    def rope(self, rope: RopeConfig, head_dim: int, position_ids: NDArray[np.int64]) -> Rope:
        """The angles of tokens at position_ids [N]."""
        return Rope(*cos_sin(rope, head_dim, position_ids, self.precision))

    def mask(
        self, key_begin: Array, key_end: Array, cu_seqlens: Array, *, group: int, head_dim: int, is_plain: bool
    ) -> tuple[Array, Array, Array]:
        """The mask of key ranges [N] for `attend`."""
        return key_begin, key_end, cu_seqlens

    def attend(self, q: Array, k: Array, v: Array, *, mask: tuple[Array, Array, Array], **options: Any) -> Array:
        """`attention` under a mask that serves many layers."""
        key_begin, key_end, cu_seqlens = mask
        return self.attention(q, k, v, key_begin=key_begin, key_end=key_end, cu_seqlens=cu_seqlens, **options)

    def argmax(self, logits: Array) -> int:
        """The likeliest token by logits [1, V], the first of equals."""
        return int(logits[0].argmax())

    def take(self, x: Array, rows: Array) -> Array:
        """x [N, …] at rows [M]."""
        return x[rows]

    def index(self, rows: Array) -> Array:
        """Row numbers as the other ops take them."""
        return rows

    def bias(self, bias: Array) -> Array:
        """An attention bias from the host as `attend` takes it."""
        return bias.astype(self.precision.compute, copy=False)

    def from_host(self, x: Array) -> Array:
        """Activations as the other ops take them."""
        return self.precision.round(x.astype(self.precision.compute))

    def as_hidden(self, x: Array) -> Array:
        """Activations that have passed `to_host`."""
        return x

    def to_host(self, x: Array) -> Array:
        """A NumPy array of the values of x."""
        return x

    def place_matrix(self, weight: Array) -> Array:
        """A weight as `linear`, `gated` and `logits` take it."""
        return weight

    def place_norm(self, weight: Array) -> Array:
        """A norm's weight as the norms take it."""
        return weight

    def place_table(self, table: Array, matrix: Array | None) -> Array:
        """An embedding table as `embed` takes it; matrix: the same, if it has been placed as one."""
        return table
