"""attention where ranges of keys meet the edges of tiles: every query sees its own keys, all of them and no other."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.device.protocol import Device
from gemma_cuda.ops.attention import attention
from gemma_cuda.ops.attention_plan import plan_attention
from tests.support.attention_cases import TILE, Problem, causal_problem
from tests.support.emulated import Array, KernelTestDevice, counted

pytestmark = pytest.mark.mma

INT32 = np.int32
LARGE = 8192.0


def keys_at_edges(keys: int) -> list[int]:
    """The last key of each tile of keys and the first two of the next."""
    edges = [edge + at for edge in range(0, keys + 1, TILE) for at in (-1, 0, 1)]
    return [t for t in edges if 0 <= t < keys]


def assert_sees_its_keys(given: Problem, watched: list[int], device: Device, **options: Any) -> None:
    """Each of up to 64 watched keys has an element of V to itself, where all others are 0.

    All scores are alike, so that an element of o is 8192 over the number of keys where its key is seen, and exactly 0
    where it is not.
    """
    assert len(watched) <= given.q.shape[2]
    given.k[:], given.v[:] = 1, 0
    for element, t in enumerate(watched):
        given.v[:, t, :, element] = LARGE
    o = given.run(device, **options).astype(np.float64)
    begin, end = (given.masks[name][:, None, None].astype(np.int64) for name in ("key_begin", "key_end"))
    t = np.array(watched)
    expected = np.zeros(o.shape)
    expected[..., : len(t)] = np.where((begin <= t) & (t < end), LARGE / np.maximum(end - begin, 1), 0)
    leaks = np.argwhere((o != 0) & (expected == 0))
    assert not len(leaks), f"query {leaks[0][0]} sees key {t[leaks[0][2]]}"
    np.testing.assert_allclose(o, expected, rtol=2.0**-8)


@pytest.mark.gpu
@pytest.mark.parametrize("shared_kib", [99, 227])
@pytest.mark.parametrize("past", [0, 1, 2, TILE - 2, TILE - 1])
@pytest.mark.parametrize("window", [192, 257, 512])
def test_windows_that_begin_at_an_edge(
    window: int, past: int, shared_kib: int, kernel_test_device: KernelTestDevice
) -> None:
    """Of each tile of rows the first and last key of the first row, and of the last, are just before, at and after."""
    queries = window + 2 * TILE + 2
    given = causal_problem([queries], past + queries, group=1, window=window)
    if shared_kib == 99:  # what is not plain has tiles of 64 rows
        given.softcap = 50.0
    device = kernel_test_device(checked=False, shared_bytes=shared_kib * 1024)
    assert_sees_its_keys(given, keys_at_edges(past + queries), device)


@pytest.mark.gpu
@pytest.mark.parametrize(("head_dim", "group"), [(64, 2), (128, 1), (256, 1), (256, 4)])
@pytest.mark.parametrize("split_keys", [None, 128])
def test_windows_of_any_head_dim_group_and_split(
    split_keys: int | None, head_dim: int, group: int, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([230, 66], 259, group=group, head_dim=head_dim, window=65)
    device = kernel_test_device(checked=False, shared_bytes=227 * 1024)
    assert_sees_its_keys(given, keys_at_edges(259), device, split_keys=split_keys)


@pytest.mark.gpu
@pytest.mark.parametrize("begin_at", [-1, 0, 1])
@pytest.mark.parametrize("end_at", [-1, 0, 1])
def test_ranges_of_a_whole_tile_of_rows(begin_at: int, end_at: int, kernel_test_device: KernelTestDevice) -> None:
    """All rows but the last begin at 0, all but the first end at 256: one row alone makes a tile of keys an edge."""
    given = causal_problem([128], 320, group=1)
    begin, end = np.zeros(128, INT32), np.full(128, 256, INT32)
    begin[-1], end[0] = 2 * TILE + begin_at, 2 * TILE + end_at
    given.masks |= {"key_begin": begin, "key_end": end}
    device = kernel_test_device(checked=False, shared_bytes=227 * 1024)
    assert_sees_its_keys(given, keys_at_edges(320), device)


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 3), (2, 2), (3, 2)])
def test_each_sequence_head_and_query_has_its_own_bias(
    group: int, kv_heads: int, softcap: float | None, kernel_test_device: KernelTestDevice
) -> None:
    """A bias of its own for every score, against the reference."""
    given = causal_problem([35, 35], 70, group=group, kv_heads=kv_heads)
    given.softcap = softcap
    given.bias = 4 * np.random.default_rng(7).standard_normal((2, group * kv_heads, 35, 70)).astype(np.float32)
    given.assert_right(given.run(kernel_test_device()), "a bias per score")


# --- no keys ---


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, TILE])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("edge", [0, TILE, 2 * TILE, 3 * TILE])
def test_tiles_of_rows_that_see_no_key(
    edge: int, head_dim: int, split_keys: int | None, kernel_test_device: KernelTestDevice
) -> None:
    """Ranges that begin and end at one edge of a tile of keys: no key is read, and nothing comes of it."""
    given = causal_problem([150], 3 * TILE, group=1, head_dim=head_dim)
    given.masks |= {name: np.full(150, edge, INT32) for name in ("key_begin", "key_end")}
    given.k[:], given.v[:] = np.nan, np.nan
    device, lse = kernel_test_device("reverse"), np.zeros((150, 1), np.float32)
    options: dict[str, Any] = {"group": 1, "head_dim": head_dim, "is_plain": True, "split_keys": split_keys}
    plan = plan_attention(**given.masks, device=device, **options)
    o = given.run(device, lse=lse, split_keys=split_keys)
    assert not o.view(np.uint16).any() and np.isneginf(lse).all()
    if isinstance(device, Emulator):
        assert counted(device).async_copies == len(plan.table) * plan.tiling.block_q * head_dim // 8  # q alone


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("split_keys", [None, TILE])
def test_rows_without_keys_before_and_after_those_that_see_some(
    split_keys: int | None, softcap: float | None, kernel_test_device: KernelTestDevice
) -> None:
    """Within a tile of rows, and by whole tiles; what nobody sees is NaN."""
    given = causal_problem([300], 4 * TILE, group=1)
    begin, end = np.full(300, TILE, INT32), np.full(300, TILE, INT32)
    begin[140:], end[140:] = TILE + 1, 2 * TILE
    begin[150:], end[150:] = 3 * TILE, 3 * TILE
    given.masks |= {"key_begin": begin, "key_end": end}
    given.softcap = softcap
    lse = np.zeros((300, 1), np.float32)
    o = given.run(kernel_test_device("random"), lse=lse, split_keys=split_keys)
    given.assert_right(o, "rows without keys")
    sees = begin < end
    assert not o[~sees].view(np.uint16).any() and np.isneginf(lse[~sees]).all()
    assert o[sees].astype(np.float32).any(axis=(1, 2)).all() and np.isfinite(lse[sees]).all()


# --- more tiles than a grid has ---


def test_more_tiles_of_rows_than_a_grid_takes(kernel_test_device: KernelTestDevice) -> None:
    """65,537 decoding steps, cut and uncut: the tables go on in a second launch, and a third."""
    sequences, keys = 65537, 2 * TILE
    one = causal_problem([1], keys, group=1)
    last = [65534, 65535, 65536]  # the last of a first grid, and what is left
    q = np.zeros((sequences, 1, 64), ml_dtypes.bfloat16)
    q[last] = one.q * np.array([1, 2, 4], q.dtype)[:, None, None]
    k, v = (np.broadcast_to(x, (sequences, *x.shape[1:])) for x in (one.k, one.v))
    options: dict[str, Any] = {"scale": one.scale, "softcap": None, "bias": None}
    masks = {
        "key_begin": np.zeros(sequences, INT32), "key_end": np.full(sequences, keys, INT32),
        "cu_seqlens": np.arange(sequences + 1, dtype=INT32),
    }  # fmt: skip
    for split_keys, tiles in ((None, sequences), (TILE, 2 * sequences)):
        grids: dict[str, list[int]] = {}

        def ends(instance: str, grid: tuple[int, int, int], grids: dict[str, list[int]] = grids) -> Any:
            grids.setdefault(instance.split("<")[0], []).append(grid[1])
            few = 4 if "merge" in instance else 10  # each merge needs two parts
            return [(0, y, 0) for y in range(grid[1]) if not few <= y < grid[1] - few]

        device = kernel_test_device(only_blocks=ends)
        o: Array = attention(q, k, v, device=device, split_keys=split_keys, **options, **masks)
        assert grids["attention"] == [65535] * (tiles // 65535) + [tiles % 65535]
        assert grids.get("attention_merge", []) == ([65535, 2] if split_keys else [])
        for n in last:
            alone = attention(
                q[n : n + 1].copy(),
                one.k,
                one.v,
                device=kernel_test_device(),
                split_keys=split_keys,
                **options,
                **one.masks,
            )
            assert o[n].tobytes() == alone[0].tobytes(), (n, split_keys)
