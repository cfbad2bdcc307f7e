"""KV caches that lie side by side in memory allocated once, where a recorded launch plan finds all of them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..model.kv_cache import KVCache
from ..model.kv_storage import LayerKV, Memory
from ..precision import Array


class Lease:
    """The rows first : first + count of a pool, somebody's as long as the lease lives."""

    def __init__(self, pool: KVPool, first: int, count: int) -> None:
        self.pool, self.first, self.count = pool, first, count


class KVPool:
    """K and V [rows, capacity, KH, D] of every layer that has its own; caches of one or more rows are taken from it."""

    def __init__(self, config: ModelConfig, memory: Memory, rows: int, capacity: int, dtype: np.dtype[Any]) -> None:
        self.rows, self.capacity, self.memory = rows, capacity, memory
        self._config, self._taken = config, np.zeros(rows, bool)
        self.layers: list[LayerKV | None] = []
        self._views: dict[tuple[int, int], list[tuple[Array, Array] | None]] = {}
        for layer in config.layers:
            shape = (rows, capacity, layer.num_key_value_heads, layer.head_dim)
            own = layer.kv_source is None
            self.layers.append(LayerKV(memory.zeros(shape, dtype), memory.zeros(shape, dtype)) if own else None)

    @staticmethod
    def nbytes(config: ModelConfig, rows: int, capacity: int, itemsize: int) -> int:
        """Bytes that a pool takes."""
        return rows * capacity * config.kv_bytes_per_token(itemsize)

    def take(self, batch_size: int, fingerprint: str, dtype: str) -> KVCache | None:
        """An empty cache of neighbouring rows, which are free again when nobody holds it; None where there are none."""
        free = np.flatnonzero(~self._taken)
        runs = free[: len(free) - batch_size + 1]
        first = next((int(row) for row in runs if not self._taken[row : row + batch_size].any()), None)
        if first is None or first + batch_size > self.rows:
            return None
        lease, rows = Lease(self, first, batch_size), slice(first, first + batch_size)
        self._taken[rows] = True
        weakref.finalize(lease, self._give, rows).atexit = False
        if (first, batch_size) not in self._views:
            self._views[first, batch_size] = [None if kv is None else (kv.k[rows], kv.v[rows]) for kv in self.layers]
        layers = [None if pair is None else LayerKV(*pair) for pair in self._views[first, batch_size]]
        cache = KVCache.over(layers, self._config, batch_size, fingerprint, dtype, self.memory)
        cache.lease = lease
        return cache

    def _give(self, rows: slice) -> None:
        self._taken[rows] = False
