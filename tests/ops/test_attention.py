"""attention on the emulator: equal to the reference, the same bits however it is cut, silent under every check."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import InputError
from gemma_cuda.ops.attention import attend, attention
from gemma_cuda.ops.attention_plan import key_tiles, plan_attention, tiles_of
from gemma_cuda.precision import FLOAT64
from tests.support import compulsory
from tests.support.attention_cases import FACTORS, TILE, Case, Problem, causal_problem, pairwise_cases, problem
from tests.support.emulated import MMA_ROUNDINGS, SCHEDULES, Array, DeviceOf, KernelTestDevice, amid_nan, counted
from tests.support.pairwise import all_pairs, pairs_of

pytestmark = pytest.mark.mma

CASES = pairwise_cases()
BF16 = ml_dtypes.bfloat16
INT32 = np.int32
WINDOWS = (512, 1024, 4096)  # of Gemma 3 and 4, and of Gemma 2


def bits(array: Array) -> Array:
    return array.view(np.uint32 if array.dtype.itemsize == 4 else np.uint16)


# --- equal to the reference ---


def test_the_cases_hold_every_pair_of_factors() -> None:
    covered: set[Any] = set()
    for case in CASES:
        covered |= pairs_of(vars(case))
    assert covered == all_pairs(FACTORS)


@pytest.mark.gpu
@pytest.mark.parametrize("index", range(len(CASES)))
def test_attention_equals_the_reference(index: int, device_of: DeviceOf, kernel_test_device: KernelTestDevice) -> None:
    case = CASES[index]
    emulated = kernel_test_device(
        case.schedule, seed=index, approx=case.approx, mma=case.mma, shared_bytes=case.shared_kib * 1024
    )
    given = problem(case, seed=index)
    given.assert_right(given.run(device_of(emulated), split_keys=case.split_keys), str(case))
    if isinstance(emulated, Emulator):
        assert counted(emulated).shared_bank_conflicts == 0


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_a_layer_of_gemma_2_equals_the_reference(head_dim: int, kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([300], 300, group=2, kv_heads=2, head_dim=head_dim, window=256, seed=head_dim)
    given.softcap = 50.0
    given.q = (given.q.astype(np.float32) * 6).astype(BF16)  # logits beyond the cap
    given.assert_right(given.run(kernel_test_device(checked=False)), f"D {head_dim}")


@pytest.mark.gpu
def test_scores_far_apart_neither_overflow_nor_vanish(kernel_test_device: KernelTestDevice) -> None:
    """Maxima that rise by more than a rescaling from tile to tile, and then fall back."""
    given = causal_problem([40], 5 * TILE, group=1, dtype=np.float16)
    given.k *= np.float16(0.1)
    for tile, size in enumerate((1, 12, 2, 30, 5)):
        given.k[0, tile * TILE + 7] = given.q[20, 0] * np.float16(size / 4)
    given.assert_right(given.run(kernel_test_device()), "rising scores")


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, TILE])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_scores_far_below_zero_do_not_vanish(
    head_dim: int, split_keys: int | None, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([150], 3 * TILE, group=1, head_dim=head_dim)
    given.q[:], given.scale = 1, 1.0
    given.k = (-0.25 * np.abs(given.k.astype(np.float32)) - 5).astype(BF16)
    given.assert_right(given.run(kernel_test_device(), split_keys=split_keys), "scores of -300 and less")


@pytest.mark.gpu
def test_queries_that_see_no_key_give_zero_and_minus_infinity(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([5], 70)
    given.masks["key_begin"] = np.array([0, 9, 9, 70, 70], INT32)
    given.masks["key_end"] = np.array([0, 9, 12, 70, 70], INT32)
    for split_keys in (None, 64):
        lse = np.zeros((5, 2), np.float32)
        o = given.run(kernel_test_device(), lse=lse, split_keys=split_keys)
        given.assert_right(o, "rows without keys")
        assert not o[[0, 1, 3, 4]].any() and o[2].any()
        assert np.isneginf(lse[[0, 1, 3, 4]]).all() and np.isfinite(lse[2]).all()


@pytest.mark.gpu
def test_no_queries_and_empty_sequences(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([0, 3, 0], 66)
    given.assert_right(given.run(kernel_test_device()), "empty sequences")
    nothing = causal_problem([0], 66)
    assert nothing.run(kernel_test_device()).shape == (0, 2, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 128])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_log_sum_exp(
    softcap: float | None, split_keys: int | None, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([90, 31], 300, group=3, kv_heads=2, window=200)
    given.softcap = softcap
    lse = np.full((121, 6), np.nan, np.float32)
    given.run(device_of(kernel_test_device("random", approx="up")), lse=lse, split_keys=split_keys)
    q, k = given.q.astype(np.float64), given.k.astype(np.float64)
    for n in range(121):
        b, keys = int(n >= 90), slice(given.masks["key_begin"][n], given.masks["key_end"][n])
        for head in range(6):
            s = k[b, keys, head // 3] @ q[n, head] * given.scale
            s = s if softcap is None else softcap * np.tanh(s / softcap)
            expected = np.log(np.sum(np.exp(s - s.max()))) + s.max()
            assert abs(lse[n, head] - expected) < 2e-5, (n, head)


@pytest.mark.gpu
def test_bias_is_added_after_the_cap_and_may_hide_everything(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([9], 130, group=2)
    given.softcap = 1.0
    given.bias = np.full((1, 1, 9, 130), -np.inf, np.float32)
    given.bias[0, 0, 3, 100] = 3.0
    given.bias[0, 0, 3, 2] = 3.0
    o = given.run(kernel_test_device())
    given.assert_right(o, "two visible keys")
    assert not o[[0, 1, 2, 4, 5, 6, 7, 8]].any() and o[3].any()


# --- the mask at real sizes ---


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_leaks_into_a_window(window: int, kernel_test_device: KernelTestDevice) -> None:
    """What a query may not see is 1e4 and what it may is 0, for the first and the last query of a tile."""
    for query in (0, TILE // 2 - 1, TILE // 2, 40):
        given = causal_problem([41], window + 300, group=2, window=window)
        given.k[:] = 1  # all scores alike
        begin, end = (int(given.masks[name][query]) for name in ("key_begin", "key_end"))
        given.v[:] = 1e4
        given.v[0, begin:end] = 0
        o = given.run(kernel_test_device(checked=False, shared_bytes=99 * 1024))
        assert not o[query].any(), f"query {query}"
        others = [n for n in range(41) if n != query]
        assert o[others].any(axis=(1, 2)).all(), "every other query sees at least one of the hidden keys"


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
def test_both_ends_of_a_window_are_seen(window: int, kernel_test_device: KernelTestDevice) -> None:
    """The first or the last visible key of a query outweighs all others: the output is its value."""
    for query in (1, 31, 32, 39):
        for name, shift in (("key_begin", 0), ("key_end", -1)):
            given = causal_problem([41], window + 300, group=2, window=window)
            needle = int(given.masks[name][query]) + shift
            given.q[:] = 4
            given.k[:] = 0
            given.k[0, needle] = 4  # a score of 128 against 0
            given.v[:] = 0
            given.v[0, needle] = np.arange(64)
            o = given.run(kernel_test_device(checked=False))
            seen = (given.masks["key_begin"] <= needle) & (needle < given.masks["key_end"])
            assert seen[query] and not seen.all()
            expected = np.where(seen[:, None, None], np.arange(64.0), 0.0)
            np.testing.assert_array_equal(o.astype(np.float64), np.broadcast_to(expected, o.shape))


# --- the same bits ---


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 128])
@pytest.mark.parametrize(("head_dim", "shared_kib"), [(64, 227), (128, 227), (128, 163), (256, 227)])
def test_the_bits_do_not_depend_on_the_schedule(
    head_dim: int, shared_kib: int, split_keys: int | None, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([100, 37], 200, group=2, kv_heads=2, head_dim=head_dim)
    results = [
        given.run(device_of(kernel_test_device(schedule, shared_bytes=shared_kib * 1024)), split_keys=split_keys)
        for schedule in SCHEDULES
    ]
    for o in results[1:]:
        np.testing.assert_array_equal(bits(o), bits(results[0]))


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_bits_do_not_depend_on_the_tiles_of_the_gpu(
    head_dim: int, softcap: float | None, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([150], 210, group=1, head_dim=head_dim, window=100)
    given.softcap = softcap
    for mma in MMA_ROUNDINGS:
        options = {"checked": False, "mma": mma}
        results = [given.run(kernel_test_device(**options, shared_bytes=kib * 1024)) for kib in (99, 163, 227)]
        for o in results[1:]:
            np.testing.assert_array_equal(bits(o), bits(results[0]))


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 64])
def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(
    split_keys: int | None, kernel_test_device: KernelTestDevice
) -> None:
    queries = [70, 1, 200, 33]
    given = causal_problem(queries, 260, group=3, kv_heads=2, window=150)
    together = given.run(kernel_test_device(), split_keys=split_keys)
    for b in range(len(queries)):
        rows, alone = given.part(b)
        np.testing.assert_array_equal(
            bits(alone.run(kernel_test_device(), split_keys=split_keys)), bits(together[rows])
        )


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 64])
def test_a_prompt_gives_the_same_bits_whole_and_in_chunks(
    split_keys: int | None, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([230], 230, group=2, window=90)
    for mma in MMA_ROUNDINGS:
        whole = given.run(kernel_test_device(mma=mma), split_keys=split_keys)
        for start, stop in ((0, 1), (1, 70), (70, 133), (133, 230)):
            rows, chunk = given.part(0, start, stop)
            o = chunk.run(kernel_test_device(mma=mma), split_keys=split_keys)
            np.testing.assert_array_equal(bits(o), bits(whole[rows]))


def test_auto_splits_short_sequences_over_many_keys_alike_alone_and_in_a_batch(
    device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    """Rows of one tile of 64 and one more than that, of group 3; more keys than 1024 and not."""
    queries, keys = [1, 21, 22, 150, 2], 1100
    given = causal_problem(queries, keys, group=3)
    given.masks["key_begin"][-2:] += keys - 1024  # the last sequence sees 1024 keys
    together, never = (given.run(device_of(kernel_test_device("random")), split_keys=split) for split in ("auto", None))
    given.assert_right(together, "auto")
    plan = plan_attention(**given.masks, group=3, head_dim=64, is_plain=True, device=kernel_test_device())
    assert plan.merges is not None and plan.partials == 2 * 3
    assert tiles_of(plan.merges, "MergeTile")["rows"].tolist() == [3, 63]
    for b, is_split in enumerate([True, True, False, False, False]):
        rows, alone = given.part(b)
        np.testing.assert_array_equal(bits(alone.run(kernel_test_device())), bits(together[rows]))
        assert np.array_equal(bits(together[rows]), bits(never[rows])) != is_split


def test_under_auto_chunks_give_the_same_bits_unless_they_are_split(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([1200], 1200, group=1)
    whole = given.run(kernel_test_device(checked=False))
    for start, stop in ((1000, 1065), (1000, 1024), (1130, 1195), (1199, 1200)):
        rows, chunk = given.part(0, start, stop)
        o = chunk.run(kernel_test_device())
        is_split = stop - start <= 64 and stop > 1024
        assert np.array_equal(bits(o), bits(whole[rows])) != is_split
        np.testing.assert_array_equal(bits(chunk.run(kernel_test_device(), split_keys=None)), bits(whole[rows]))


def test_packed_keys_give_the_same_bits_as_rows_of_a_cache(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([70, 1, 33], 130, group=2)
    emulated = kernel_test_device()
    expected, o = given.run(emulated), np.zeros_like(given.q)
    k, v = (x.reshape(1, 390, 1, 64) for x in (given.k, given.v))
    arguments = dict(scale=given.scale, softcap=None, bias=None, device=emulated, **given.masks)
    got = attention(given.q, k, v, cu_seqlens_k=np.array([0, 130, 260, 390], INT32), out=o, **arguments)
    assert got is o
    np.testing.assert_array_equal(bits(o), bits(expected))


@pytest.mark.gpu
def test_strides_are_free(kernel_test_device: KernelTestDevice) -> None:
    """BHSD tensors and a cache with its heads outside, with NaN between what is read."""
    given = causal_problem([75], 130, group=2, kv_heads=2)
    expected = given.run(kernel_test_device())
    q = np.full((4, 80, 128), np.nan, BF16)  # head, token, D
    q[:, :75, :64] = given.q.transpose(1, 0, 2)
    k, v = (np.full((1, 2, slots, width), np.nan, BF16) for slots, width in ((140, 128), (150, 192)))  # row, head, ...
    k[:, :, :130, :64], v[:, :, :130, 64:128] = given.k.transpose(0, 2, 1, 3), given.v.transpose(0, 2, 1, 3)
    arguments = dict(scale=given.scale, softcap=None, bias=None, **given.masks)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k[..., :64], v[:, :, :140, 64:128]))
    o = attention(q[:, :75, :64].transpose(1, 0, 2), k, v, device=kernel_test_device(), **arguments)
    np.testing.assert_array_equal(bits(o), bits(expected))


def test_a_bias_is_broadcast_over_sequences_and_heads(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([20, 20], 90, group=2, kv_heads=2)
    full = np.random.default_rng(1).standard_normal((2, 4, 20, 90)).astype(np.float32)
    for b, h in ((1, 1), (1, 4), (2, 1)):
        given.bias = np.broadcast_to(full[:b, :h], full.shape).copy()
        expected = given.run(kernel_test_device())
        given.bias = full[:b, :h]
        np.testing.assert_array_equal(bits(given.run(kernel_test_device())), bits(expected))


def test_one_plan_serves_many_layers(kernel_test_device: KernelTestDevice) -> None:
    given, emulated = causal_problem([70, 9], 100), kernel_test_device()
    plan = plan_attention(**given.masks, group=2, head_dim=64, is_plain=True, device=emulated, split_keys=64)
    for seed in range(2):
        layer = causal_problem([70, 9], 100, seed=seed)
        arguments: dict[str, Any] = {"scale": layer.scale, "softcap": None, "bias": None, "device": emulated}
        o = attend(plan, layer.q, layer.k, layer.v, **arguments)
        np.testing.assert_array_equal(bits(o), bits(layer.run(emulated, split_keys=64)))


# --- cost ---


@pytest.mark.parametrize("shared_kib", [99, 163, 227])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(("window", "limit"), [(None, 1.10), (512, 1.25)])
def test_products_of_hidden_keys_are_few(
    window: int | None, limit: float, head_dim: int, shared_kib: int, kernel_test_device: KernelTestDevice
) -> None:
    given = causal_problem([2048], 2048, group=1, head_dim=head_dim, window=window)
    emulated = kernel_test_device(checked=False, shared_bytes=shared_kib * 1024)
    plan = plan_attention(**given.masks, group=1, head_dim=head_dim, is_plain=True, device=emulated)
    tiles = key_tiles(tiles_of(plan.table))
    issued = int(tiles.sum()) * plan.tiling.block_q * TILE
    assert issued <= limit * compulsory.visible_pairs(given.masks["key_begin"], given.masks["key_end"])
    assert sorted(tiles, reverse=True) == list(tiles), "the heaviest tiles start first"


def test_the_products_issued_are_those_of_the_plan(kernel_test_device: KernelTestDevice) -> None:
    given = causal_problem([300], 300, group=2, head_dim=128, window=128)
    emulated = kernel_test_device()
    plan = plan_attention(**given.masks, group=2, head_dim=128, is_plain=True, device=emulated)
    tiles = int(key_tiles(tiles_of(plan.table)).sum())
    products = 2 * 128 * TILE * plan.tiling.block_q * tiles
    given.run(emulated)
    assert counted(emulated).mma == products // compulsory.MMA_PRODUCTS


def test_memory_is_read_as_the_contract_says(kernel_test_device: KernelTestDevice) -> None:
    """q and o move once, k and v once per tile of rows that sees them; nothing else but tables is touched."""
    given = causal_problem([256], 256, group=2, head_dim=128)
    emulated, row_bytes = kernel_test_device(), 128 * 2
    given.run(emulated)
    counters = counted(emulated)
    plan = plan_attention(**given.masks, group=2, head_dim=128, is_plain=True, device=emulated)
    table = tiles_of(plan.table)
    keys = int((table["key_end"] - table["key_begin"]).sum())
    assert keys % TILE == 0, "so that no copy is a zero fill"
    assert 16 * counters.async_copies == given.q.nbytes + 2 * keys * row_bytes
    q, k, v = (emulated.from_host(array) for array in (given.q, given.k, given.v))
    least = compulsory.attention(q, q, k, v, **given.masks)
    assert 0 <= counters.global_read_sectors - least.read_sectors <= compulsory.sectors(plan.table)
    assert counters.global_write_bytes == 32 * counters.global_write_sectors == 32 * least.write_sectors
    assert counters.shared_bank_conflicts == 0


def test_every_row_is_in_one_tile(kernel_test_device: KernelTestDevice) -> None:
    rng = np.random.default_rng(0)
    for group, split_keys in ((1, None), (3, 64), (8, 128)):
        given = causal_problem([int(n) for n in rng.integers(0, 200, 6)], 220, window=100)
        plan = plan_attention(
            **given.masks, group=group, head_dim=64, is_plain=True, device=kernel_test_device(), split_keys=split_keys
        )
        table = tiles_of(plan.table)
        last_row = np.repeat(np.diff(given.masks["cu_seqlens"]) * group, 1)[table["batch"]]
        assert (table["first_row"] + table["rows"] <= last_row).all() and (table["rows"] > 0).all()
        seen = np.zeros((6, 200 * group, 220), np.int64)
        for work in table:
            rows = slice(work["first_row"], work["first_row"] + work["rows"])
            seen[work["batch"], rows, work["key_begin"] : work["key_end"]] += 1
        assert seen.max() == 1
        for b in range(6):
            for n in range(int(np.diff(given.masks["cu_seqlens"])[b])):
                token = given.masks["cu_seqlens"][b] + n
                keys = slice(given.masks["key_begin"][token], given.masks["key_end"][token])
                assert seen[b, n * group : (n + 1) * group, keys].all()


# --- refusals ---

Change = Callable[[dict[str, Any]], None]


def change(**values: Any) -> Change:
    return lambda arguments: arguments.update(values)


def cut(name: str, index: Any) -> Change:
    return lambda arguments: arguments.update({name: arguments[name][index]})


def entry(name: str, index: int, value: int) -> Change:
    def apply(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].copy()
        arguments[name][index] = value

    return apply


REFUSED: list[tuple[Change, str]] = [
    (cut("q", 0), r"q is \[4, 64\], expected \[N, H, D\]"),
    (cut("q", np.s_[..., :48]), r"q is \[12, 4, 48\].*D one of 64, 128, 256"),
    (change(q=np.zeros((12, 4, 64), np.float32)), "q is float32, expected bfloat16 or float16"),
    (cut("k", 0), r"k is \[70, 2, 64\], expected \[B, T, KH, D\] with D = 64"),
    (change(k=np.zeros((2, 70, 2, 128), BF16)), r"k is \[2, 70, 2, 128\].*D = 64"),
    (change(k=np.zeros((2, 70, 3, 64), BF16)), "4 query heads do not divide among 3 KV heads"),
    (change(v=np.zeros((2, 71, 2, 64), BF16)), r"v is \[2, 71, 2, 64\], expected \[B, T, KH, D\] = \[2, 70, 2, 64\]"),
    (change(v=np.zeros((2, 70, 2, 64), np.float16)), "v is float16, expected bfloat16 as q"),
    (change(k=np.zeros((3, 70, 2, 64), BF16), v=np.zeros((3, 70, 2, 64), BF16)), "k has 3 cache rows.*2 sequences"),
    (lambda a: a.update(k=a["k"][:, :60], v=a["v"][:, :60]), "key_end reaches 70, k has T = 60 keys"),
    (cut("q", np.s_[:11]), r"q is \[11, 4, 64\].*12 queries"),
    (change(v=np.zeros((2, 70, 2, 128), BF16)[..., ::2]), "last axis of v is not contiguous"),
    (change(k=np.zeros((2, 70, 2, 68), BF16)[..., :64]), "rows of k do not start at multiples of 16 bytes"),
    (change(q=np.zeros(12 * 256 + 1, BF16)[1:].reshape(12, 4, 64)), "rows of q do not start at multiples of 16 bytes"),
    (change(scale=0.0), "scale is 0.0, expected a positive number"),
    (change(scale=float("nan")), "scale is nan"),
    (change(softcap=0.0), "softcap is 0.0, expected a positive number or None"),
    (change(softcap=-5.0), "softcap is -5.0"),
    (change(cu_seqlens=np.array([0, 7, 5, 12], INT32)), r"cu_seqlens is \[0, 7, 5, 12\], expected to rise from 0"),
    (change(cu_seqlens=np.array([0, 7, 11], INT32)), "expected to rise from 0 to N = 12"),
    (change(cu_seqlens=np.array([1, 7, 12], INT32)), "expected to rise from 0"),
    (change(cu_seqlens=np.array([0, 7, 12])), "cu_seqlens is int64"),
    (change(key_begin=[0] * 12), "key_begin is list, expected a NumPy array, int32"),
    (change(key_end=np.zeros((12, 1), INT32)), r"key_end is int32 \[12, 1\]"),
    (change(key_begin=np.zeros(11, INT32)), "key_begin has 11 entries and key_end 12"),
    (entry("key_begin", 3, -1), r"key_begin\[3\] is negative"),
    (entry("key_end", 4, 1), r"key_end\[4\] = 1 is below that of the query before"),
    (entry("key_end", 11, 71), "key_end reaches 71, k has T = 70 keys"),
    (change(split_keys=100), "split_keys is 100, expected a multiple of 64"),
    (change(split_keys=0), "split_keys is 0"),
    (change(split_keys="never"), "split_keys is 'never', expected a multiple of 64, 'auto' or None"),
    (change(bias=np.zeros((1, 1, 6, 70), np.float32)), "a bias needs sequences of equal length"),
    (change(lse=np.zeros((4, 12), np.float32)), r"lse is float32 \[4, 12\], expected contiguous.*\[12, 4\]"),
    (change(lse=np.zeros((12, 4), np.float64)), "lse is float64"),
    (change(out=np.zeros((11, 4, 64), BF16)), r"out is bfloat16 \[11, 4, 64\], expected bfloat16.*\[12, 4, 64\]"),
    (change(out=np.zeros((12, 4, 64), np.float16)), "out is float16"),
    (change(out=np.zeros((12, 4, 68), BF16)[..., :64]), "rows of out do not start at multiples of 16 bytes"),
    (change(cu_seqlens_k=np.array([0, 70, 140])), r"cu_seqlens_k is int64 \[3\], expected int32 \[B \+ 1\] = \[3\]"),
    (change(cu_seqlens_k=np.array([0, 140], INT32)), r"cu_seqlens_k is int32 \[2\]"),
    (change(cu_seqlens_k=np.array([0, 70, 60], INT32)), r"cu_seqlens_k is \[0, 70, 60\], expected to rise from 0"),
    (change(cu_seqlens_k=np.array([0, 60, 140], INT32)), r"key_end\[0\] = 64 reaches into the keys of another"),
    (change(cu_seqlens_k=np.array([0, 70, 140], INT32)), "k has 2 cache rows.*2 sequences of packed keys"),
]  # fmt: skip
PACKED = {"k": np.zeros((1, 140, 2, 64), BF16), "v": np.zeros((1, 140, 2, 64), BF16)}
REFUSED += [
    (change(**PACKED, cu_seqlens_k=np.array([1, 71, 141], INT32)), "key_end reaches 141, k has T = 140 keys"),
    (
        change(**PACKED, cu_seqlens_k=np.array([0, 70, 140], INT32), bias=np.zeros((1, 1, 6, 70), np.float32)),
        "a bias needs keys in one cache row per sequence, not packed ones",
    ),
]
REFUSED_BIAS: list[tuple[Array, str]] = [
    (np.zeros((6, 70), np.float32), r"bias is \[6, 70\], expected.* = \[2 or 1, 4 or 1, 6, 70 or more\]"),
    (np.zeros((3, 1, 6, 70), np.float32), r"bias is \[3, 1, 6, 70\]"),
    (np.zeros((1, 2, 6, 70), np.float32), r"bias is \[1, 2, 6, 70\]"),
    (np.zeros((1, 1, 12, 70), np.float32), r"bias is \[1, 1, 12, 70\]"),
    (np.zeros((1, 1, 6, 69), np.float32), r"bias is \[1, 1, 6, 69\]"),
    (np.zeros((1, 1, 6, 70), np.float64), "bias is float64, expected one of"),
    (np.zeros((1, 1, 70, 6), np.float32).transpose(0, 1, 3, 2), "last axis of bias is not contiguous"),
]  # fmt: skip


class Unused(Emulator):
    """A device that must not be asked to run anything."""

    def launch(self, *args: Any, **options: Any) -> None:
        raise AssertionError("launched")


def refusal(given: Problem, apply: Change) -> str:
    arguments = dict(q=given.q, k=given.k, v=given.v, scale=given.scale, softcap=None, bias=None, **given.masks)
    apply(arguments)
    with pytest.raises(InputError) as info:
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), device=Unused(), **arguments)
    return str(info.value)


@pytest.mark.parametrize(("apply", "words"), REFUSED)
def test_bad_arguments_are_refused_before_a_launch(apply: Change, words: str) -> None:
    given = causal_problem([7, 5], 70, group=2, kv_heads=2)
    given.q, given.k, given.v = (amid_nan(array, Unused()) for array in (given.q, given.k, given.v))
    message = refusal(given, apply)
    assert message.startswith("attention: ")
    assert re.search(words, message), message


@pytest.mark.parametrize(("bias", "words"), REFUSED_BIAS)
def test_a_bias_that_does_not_broadcast_is_refused(bias: Array, words: str) -> None:
    message = refusal(causal_problem([6, 6], 70, group=2, kv_heads=2), change(bias=bias))
    assert message.startswith("attention: ") and re.search(words, message), message


def test_a_device_with_too_little_shared_memory_is_refused(kernel_test_device: KernelTestDevice) -> None:
    with pytest.raises(InputError, match="gives a block 49152 bytes of shared memory, 101376 are needed"):
        causal_problem([3], 9).run(kernel_test_device(shared_bytes=48 * 1024))


def test_a_plan_of_other_queries_is_refused(kernel_test_device: KernelTestDevice) -> None:
    given, emulated = causal_problem([7], 70), kernel_test_device()
    plan = plan_attention(**given.masks, group=1, head_dim=64, is_plain=True, device=emulated)
    with pytest.raises(InputError, match="the plan of 1 heads per KV head"):
        attend(plan, given.q, given.k, given.v, scale=1.0, softcap=None, bias=None, device=emulated)


def test_the_reference_is_the_definition() -> None:
    """A dense softmax over the visible keys, in float64, so that kernel and reference cannot share a mistake."""
    case = Case(
        65, 66, "window spans", (3, 2), 64, "float16", "cap 2 bias float16", 3, None, 227, "forward", "exact", "fast"
    )
    given = problem(case, seed=3)
    o, scores = given.reference(FLOAT64), np.einsum("nhd,nthd->nht", *_repeated(given)) * given.scale
    scores = 2 * np.tanh(scores / 2) + _dense_bias(given)
    t = np.arange(scores.shape[2])
    hidden = (t < given.masks["key_begin"][:, None]) | (t >= given.masks["key_end"][:, None])
    scores[np.broadcast_to(hidden[:, None], scores.shape)] = -np.inf
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p = np.nan_to_num(p / p.sum(axis=2, keepdims=True))
    v = _of_tokens(given, given.v)
    np.testing.assert_allclose(o, np.einsum("nht,nthd->nhd", p, v), rtol=1e-12, atol=1e-12)


def _of_tokens(given: Problem, cache: Array) -> Array:
    """float64 [N, T, H, D]: each token's cache row, KV heads repeated."""
    rows = np.repeat(np.arange(len(cache)), np.diff(given.masks["cu_seqlens"]))
    return np.repeat(cache.astype(np.float64), given.q.shape[1] // cache.shape[2], axis=2)[rows]


def _repeated(given: Problem) -> tuple[Array, Array]:
    return given.q.astype(np.float64), _of_tokens(given, given.k)


def _dense_bias(given: Problem) -> Array:
    """float64 [N, H, T]."""
    assert given.bias is not None
    sequences, heads = len(given.k), given.q.shape[1]
    full = np.broadcast_to(given.bias.astype(np.float64), (sequences, heads, *given.bias.shape[2:]))
    return full.transpose(0, 2, 1, 3).reshape(-1, heads, given.bias.shape[3])
