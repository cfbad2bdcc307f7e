"""The KV cache: K and V of every prompt token per layer, and what continues, cuts, moves and saves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arguments
from ..config import ModelConfig
from ..errors import CacheError
from ..precision import Array
from .kv_file import load, save
from .kv_storage import MOST_SLOTS, HostMemory, KVStorage, LayerKV, Memory

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass
class KVCache(KVStorage):
    """Per layer K and V of the tokens seen so far, as `Gemma.prefill` returns and continues them.

    cache[i] is (k, v), views [B, KH, T, D]: K after its norm and RoPE, V after its norm, heads not repeated; None for
    a layer that reads another layer's. Row b holds its tokens in the slots starts[b] : ends[b]; the others hold zeros,
    but in rows that `Gemma.warmup` has prepared, whatever was there.
    `Gemma.prefill(past_key_values=cache)` appends to it in place, as HuggingFace's DynamicCache does; `copy` first
    to branch. A call that fails leaves it as it was. One call uses it at a time: CacheError for another one meanwhile,
    from another thread or from a hook.
    """

    lease: object = None  # of rows in a KVPool, while the cache lies there
    _user: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
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
        config: ModelConfig,
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

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the cache is the caller's alone; CacheError if it is another's already."""
        mine = object()
        try:  # setdefault is atomic, and whatever interrupts it, what it has set is taken away again
            if self._user.setdefault("call", mine) is not mine:
                raise CacheError(
                    "the KV cache is in use by another call, which is not done; give each thread a copy of it"
                )
            yield
        finally:
            if self._user.get("call") is mine:
                del self._user["call"]

    @contextmanager
    def appending(self, slots: int, memory: Memory, dtype: np.dtype[Any]) -> Iterator[None]:
        """Within it tokens are written to slots below `slots`, of `dtype` in `memory`.

        If it ends by an exception, the cache is as it was: its tokens, and zeros behind them.
        """
        before = self.starts, self.ends, self.spans
        own = None if self.memory is memory else (self.memory, self._storage())
        try:
            if own is not None:
                self._move(memory, dtype)
            yield
        except BaseException:
            self.starts, self.ends, self.spans = before
            if own is not None:
                self.memory = own[0]
                _put(own[1])
            else:
                with suppress(Exception):  # a device that has failed: the tokens are as they were
                    self._clear(slots)
            raise

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 : slots on every layer; what is stored stays, new storage is zero.

        CacheError for what is no number of slots, OutOfMemoryError.
        """
        wanted = arguments.integer("reserve: slots", slots, least=0, most=MOST_SLOTS, error=CacheError)
        with self.in_use():
            self.make_room(wanted)

    def make_room(self, slots: int) -> None:
        """`reserve` for a caller whose the cache is."""
        leased = None if self.lease is None else self._storage()  # all layers lie in its pool, or none
        try:
            for stored in self.layers:
                if stored is not None and stored.k.shape[1] < slots - stored.first_slot:
                    self._grow(stored, slots - stored.first_slot)
        except BaseException:
            _put(leased or [])
            raise
        if leased is not None and any(s.k is not k for s, k, _ in leased):
            self.lease = None

    def _grow(self, stored: LayerKV, rows: int) -> None:
        """Storage of at least so many rows for a layer: of both K and V, or of neither."""
        used = stored.k.shape[1]
        # An empty cache is sized exactly; one that grows token by token must not copy itself at every step.
        capacity = rows if used == 0 else max(rows, used + used // 2, 64)
        k, v = (self.memory.zeros((x.shape[0], capacity, *x.shape[2:]), x.dtype) for x in (stored.k, stored.v))
        for grown, old in ((k, stored.k), (v, stored.v)):
            if used:
                self.memory.copy(grown[:, :used], old)
                self.memory.retire(old)
        stored.k, stored.v = k, v

    def extend(self, starts: Array, ends: Array, spans: list[list[tuple[int, int]]]) -> None:
        """Takes up the tokens that a prefill has written to starts[b] : ends[b] of each row b, with their spans.

        Until this call they do not count.
        """
        if self.seq_length == 0:
            self.starts = starts.copy()
        self.ends = ends.copy()
        self.spans = [old + new for old, new in zip(self.spans, spans, strict=True)]

    def crop(self, length: int) -> None:
        """Forgets the slots from `length` on.

        A negative length forgets the last |length| slots, as HuggingFace's does. CacheError for what is no length, or
        cuts what belongs together.
        """
        asked = arguments.integer("crop: length", length, error=CacheError)
        with self.in_use():
            keep = asked if asked >= 0 else self.seq_length + asked
            self._check_crop(asked, keep)
            forgotten = [
                part for s in self.layers if s is not None for x in (s.k, s.v)
                if (part := x[:, keep - s.first_slot : self.seq_length - s.first_slot]).size
            ]  # fmt: skip
            # What may fail comes first.
            zeros = {(x.shape, x.dtype): self.memory.zeros(x.shape, x.dtype) for x in forgotten}
            ends = np.minimum(self.ends, keep).astype(np.int32)
            self.starts, self.ends, self.spans = (
                np.minimum(self.starts, ends), ends, [[span for span in row if span[1] <= keep] for row in self.spans]
            )  # fmt: skip
            for part in forgotten:
                self.memory.copy(part, zeros[part.shape, part.dtype])

    def _check_crop(self, length: int, keep: int) -> None:
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

    def trim_sliding(self) -> None:
        """Frees what no later query can see.

        Sliding layers keep their last w - 1 slots, as HuggingFace's DynamicCache does.
        """
        with self.in_use():
            self.trim()

    def trim(self) -> None:
        """`trim_sliding` for a caller whose the cache is."""
        shortest, trimmed = int(self.ends.min()), []
        for stored, window in zip(self.layers, self.sliding_windows, strict=True):
            if stored is None:
                continue
            drop = 0 if window is None else max(0, max(0, shortest - window + 1) - stored.first_slot)
            if drop or self.lease is not None:  # where one layer leaves its pool, all do
                rest = slice(drop, self.seq_length - stored.first_slot)
                k, v = (self._copied(array[:, rest]) for array in (stored.k, stored.v))
                trimmed.append((stored, k, v, stored.first_slot + drop))
        if not any(first_slot > stored.first_slot for stored, _, _, first_slot in trimmed):
            return
        for stored, k, v, first_slot in trimmed:
            for array in (stored.k, stored.v):
                self.memory.retire(array)
            stored.k, stored.v, stored.first_slot = k, v, first_slot
        self.lease = None

    def place(self, memory: Memory, dtype: np.dtype[Any]) -> None:
        """Moves the cache to where, and to the dtype in which, the model that continues it works."""
        with self.in_use():
            self._move(memory, dtype)

    def _move(self, memory: Memory, dtype: np.dtype[Any]) -> None:
        def moved(array: Array) -> Array:
            return memory.from_host(self.memory.to_host(array).astype(dtype))

        _put([(stored, moved(k), moved(v)) for stored, k, v in self._storage()])
        self.memory, self.lease = memory, None

    def copy(self) -> KVCache:
        """An independent copy."""
        with self.in_use():
            layers = [
                None if s is None else LayerKV(self._copied(s.k), self._copied(s.v), s.first_slot) for s in self.layers
            ]
            return KVCache(
                layers, self.starts.copy(), self.ends.copy(), self.fingerprint, self.dtype, self.sliding_windows,
                [list(row) for row in self.spans], self.memory,
            )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes the cache as a safetensors file (`layers.N.k`, `layers.N.v` [B, KH, T, D]), whole or not at all.

        CacheError where it cannot be written, or where something other than a regular file is.
        """
        with self.in_use():
            save(self, arguments.path("path", path, error=CacheError))

    @classmethod
    def load(cls, path: str | Path) -> KVCache:
        """The cache that `save` wrote. CacheError for a file that is not one, or was changed since."""
        return cls(**vars(load(arguments.path("path", path, error=CacheError))))

    def to_transformers(self, config: Any = None) -> DynamicCache:
        """A transformers DynamicCache of the same tokens.

        With the HuggingFace `config`, sliding layers keep w - 1 positions.
        """
        from .transformers_cache import to_dynamic_cache

        with self.in_use():
            return to_dynamic_cache(self, config)

    @classmethod
    def from_transformers(cls, cache: Any, gemma: Any) -> KVCache:
        """A copy of a transformers cache of `gemma`'s model, which `gemma.prefill` can continue."""
        from .transformers_cache import from_dynamic_cache

        found = cls(**vars(from_dynamic_cache(cache, gemma)))
        found.check_model(gemma.config, gemma.fingerprint, gemma.dtype)
        return found

    def check_model(self, config: ModelConfig, fingerprint: str, dtype: str) -> None:
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
        windows = tuple(layer.sliding_window for layer in config.layers)
        if self.sliding_windows != windows:
            raise CacheError(f"past_key_values has the windows {self.sliding_windows}, the model {windows}")
        if self.fingerprint != fingerprint:
            raise CacheError("past_key_values was made by another model: its keys and values mean nothing to this one")
        if self.dtype != dtype:
            raise CacheError(f"past_key_values holds {self.dtype}, the model computes in {dtype}")

    def _copied(self, array: Array) -> Array:
        copy = self.memory.zeros(array.shape, array.dtype)
        if array.size:
            self.memory.copy(copy, array)
        return copy

    def _storage(self) -> list[tuple[LayerKV, Array, Array]]:
        """Each layer with its K and V, for `_put`."""
        return [(stored, stored.k, stored.v) for stored in self.layers if stored is not None]

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        return ((row, begin, end) for row, spans in enumerate(self.spans) for begin, end in spans)

    def _clear(self, slots: int) -> None:
        """Zeros behind the tokens of every row, in the slots below `slots`."""
        for stored, *arrays in self._storage():
            for array in arrays:
                for row, end in enumerate(self.ends.tolist()):
                    part = array[row, end - stored.first_slot : slots - stored.first_slot]
                    if part.size and isinstance(self.memory, HostMemory):
                        part[...] = 0
                    elif part.size:
                        self.memory.copy(part, self.memory.zeros(part.shape, part.dtype))


def _put(storage: list[tuple[LayerKV, Array, Array]]) -> None:
    for stored, k, v in storage:
        stored.k, stored.v = k, v
