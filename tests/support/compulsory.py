"""Least cost of a launch, from tensors' shapes and visible keys alone: independent of an op's implementation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SECTOR_BYTES = 32
MMA_PRODUCTS = 16 * 8 * 16
"""Multiplications of one m16n8k16 operation."""


@dataclass(frozen=True)
class Compulsory:
    """Distinct 32-byte sectors that every kernel for the job reads and writes, and m16n8k16 operations of its products.

    mma is a fraction where the products do not fill whole operations; 0 for work that is not for tensor cores.
    """

    read_sectors: int
    write_sectors: int
    mma: float = 0.0


def sectors(array: Array) -> int:
    """Distinct 32-byte sectors of an array's elements, wherever its rows lie."""
    run, starts = array.itemsize, np.array([_address(array)], np.int64)
    for size, stride in sorted(zip(array.shape, array.strides, strict=True), key=lambda axis: axis[1]):
        if stride == run and len(starts) == 1:
            run *= size
        elif stride:
            starts = (starts[:, None] + np.arange(size) * stride).reshape(-1)
    return _sectors_of_runs(starts, run) if array.size else 0


def moved(reads: Iterable[Array], writes: Iterable[Array]) -> Compulsory:
    """Each array once."""
    return Compulsory(sum(map(sectors, reads)), sum(map(sectors, writes)))


def embed(x: Array, ids: Array, table: Array) -> Compulsory:
    """Of the table [V, E] the distinct rows of ids [N], which lie on the host, too; x [N, E] is written."""
    starts = _address(table) + np.unique(ids).astype(np.int64) * table.strides[0]
    read = -(-ids.nbytes // SECTOR_BYTES) + _sectors_of_runs(starts, table.shape[1] * table.itemsize)
    return Compulsory(read, sectors(x))


def linear(y: Array, x: Array, weight: Array) -> Compulsory:
    """y [M, N] = x [M, K] · weight [N, K]ᵀ."""
    products = math.prod(y.shape) * x.shape[1]
    return Compulsory(sectors(x) + sectors(weight), sectors(y), products / MMA_PRODUCTS)


def visible_pairs(key_begin: Array, key_end: Array) -> int:
    """(query, key) pairs that a mask of key ranges [N] lets through."""
    return int(np.maximum(key_end.astype(np.int64) - key_begin, 0).sum())


def attention(
    o: Array, q: Array, k: Array, v: Array, *, key_begin: Array, key_end: Array, cu_seqlens: Array
) -> Compulsory:
    """q, o [N, H, D] and the ranges once; of k, v [B, T, KH, D] the keys that some query sees; two products a pair."""
    read = sectors(q) + sum(-(-ends.nbytes // SECTOR_BYTES) for ends in (key_begin, key_end))  # they lie on the host
    for b, (first, last) in enumerate(itertools.pairwise(cu_seqlens)):
        for begin, end in _union(key_begin[first:last], key_end[first:last]):
            read += sectors(k[b, begin:end]) + sectors(v[b, begin:end])
    products = 2 * visible_pairs(key_begin, key_end) * math.prod(q.shape[1:])
    return Compulsory(read, sectors(o), products / MMA_PRODUCTS)


def _address(array: Any) -> int:
    """Of its first element, on the host or on a GPU."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _sectors_of_runs(starts: NDArray[np.int64], run: int) -> int:
    """Distinct sectors of runs of `run` bytes at these addresses."""
    return sum(end - begin for begin, end in _union(starts // SECTOR_BYTES, (starts + run - 1) // SECTOR_BYTES + 1))


def _union(begin: Array, end: Array) -> list[tuple[int, int]]:
    """The intervals begin <= i < end that are not empty, sorted, with those that touch joined."""
    begin, end = begin[begin < end].astype(np.int64), end[begin < end].astype(np.int64)
    if len(begin) == 0:
        return []
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    is_first = np.concatenate(([True], begin[1:] > reach[:-1]))
    return list(zip(begin[is_first].tolist(), reach[np.append(is_first[1:], True)].tolist(), strict=True))
