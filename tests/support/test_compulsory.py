"""What tests/support/compulsory.py calls compulsory, against sets of sectors and pairs that are written out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.ops.attention import attention
from tests.support import compulsory
from tests.support.attention_cases import ranges

Array = np.ndarray[Any, Any]
BF16 = ml_dtypes.bfloat16


def sector_set(array: Array) -> set[int]:
    """The sectors of every byte of every element."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(array.shape, array.strides, strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    spread = array.ctypes.data + offsets[:, None] + np.arange(array.itemsize)
    return set((spread // 32).reshape(-1).tolist())


ROOM = Emulator().empty((6, 5, 48), BF16)


@pytest.mark.parametrize(
    "array",
    [
        ROOM,
        ROOM[1:3],
        ROOM[:, :, :8],
        ROOM[:, 1:2, 8:32],
        ROOM[::2, ::-1, 3:4],
        ROOM.transpose(1, 0, 2)[:, 2:],
        ROOM[0, 0, 7:9],
        np.broadcast_to(ROOM[:1], (9, 5, 48)),
        ROOM[:0],
    ],
    ids=lambda array: f"{list(array.shape)} {list(array.strides)}",
)
def test_sectors_are_counted_once_wherever_rows_lie(array: Array) -> None:
    assert compulsory.sectors(array) == len(sector_set(array))


def test_of_an_embedding_table_only_distinct_rows_count() -> None:
    table, ids = Emulator().empty((50, 24), BF16), Emulator().from_host(np.array([3, 49, 3, 4, 0, 3], np.int32))
    x = Emulator().empty((6, 24), BF16)
    rows = set().union(*(sector_set(table[i]) for i in ids))
    assert compulsory.embed(x, ids, table) == compulsory.Compulsory(len(rows) + 1, 9)


def test_products_of_a_linear_layer() -> None:
    y, x, weight = np.zeros((32, 40), BF16), np.zeros((32, 64), BF16), np.zeros((40, 64), BF16)
    assert compulsory.linear(y, x, weight).mma == 2 * 5 * 4
    assert compulsory.linear(y[:1], x[:1], weight).mma == 2 * 5 * 4 / 32, "one row is a part of an operation"


@pytest.mark.parametrize("mask", ["causal", "window 64", "spans", "two-sided window", "any"])
def test_of_keys_and_pairs_only_visible_ones_count(mask: str) -> None:
    rng = np.random.default_rng(3)
    parts = [ranges(mask, queries, past, rng) for queries, past in ((70, 9), (3, 90))]
    key_begin, key_end = (np.concatenate(column) for column in zip(*parts, strict=True))
    device = Emulator()
    q, k, v = (device.empty(shape, BF16) for shape in ((73, 4, 64), (2, 95, 2, 64), (2, 95, 2, 64)))
    seen = np.zeros((2, 95), bool)
    for n in range(73):
        seen[int(n >= 70), key_begin[n] : key_end[n]] = True
    got = compulsory.attention(
        q, q, k, v, key_begin=key_begin, key_end=key_end, cu_seqlens=np.array([0, 70, 73], np.int32)
    )
    masks = 2 * -(-73 * 4 // 32)
    assert got.read_sectors - masks == (q.nbytes + 2 * int(seen.sum()) * 2 * 64 * 2) // 32
    assert got.write_sectors == q.nbytes // 32
    pairs = sum(max(0, int(e) - int(b)) for b, e in zip(key_begin, key_end, strict=True)) * 4
    assert got.mma == pairs * 2 * 64 / 2048


def test_what_a_checked_launch_moves_is_never_less() -> None:
    """A window past which keys are hidden: the kernel reads no key that is not compulsory."""
    device = Emulator(checked=True)
    begin, end = ranges("window 64", 128, 128, np.random.default_rng(0))
    values = [np.random.default_rng(i).standard_normal((1, 256, 2, 64)).astype(BF16) for i in range(3)]
    q, k, v = device.from_host(values[0][0, :128]), device.from_host(values[1]), device.from_host(values[2])
    masks = {"key_begin": begin, "key_end": end, "cu_seqlens": np.array([0, 128], np.int32)}
    o = attention(q, k, v, scale=0.125, softcap=None, bias=None, device=device, **masks)
    got = device.counters
    assert got is not None
    needed = compulsory.attention(o, q, k, v, **masks)
    assert needed.read_sectors <= got.global_read_sectors <= needed.read_sectors + 8
    assert got.global_write_sectors == needed.write_sectors
    assert got.mma >= needed.mma
