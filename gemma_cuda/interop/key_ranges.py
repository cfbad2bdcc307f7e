"""Causal, windowed and block masks as the interval of keys that each query sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Mask:
    """The mask of packed sequences; arrays are stored as bytes, so that it is hashable and can be a cache key.

    Query i of sequence b has key position p = offsets[b] + i and sees the keys t with p - left <= t <= p + right (None:
    no bound), and all later keys of the block that holds key p. ranges replaces these rules by one interval per query.
    """

    cu_seqlens_q: bytes  # int32 [B + 1]
    cu_seqlens_k: bytes  # int32 [B + 1]
    offsets: bytes = b""  # int64 [B]
    left: int | None = None
    right: int | None = None
    block_ids: bytes | None = None  # int64 [keys of all sequences]
    ranges: bytes | None = None  # int32 [queries of all sequences, 2]

    @property
    def queries(self) -> Int32:
        """cu_seqlens of the queries."""
        return np.frombuffer(self.cu_seqlens_q, np.int32)

    @property
    def keys(self) -> Int32:
        """cu_seqlens of the keys."""
        return np.frombuffer(self.cu_seqlens_k, np.int32)

    def key_range(self) -> tuple[Int32, Int32]:
        """(key_begin, key_end) int32 [N], relative to the first key of the query's sequence."""
        if self.ranges is not None:
            both = np.frombuffer(self.ranges, np.int32).reshape(-1, 2)
            return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])
        counts = np.diff(self.queries)
        repeat: Any = lambda values: np.repeat(np.asarray(values, np.int64), counts)  # noqa: E731
        keys = repeat(np.diff(self.keys))
        position = np.arange(len(keys)) - repeat(self.queries[:-1]) + repeat(np.frombuffer(self.offsets, np.int64))
        begin = np.zeros_like(position) if self.left is None else position - self.left
        end = keys if self.right is None else position + self.right + 1
        if self.block_ids is not None:
            end = np.maximum(end, self._block_end(position, keys, repeat(self.keys[:-1])))
        begin, end = np.clip(begin, 0, keys), np.clip(end, 0, keys)
        return begin.astype(np.int32), np.maximum(begin, end).astype(np.int32)

    def joined(self) -> Mask:
        """The same mask as one sequence of all queries and keys; its intervals ascend as those of each sequence do."""
        counts = np.diff(self.queries)
        first_key = np.repeat(self.keys[:-1], counts)
        ranges = np.stack([x + first_key for x in self.key_range()], axis=1).astype(np.int32)
        queries, keys = (np.array([0, ends[-1]], np.int32).tobytes() for ends in (self.queries, self.keys))
        return Mask(queries, keys, ranges=ranges.tobytes())

    def _block_end(self, position: Int64, keys: Int64, first_key: Int64) -> Int64:
        """int64 [N]: end of each query's block, relative to the sequence; 0 for a query outside all blocks."""
        ends = block_ends(np.frombuffer(self.block_ids or b"", np.int64), self.keys)
        inside = (position >= 0) & (position < keys)
        found = np.zeros_like(position)
        found[inside] = ends[(position + first_key)[inside]] - first_key[inside]
        return np.maximum(found, 0)


def block_ends(ids: Int64, cu_seqlens_k: Int32) -> Int64:
    """int64 [keys of all sequences]: end index of each key's block; 0 for ids below 0.

    Raises InputError if an id has two separate runs of keys in one sequence.
    """
    total = len(ids)
    sequence = np.repeat(np.arange(len(cu_seqlens_k) - 1), np.diff(cu_seqlens_k))
    edges = np.ones(total, bool)
    edges[1:] = (np.diff(ids) != 0) | (np.diff(sequence) != 0)
    starts = np.flatnonzero(edges)
    stops = np.append(starts, total)[1:]
    blocks = np.stack([sequence[starts], ids[starts]], axis=1)[ids[starts] >= 0]
    own, counts = np.unique(blocks, axis=0, return_counts=True)
    if (counts > 1).any():
        b, block = own[np.argmax(counts > 1)]
        first, second = np.flatnonzero((sequence[starts] == b) & (ids[starts] == block))[:2]
        places = [int(starts[i] - cu_seqlens_k[b]) for i in (first, second)]
        raise InputError(
            f"attention: block_ids: id {block} stands in two places, from tokens {places[0]} and {places[1]}; "
            "a block is one run of tokens: give each its own id, or pass the mask as attn_bias"
        )
    return np.where(ids >= 0, np.repeat(stops, stops - starts), 0)
