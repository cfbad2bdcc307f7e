"""`Ops`: the operations that a model is made of, on one device in one precision.

`reference.ReferenceOps` has them in NumPy, `ops.kernel_ops.KernelOps` as kernels. Notation as in decoder.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import RopeConfig
from ..precision import Array, Precision
from .kv_storage import Memory
from .masks import Int32
from .rope import Rope

Mask = Any
"""Key ranges as `Ops.attend` takes them."""


class Ops(Protocol):
    """Operations on arrays of one device; `upload_…`, `index`, `bias` and `from_host` bring host arrays there."""

    @property
    def precision(self) -> Precision: ...

    @property
    def hidden_dtype(self) -> np.dtype[Any]:
        """Of activations, K and V."""

    @property
    def takes_stored_tables(self) -> bool:
        """Whether tables that are only looked up may stay in their file as it stores them."""

    @property
    def memory(self) -> Memory:
        """Where arrays lie."""

    def embed(self, ids: Array, table: Any, *, scale: float) -> Array:
        """Rows ids [N] of a table [V, E], times scale."""

    def linear(self, x: Array, weight: Array) -> Array:
        """x weightᵀ, [N, F] of x [N, E] and weight [F, E]."""

    def gated(self, x: Array, weight: Array) -> Array:
        """gelu(gate) · up [N, F] of x [N, E] and gate | up [2F, E]."""

    def geglu(self, gate: Array, up: Array) -> Array:
        """gelu(gate) · up."""

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, plus_one: bool = False) -> Array:
        """RMSNorm of the last axis."""

    def add_norm(self, residual: Array, branch: Array, **options: Any) -> tuple[Array, Array]:
        """(residual + norm(branch), norm of that)."""

    def qk_norm_rope(self, x: Array, **options: Any) -> Array:
        """q [N, H, D] of q | k | v, normed and rotated; K and V go to the cache."""

    def rope(self, rope: RopeConfig, head_dim: int, position_ids: NDArray[np.int64]) -> Rope:
        """The angles of tokens at position_ids [N]."""

    def mask(
        self, key_begin: Int32, key_end: Int32, cu_seqlens: Int32, *, group: int, head_dim: int, is_plain: bool
    ) -> Mask:
        """The mask of key ranges [N]; is_plain: neither softcap nor bias."""

    def attend(self, q: Array, k: Array, v: Array, *, mask: Mask, **options: Any) -> Array:
        """Attention [N, H, D] of q [N, H, D] over k, v [B, T, KH, D]."""

    def logits(self, hidden: Array, weight: Array, *, softcap: float | None) -> Array:
        """[M, V] of hidden [M, E]."""

    def argmax(self, logits: Array) -> int:
        """The likeliest token by logits [1, V], the first of equals."""

    def take(self, x: Array, rows: Array) -> Array:
        """x [N, …] at rows [M], as of `index`."""

    def index(self, rows: NDArray[Any]) -> Array:
        """Row numbers as the other operations take them."""

    def bias(self, bias: NDArray[Any]) -> Array:
        """An additive bias as `attend` takes it."""

    def from_host(self, x: NDArray[Any]) -> Array:
        """Activations as the other operations take them."""

    def as_hidden(self, x: NDArray[Any]) -> Array:
        """Activations that have passed `to_host`."""

    def to_host(self, x: Array) -> NDArray[Any]:
        """A NumPy array of the values of x."""

    def upload_matrix(self, weight: NDArray[Any]) -> Array:
        """A weight as `linear`, `gated` and `logits` take it."""

    def upload_norm(self, weight: NDArray[Any]) -> Array:
        """A norm's weight as the norms take it."""

    def upload_table(self, table: NDArray[Any], matrix: Array | None) -> Array:
        """An embedding table as `embed` takes it; matrix: the same table, if it has been uploaded as a matrix."""

    def require_memory(self, need: int, what: str) -> None:
        """OutOfMemoryError, with both figures, if `need` bytes for `what` are not free."""


class Gemma4Ops(Ops, Protocol):
    """The operations of Gemma 4's experts and per-layer embeddings, which have no kernels yet (`missing_kernels`)."""

    def route(self, x: Array, **options: Any) -> tuple[Array, Array]:
        """(experts, weights), both [N, top_k], of x [N, E]."""

    def moe(self, x: Array, experts: Array, weights: Array, *, gate_up: Array, down: Array) -> Array:
        """The weighted sum [N, E] of the chosen experts' outputs."""

    def per_layer_inputs(self, x: Array, token: Array, *, projection: Array, norm: Array | None, eps: float) -> Array:
        """[N, L, P] of the layer-0 input x [N, E] and the tokens' per-layer embeddings [N, L P]."""
