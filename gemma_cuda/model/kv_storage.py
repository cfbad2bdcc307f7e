"""The storage of a KV cache: K and V of each layer, and which tokens they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import OutOfMemoryError
from ..precision import Array

MOST_SLOTS = 2**31 - 1  # slots are int32


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
        try:
            return np.zeros(shape, dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more than an address can count
            raise OutOfMemoryError(f"a KV cache of {list(shape)} {np.dtype(dtype)}: {error}") from error

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
class KVStorage:
    """K and V of the tokens of B sequences: those of row b are in the slots starts[b] : ends[b] of every layer."""

    layers: list[LayerKV | None]  # None for a layer that reads another layer's
    starts: Array  # int32 [B]
    ends: Array
    fingerprint: str  # of the model; see Gemma.fingerprint
    dtype: str  # the model's: float32, float64, bfloat16
    sliding_windows: tuple[int | None, ...]
    # Bidirectional spans [begin, end) of each row: a cut inside one would leave keys that have seen removed tokens.
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    memory: Memory = field(default_factory=HostMemory)

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
