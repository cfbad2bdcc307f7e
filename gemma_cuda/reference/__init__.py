"""NumPy twins of the kernels' ops: the oracle in float64, the default backend in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import RopeConfig
from ..host.memory import require_memory
from ..model.kv_storage import HostMemory
from ..model.rope import Rope, cos_sin
from ..precision import Array, Precision
from .attention import attention
from .embed import embed
from .geglu import geglu
from .linear import linear, linear_geglu
from .logits import logits
from .moe import moe, route
from .per_layer_inputs import per_layer_inputs
from .qk_norm_rope import qk_norm_rope
from .rms_norm import add_norm, rms_norm


class ReferenceOps:
    """`model.ops.Gemma4Ops` in NumPy, at one precision."""

    takes_stored_tables = True
    memory = HostMemory()

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.hidden_dtype = precision.compute
        self.embed = partial(embed, precision=precision)
        self.linear = partial(linear, precision=precision)
        self.gated = partial(linear_geglu, precision=precision)
        self.rms_norm = partial(rms_norm, precision=precision)
        self.add_norm = partial(add_norm, precision=precision)
        self.qk_norm_rope = partial(qk_norm_rope, precision=precision)
        self.attention = partial(attention, precision=precision)
        self.geglu = partial(geglu, precision=precision)
        self.route = partial(route, precision=precision)
        self.moe = partial(moe, precision=precision)
        self.logits = partial(logits, precision=precision)
        self.per_layer_inputs = partial(per_layer_inputs, precision=precision)

    def rope(self, rope: RopeConfig, head_dim: int, position_ids: NDArray[np.int64]) -> Rope:
        return Rope(*cos_sin(rope, head_dim, position_ids, self.precision))

    def mask(
        self, key_begin: Array, key_end: Array, cu_seqlens: Array, *, group: int, head_dim: int, is_plain: bool
    ) -> tuple[Array, Array, Array]:
        return key_begin, key_end, cu_seqlens

    def attend(self, q: Array, k: Array, v: Array, *, mask: tuple[Array, Array, Array], **options: Any) -> Array:
        key_begin, key_end, cu_seqlens = mask
        return self.attention(q, k, v, key_begin=key_begin, key_end=key_end, cu_seqlens=cu_seqlens, **options)

    def argmax(self, logits: Array) -> int:
        return int(logits[0].argmax())

    def take(self, x: Array, rows: Array) -> Array:
        return x[rows]

    def index(self, rows: Array) -> Array:
        return rows

    def bias(self, bias: Array) -> Array:
        return bias.astype(self.precision.compute, copy=False)

    def from_host(self, x: Array) -> Array:
        return self.precision.round(x.astype(self.precision.compute))

    def as_hidden(self, x: Array) -> Array:
        return x

    def to_host(self, x: Array) -> Array:
        return x

    def upload_matrix(self, weight: Array) -> Array:
        return weight

    def upload_norm(self, weight: Array) -> Array:
        return weight

    def upload_table(self, table: Array, matrix: Array | None) -> Array:
        return table

    def require_memory(self, need: int, what: str) -> None:
        require_memory(need, what)
