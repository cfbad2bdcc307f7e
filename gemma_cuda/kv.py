"""The KV cache: per layer K and V of every prompt token, and the bookkeeping that lets a prompt go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .config import GemmaConfig
from .errors import CacheError
from .files import atomic_path
from .reference.precision import Array

if TYPE_CHECKING:
    from transformers import DynamicCache

    from .batch import Batch

_FORMAT = "gemma_cuda.kv.1"


class Memory(Protocol):
    """Where a cache's arrays lie: HostMemory, or a device."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros."""

    def copy(self, target: Array, source: Array) -> None:
        """Copies source to target; both are of one shape and dtype, and contiguous but for their first axis."""

    def retire(self, array: Array) -> None:
        """Keeps an array, which the caller drops, until nothing that was started uses it."""

    def from_host(self, array: Array) -> Array:
        """Copy of a NumPy array."""

    def to_host(self, array: Array) -> Array:
        """NumPy array of the same values."""


class HostMemory:
    """NumPy arrays."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def copy(self, target: Array, source: Array) -> None:
        np.copyto(target, source)

    def retire(self, array: Array) -> None:
        pass

    def from_host(self, array: Array) -> Array:
        return array

    def to_host(self, array: Array) -> Array:
        return array


@dataclass
class LayerKV:
    """K and V [B, capacity, KH, D] of one layer.

    Storage row i holds slot first_slot + i (first_slot > 0 once a sliding layer is trimmed).
    """

    k: Array
    v: Array
    first_slot: int = 0


@dataclass
class KVCache:
    """Per layer K and V of the tokens seen so far, as `Gemma.prefill` returns and continues them.

    cache[i] is (k, v), views [B, KH, T, D]: K after its norm and RoPE, V after its norm, heads not repeated; None for
    a layer that reads another layer's. Row b holds its tokens in the slots starts[b] : ends[b]; the others hold zeros.
    `Gemma.prefill(past_key_values=cache)` appends to it in place, as HuggingFace's DynamicCache does; `copy` first
    to branch.
    """

    layers: list[LayerKV | None]
    starts: Array  # int32 [B]
    ends: Array
    fingerprint: str  # of the model; see Gemma.fingerprint
    dtype: str  # the model's: float32, float64, bfloat16
    sliding_windows: tuple[int | None, ...]
    # Bidirectional spans [begin, end) of each row: a cut inside one would leave keys that have seen what is gone.
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    memory: Memory = field(default_factory=HostMemory)
    lease: object = None  # of rows in a KVPool, while the cache lies there

    @classmethod
    def empty(
        cls,
        config: GemmaConfig,
        batch_size: int,
        fingerprint: str,
        dtype: str,
        compute: np.dtype[Any],
        memory: Memory | None = None,
    ) -> KVCache:
        """A cache of no tokens for `batch_size` rows, whose elements are stored as `compute` in `memory`."""
        memory = memory or HostMemory()
        layers: list[LayerKV | None] = []
        for layer in config.layers:
            shape = (batch_size, 0, layer.num_key_value_heads, layer.head_dim)
            own = layer.kv_source is None
            layers.append(LayerKV(memory.zeros(shape, compute), memory.zeros(shape, compute)) if own else None)
        return cls.over(layers, config, batch_size, fingerprint, dtype, memory)

    @classmethod
    def over(
        cls,
        layers: list[LayerKV | None],
        config: GemmaConfig,
        batch_size: int,
        fingerprint: str,
        dtype: str,
        memory: Memory,
    ) -> KVCache:
        """A cache of no tokens over storage that is there."""
        starts = np.zeros(batch_size, np.int32)
        windows = tuple(layer.sliding_window for layer in config.layers)
        spans: list[list[tuple[int, int]]] = [[] for _ in range(batch_size)]
        return cls(layers, starts, starts.copy(), fingerprint, dtype, windows, spans, memory)

    @property
    def batch_size(self) -> int:
        return len(self.starts)

    @property
    def seq_length(self) -> int:
        """T, the slots in use: the largest end of a row."""
        return int(self.ends.max(initial=0))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Array, Array] | None:
        stored = self.layers[layer]
        if stored is None:
            return None
        used = slice(0, self.seq_length - stored.first_slot)
        return stored.k[:, used].transpose(0, 2, 1, 3), stored.v[:, used].transpose(0, 2, 1, 3)

    def __iter__(self) -> Iterator[tuple[Array, Array] | None]:
        return (self[i] for i in range(len(self)))

    def nbytes(self) -> int:
        """Bytes of all layers' storage."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers if layer is not None)

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 : slots on every layer; what is stored stays, new storage is zero."""
        for stored in self.layers:
            if stored is None or stored.k.shape[1] >= slots - stored.first_slot:
                continue
            used = stored.k.shape[1]
            # An empty cache is sized exactly; one that grows token by token must not copy itself at every step.
            capacity = slots - stored.first_slot if used == 0 else max(slots - stored.first_slot, used + used // 2, 64)
            for name in ("k", "v"):
                old: Array = getattr(stored, name)
                grown = self.memory.zeros((old.shape[0], capacity, *old.shape[2:]), old.dtype)
                if used:
                    self.memory.copy(grown[:, :used], old)
                    self.memory.retire(old)
                setattr(stored, name, grown)
            self.lease = None

    def extend(self, batch: Batch) -> None:
        """Takes up the tokens that a prefill has written; until this call they do not count."""
        if self.seq_length == 0:
            self.starts = batch.slots[batch.cu_seqlens[:-1]].copy()
        self.ends = batch.slots[batch.cu_seqlens[1:] - 1] + np.int32(1)
        self.spans = [old + new for old, new in zip(self.spans, batch.spans, strict=True)]

    def crop(self, length: int) -> None:
        """Forgets the slots from `length` on.

        A negative length forgets the last |length| slots, as HuggingFace's does.
        """
        keep = length if length >= 0 else self.seq_length + length
        if keep < 0 or keep > self.seq_length:
            raise CacheError(f"crop: length {length} is outside the cache's {self.seq_length} tokens")
        for row, begin, end in self._spans():
            if begin < keep < end:
                raise CacheError(
                    f"crop: length {length} cuts the image span {begin}:{end} of row {row}; its keys see one another"
                )
        for index, (stored, window) in enumerate(zip(self.layers, self.sliding_windows, strict=True)):
            if stored is not None and stored.first_slot > max(0, keep - (window or keep + 1) + 1):
                raise CacheError(
                    f"crop: layer {index} was trimmed to its sliding window and no longer holds the keys before {keep}"
                )
        self.ends = np.minimum(self.ends, keep).astype(np.int32)
        self.starts = np.minimum(self.starts, self.ends)
        self.spans = [[span for span in row if span[1] <= keep] for row in self.spans]
        for stored in self.layers:
            if stored is not None:
                for array in (stored.k, stored.v):
                    forgotten = array[:, keep - stored.first_slot :]
                    if forgotten.size:
                        self.memory.copy(forgotten, self.memory.zeros(forgotten.shape, array.dtype))

    def trim_sliding(self) -> None:
        """Frees what no later query can see.

        Sliding layers keep their last w - 1 slots, as HuggingFace's DynamicCache does.
        """
        shortest = int(self.ends.min())
        for stored, window in zip(self.layers, self.sliding_windows, strict=True):
            if stored is None or window is None:
                continue
            drop = max(0, shortest - window + 1) - stored.first_slot
            if drop > 0:
                used = self.seq_length - stored.first_slot
                for array in (stored.k, stored.v):
                    self.memory.retire(array)
                stored.k, stored.v = (self._copied(array[:, drop:used]) for array in (stored.k, stored.v))
                self.lease = None
                stored.first_slot += drop

    def place(self, memory: Memory, dtype: np.dtype[Any]) -> None:
        """Moves the cache to where, and to the dtype in which, the model that continues it works."""
        for stored in self.layers:
            if stored is not None:
                stored.k, stored.v = (
                    memory.from_host(self.memory.to_host(x).astype(dtype)) for x in (stored.k, stored.v)
                )
        self.memory, self.lease = memory, None

    def copy(self) -> KVCache:
        """An independent copy."""
        layers = [
            None if s is None else LayerKV(self._copied(s.k), self._copied(s.v), s.first_slot) for s in self.layers
        ]
        return KVCache(
            layers, self.starts.copy(), self.ends.copy(), self.fingerprint, self.dtype, self.sliding_windows,
            [list(row) for row in self.spans], self.memory,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes the cache as a safetensors file (`layers.N.k`, `layers.N.v` [B, KH, T, D]), whole or not at all."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {}
        for i, pair in enumerate(self):
            if pair is not None:
                tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"] = (
                    np.ascontiguousarray(self.memory.to_host(x)) for x in pair
                )
        described = {
            "starts": self.starts.tolist(),
            "ends": self.ends.tolist(),
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "sliding_windows": self.sliding_windows,
            "first_slots": [None if s is None else s.first_slot for s in self.layers],
            "spans": self.spans,
        }
        try:
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata={"format": _FORMAT, "cache": json.dumps(described)})
        except (SafetensorError, OSError) as error:
            raise CacheError(f"{path}: the KV cache cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> KVCache:
        """The cache that `save` wrote. CacheError for a file that is not one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CacheError(f"{path} is not a saved KV cache (no {_FORMAT} in its metadata)")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            d = json.loads(metadata["cache"])
            layers: list[LayerKV | None] = []
            for i, first_slot in enumerate(d["first_slots"]):
                k, v = (tensors.get(f"layers.{i}.{x}") for x in "kv")
                if first_slot is None:
                    layers.append(None)
                    continue
                if k is None or v is None or k.ndim != 4 or k.shape != v.shape:
                    raise CacheError(f"{path}: layer {i} lacks matching k and v [B, KH, T, D]")
                k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (k, v))
                layers.append(LayerKV(k, v, int(first_slot)))
            cache = cls(
                layers, np.array(d["starts"], np.int32), np.array(d["ends"], np.int32), str(d["fingerprint"]),
                str(d["dtype"]),
                tuple(d["sliding_windows"]), [[(int(a), int(b)) for a, b in row] for row in d["spans"]],
            )  # fmt: skip
            cache._check_consistent(str(path))
            return cache
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, CacheError):
                raise
            raise CacheError(f"{path} cannot be read as a saved KV cache: {error}") from error

    def to_transformers(self, config: Any = None) -> DynamicCache:
        """A transformers DynamicCache of the same tokens.

        With the HuggingFace `config`, sliding layers keep w - 1 positions.
        """
        from .interop.transformers import cache_to_transformers

        return cache_to_transformers(self, config)

    @classmethod
    def from_transformers(cls, cache: Any, gemma: Any) -> KVCache:
        """A copy of a transformers cache of `gemma`'s model, which `gemma.prefill` can continue."""
        from .interop.transformers import cache_from_transformers

        return cache_from_transformers(cache, gemma)

    def check_model(self, config: GemmaConfig, fingerprint: str, dtype: str) -> None:
        """Raises CacheError unless this cache was made by the model of that configuration, fingerprint and dtype."""
        if len(self) != config.num_hidden_layers:
            raise CacheError(f"past_key_values has {len(self)} layers, the model has {config.num_hidden_layers}")
        for i, (stored, layer) in enumerate(zip(self.layers, config.layers, strict=True)):
            if (stored is None) != (layer.kv_source is not None):
                raise CacheError(f"past_key_values: layer {i} shares KV in one of cache and model, not in the other")
            if stored is not None and stored.k.shape[2:] != (layer.num_key_value_heads, layer.head_dim):
                raise CacheError(
                    f"past_key_values: layer {i} holds [KH, D] = {list(stored.k.shape[2:])}, "
                    f"expected {[layer.num_key_value_heads, layer.head_dim]}"
                )
        if self.fingerprint != fingerprint:
            raise CacheError("past_key_values was made by another model: its keys and values mean nothing to this one")
        if self.dtype != dtype:
            raise CacheError(f"past_key_values holds {self.dtype}, the model computes in {dtype}")

    def _copied(self, array: Array) -> Array:
        copy = self.memory.zeros(array.shape, array.dtype)
        if array.size:
            self.memory.copy(copy, array)
        return copy

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        return ((row, begin, end) for row, spans in enumerate(self.spans) for begin, end in spans)

    def _check_consistent(self, source: str) -> None:
        b, t = len(self.starts), self.seq_length
        rows_ok = (
            self.ends.shape == (b,)
            and len(self.spans) == b
            and bool(np.all((self.starts >= 0) & (self.starts <= self.ends)))
        )
        layers_ok = len(self.sliding_windows) == len(self.layers) and all(
            s is None or (s.first_slot >= 0 and s.k.shape[:2] == (b, t - s.first_slot)) for s in self.layers
        )
        if not rows_ok or not layers_ok:
            raise CacheError(f"{source}: its tensors and its description disagree")
