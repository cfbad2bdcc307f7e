"""Kernels on arrays of more than 2^32 elements: offsets in 32 bits, signed or not, end elsewhere.

Memory of the emulator takes room only where it is written, and holds poison elsewhere: an element that is read from a
wrong place stops the kernel, one that is written there is missing. Only the blocks that count are run. What they give
has the bits of the same rows in small arrays. Names begin with the kernel's, so that benchmarks.mutate finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import ChooseBlocks, Emulator
from gemma_cuda.device.protocol import Dim
from gemma_cuda.errors import InputError
from gemma_cuda.ops.attention import attend, attention
from gemma_cuda.ops.attention_plan import plan_attention, tiles_of
from gemma_cuda.ops.embed import embed
from gemma_cuda.ops.geglu import geglu
from gemma_cuda.ops.linear import TILINGS, Tiling, linear, linear_geglu
from gemma_cuda.ops.logits import softcap, top_k
from gemma_cuda.ops.qk_norm_rope import qk_norm_rope
from gemma_cuda.ops.rms_norm import add_norm, rms_norm
from tests.support.attention_cases import causal_problem
from tests.support.emulated import Array, kernel_emulator, values

BEYOND = 1 << 32
BF16 = ml_dtypes.bfloat16
HIDDEN, FEATURES = 5376, 21504  # of Gemma 3 27B
SLICE = 512 * 16  # logits, or keys, of a block of top_k


def last_block(_: str, grid: Dim) -> Iterable[Dim]:
    return [(grid[0] - 1, grid[1] - 1, grid[2] - 1)]


def blocks(*numbers: int) -> ChooseBlocks:
    return lambda _, grid: [(number, 0, 0) for number in numbers]


def emulated(choose: ChooseBlocks | None = last_block) -> Emulator:
    return Emulator(checked=True, schedule="random", seed=5, workers=1, only_blocks=choose)


def rows_beyond(width: int) -> int:
    """As many rows of `width` as have more than 2^32 elements before the last of them."""
    return BEYOND // width + 2


def apart(device: Emulator, array: Array, axis: int) -> Array:
    """The same values, with more than 2^32 elements from one index of an axis to the next, or to the 16th next."""
    step = BEYOND // (16 if array.shape[axis] > 16 else 1) + 64
    assert step > array.size
    strides = np.array(array.strides)
    strides[axis] = step * array.itemsize
    room = device.empty(((array.shape[axis] - 1) * step + array.size,), array.dtype)
    placed = np.lib.stride_tricks.as_strided(room, array.shape, strides.tolist())
    placed[...] = array
    return placed


def assert_same_bits(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()


# --- rows: embed, rms_norm, qk_norm_rope, geglu, logits ---


@pytest.mark.parametrize("large", ["table", "features", "x"])
def test_embed(large: str) -> None:
    device = emulated()
    tokens, rows, features = (rows_beyond(HIDDEN) if large == name else 3 for name in ("x", "table", "features"))
    table, added = device.empty((rows, HIDDEN), BF16), device.empty((features, HIDDEN), BF16)
    table[-1], added[-1] = values(0, HIDDEN, dtype="bfloat16"), values(1, HIDDEN, dtype="bfloat16")
    ids, index = np.zeros(tokens, np.int32), np.full(tokens, -1, np.int32)
    ids[-2:], index[-1] = rows - 1, features - 1
    device.only_blocks = blocks(tokens - 2, tokens - 1)
    x = embed(ids, table, scale=2.0, device=device, features=added, feature_index=index)
    small = embed(np.zeros(1, np.int32), table[-1:].copy(), scale=2.0, device=kernel_emulator())
    assert_same_bits(x[-2], small[0])
    assert_same_bits(x[-1], added[-1])


def test_rms_norm() -> None:
    device, weight, rows = emulated(), values(0, HIDDEN, dtype="bfloat16"), rows_beyond(HIDDEN)
    x = device.empty((rows, HIDDEN), BF16)
    x[-1] = values(1, HIDDEN, dtype="bfloat16")
    y = rms_norm(x, weight, eps=1e-6, device=device)
    assert_same_bits(y[-1:], rms_norm(x[-1:].copy(), weight, eps=1e-6, device=kernel_emulator()))


@pytest.mark.parametrize("has_post", [True, False])
def test_rms_norm_of_a_sum(has_post: bool) -> None:
    device, rows = emulated(), rows_beyond(HIDDEN)
    weights: dict[str, Any] = {
        "pre_weight": values(0, HIDDEN, dtype="bfloat16"),
        "post_weight": values(1, HIDDEN, dtype="bfloat16") if has_post else None,
    }
    residual, branch = device.empty((rows, HIDDEN), BF16), device.empty((rows, HIDDEN), BF16)
    residual[-1], branch[-1] = values(2, HIDDEN, dtype="bfloat16"), values(3, HIDDEN, dtype="bfloat16")
    small = add_norm(residual[-1:].copy(), branch[-1:].copy(), **weights, eps=1e-6, device=kernel_emulator())
    for got, expected in zip(add_norm(residual, branch, **weights, eps=1e-6, device=device), small, strict=True):
        assert_same_bits(got[-1:], expected)


@pytest.mark.parametrize("large", ["x and q", "caches", "angles"])
def test_qk_norm_rope(large: str) -> None:
    """The last token's heads: one block has its queries and keys, another its values and those of 7 tokens before."""
    heads, kv_heads, head_dim = 14, 2, 128
    tokens = rows_beyond(heads * head_dim) // 8 * 8 + 8 if large == "x and q" else 8
    device = emulated(blocks(tokens - 1, tokens + tokens // 8 - 1))
    slots, positions = (
        rows_beyond(width) if large == name else 2 for name, width in (("caches", kv_heads * 128), ("angles", 64))
    )
    x = device.empty((tokens, (heads + 2 * kv_heads) * head_dim), BF16)
    x[-8:] = values(0, 8, x.shape[1], dtype="bfloat16")
    cos, sin = (device.empty((positions, head_dim // 2), np.float32) for _ in range(2))
    angles = np.random.default_rng(1).uniform(0, 6, head_dim // 2)
    cos[-1], sin[-1] = np.cos(angles), np.sin(angles)
    k, v = (device.empty((slots, kv_heads, head_dim), BF16) for _ in range(2))
    slot, position = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32)
    slot[-1], position[-1] = slots - 1, positions - 1
    options: dict[str, Any] = {
        "heads": heads, "eps": 1e-6, "plus_one": True, "v_norm": True,
        "q_weight": values(2, head_dim, dtype="bfloat16"), "k_weight": values(3, head_dim, dtype="bfloat16"),
    }  # fmt: skip
    q = qk_norm_rope(
        x, cos=cos, sin=sin, k_cache=k, v_cache=v, slots=slot, positions=position, device=device, **options
    )
    small_k, small_v = (np.zeros((1, kv_heads, head_dim), BF16) for _ in range(2))
    small_q = qk_norm_rope(
        x[-1:].copy(), cos=cos[-1:].copy(), sin=sin[-1:].copy(), k_cache=small_k, v_cache=small_v,
        device=kernel_emulator(), **options,
    )  # fmt: skip
    for got, expected in ((q, small_q), (k, small_k), (v, small_v)):
        assert_same_bits(got[-1:], expected)


def test_geglu() -> None:
    device, rows = emulated(), rows_beyond(FEATURES)
    packed = device.empty((rows, 2 * FEATURES), BF16)
    packed[-1] = values(0, 2 * FEATURES, dtype="bfloat16")
    y = geglu(packed[:, :FEATURES], packed[:, FEATURES:], device=device)
    last = packed[-1:].copy()
    expected = geglu(last[:, :FEATURES], last[:, FEATURES:], device=kernel_emulator())
    in_block = FEATURES % (256 * 8)  # the last block's
    assert_same_bits(y[-1, -in_block:], expected[0, -in_block:])


@pytest.mark.parametrize(("width", "in_block"), [(1 << 18, 1024), ((1 << 18) + 1, 1)])
def test_logits_softcap(width: int, in_block: int) -> None:
    """Vectors of 4, and single elements, of which there are more than 2^32, too."""
    device = emulated()
    z = device.empty((BEYOND // (1 << 18) + 1, width), np.float32)
    z[-1, -in_block:] = values(0, in_block, dtype="float32", scale=40.0)
    expected = softcap(z[-1:, -in_block:].copy(), 30.0, device=kernel_emulator())
    assert_same_bits(softcap(z, 30.0, device=device)[-1:, -in_block:], expected)


def test_logits_top_k() -> None:
    """Both passes of the last row; keys that other blocks would leave are put there."""
    device, width = emulated(), 1 << 18
    z = device.empty((BEYOND // width + 1, width), np.float32)
    z[-1] = values(0, width, dtype="float32")
    device.only_blocks = lambda _, grid: [(x, grid[1] - 1, 0) for x in range(grid[0])]
    got, expected = top_k(z, 3, device=device), top_k(z[-1:].copy(), 3, device=kernel_emulator())
    for large, small in zip(got, expected, strict=True):
        assert_same_bits(large[-1:], small)


def test_logits_top_k_of_many_slices() -> None:
    """The kernel alone: the op would need 1 TiB of logits for so many keys."""
    rows, k, slices = 65535, 64, BEYOND // (65535 * 64) + 1
    device = emulated()
    keys = device.empty((rows, slices, k), np.uint64)
    z = np.zeros((rows, 1), np.float32)
    device.launch("top_k<Logits, 1>", (slices, rows), (512,), 256, [None, None, keys, z, None, 1, 1, k])
    assert not keys[-1, -1].any()  # nothing is left for the last slice
    keys[-1, -1] = np.arange(100, 100 + k)
    best = device.empty((rows, -(-slices * k // SLICE), k), np.uint64)
    device.launch("top_k<Keys, 1>", (best.shape[1], rows), (512,), 256, [None, None, best, z, keys, slices * k, 1, k])
    assert best[-1, -1].tolist() == list(range(99 + k, 99, -1))


# --- linear ---


@pytest.mark.parametrize("op", ["linear", "geglu", "residual", "float32"])
def test_linear(op: str) -> None:
    """x, the weight and y are large at once; the last tile of a grid is run."""
    device, tiling, depth = emulated(), TILINGS[-1], 64
    run, parts = (linear_geglu, 2) if op == "geglu" else (linear, 1)
    rows, columns = 128 * 129, 1 << 18  # a tile of rows beyond a group of them
    m, n = tiling.block_m, tiling.block_n // parts
    x, weight = (
        device.empty((count, 2 * BEYOND // count // 8 * 8), BF16)[:, :depth] for count in (rows, parts * columns)
    )
    small_x, small_weight = values(0, m, depth, dtype="bfloat16"), values(1, parts * n, depth, dtype="bfloat16")
    x[-m:] = small_x
    for part in range(parts):  # gate, then up
        weight[(part + 1) * columns - n :][:n] = small_weight[part * n :][:n]
    options: dict[str, Any] = {"out_dtype": np.float32} if op == "float32" else {}
    small_options = dict(options)
    if op == "residual":
        options["residual"] = device.empty((rows, columns), BF16)
        small_options["residual"] = values(2, m, n, dtype="bfloat16")
        options["residual"][-m:, -n:] = small_options["residual"]
    y = run(x, weight, device=device, tiling=tiling, **options)
    expected = run(small_x, small_weight, device=kernel_emulator(), tiling=tiling, **small_options)
    assert_same_bits(y[-m:, -n:], expected)


@pytest.mark.parametrize("large", ["x", "weight"])
def test_linear_of_rows_far_apart(large: str) -> None:
    device, x, weight = emulated(None), values(0, 5, 72, dtype="bfloat16"), values(1, 9, 72, dtype="bfloat16")
    expected = linear(x, weight, device=kernel_emulator())
    x, weight = (apart(device, a, 0) if large == name else a for name, a in (("x", x), ("weight", weight)))
    assert_same_bits(linear(x, weight, device=device), expected)


def test_linear_that_shares_k() -> None:
    """Sums of the last tile, and of the one whose place they would take if offsets were cut to 32 bits."""
    tiling, tiles, depth = Tiling(128, 128, 3, split=True), 363, 264
    device = emulated(
        lambda _, grid: [(x, y, 0) for x in (grid[0] - 1, grid[0] - 1 - BEYOND // (2 * 128 * 128)) for y in (0, 1)]
    )
    x, weight = (device.zeros((tiles * 128, depth), BF16) for _ in range(2))
    x[-128:], weight[-128:] = (values(i, 128, depth, dtype="bfloat16") for i in range(2))
    assert tiles * tiles * 2 * 128 * 128 > BEYOND + 2 * 128 * 128
    y = linear(x, weight, device=device, tiling=tiling)
    expected = linear(x[-128:].copy(), weight[-128:].copy(), device=kernel_emulator(), tiling=tiling)
    assert_same_bits(y[-128:, -128:], expected)


# --- attention ---


@pytest.mark.parametrize("split_keys", [None, 64])
@pytest.mark.parametrize("spread", ["rows", "tokens", "heads"])
def test_attention(spread: str, split_keys: int | None) -> None:
    """Cache rows, tokens or heads lie so far apart that the last begins beyond 2^32 elements."""
    device = emulated(None)
    given = causal_problem([40, 9], 70, group=2, kv_heads=2)
    options: dict[str, Any] = {"scale": given.scale, "softcap": None, "bias": None, **given.masks}
    q_axis, k_axis = {"rows": (None, 0), "tokens": (0, 1), "heads": (1, 2)}[spread]
    q, o = given.q, np.zeros_like(given.q)
    if q_axis is not None:
        q, o = apart(device, q, q_axis), apart(device, o, q_axis)
    k, v = apart(device, given.k, k_axis), apart(device, given.v, k_axis)
    got = attention(q, k, v, device=device, out=o, split_keys=split_keys, **options)
    expected = attention(given.q, given.k, given.v, device=kernel_emulator(), split_keys=split_keys, **options)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_attention_with_a_bias(axis: int) -> None:
    device = emulated(None)
    given = causal_problem([18, 18], 70, group=2, kv_heads=2)
    bias = values(0, 2, 4, 18, 70, dtype="float32")
    options: dict[str, Any] = {"scale": given.scale, "softcap": None, **given.masks}
    got = attention(given.q, given.k, given.v, bias=apart(device, bias, axis), device=device, **options)
    expected = attention(given.q, given.k, given.v, bias=bias, device=kernel_emulator(), **options)
    assert_same_bits(got, expected)


def overlapping(shape: tuple[int, int, int], *, heads_apart: bool) -> Array:
    """Zeros [N, H, D] of which all heads, or all tokens, are the same memory."""
    tokens, heads, width = shape
    room = np.zeros((heads if heads_apart else tokens, width), BF16)
    strides = (0, 2 * width, 2) if heads_apart else (2 * width, 0, 2)
    return np.lib.stride_tricks.as_strided(room, shape, strides)


def test_attention_lse() -> None:
    """The last tile of a long sequence, and a decoding step whose keys are split, over very many KV heads."""
    kv_heads, head_dim, keys = 1024, 64, 1100
    tokens = BEYOND // kv_heads + 129
    device = emulated()
    k = np.broadcast_to(values(0, 2, keys, 1, head_dim, dtype="bfloat16"), (2, keys, kv_heads, head_dim))
    q, o = (overlapping((tokens, kv_heads, head_dim), heads_apart=False) for _ in range(2))
    q[-2:, -1] = values(1, 2, head_dim, dtype="bfloat16")
    begin, end, cu_seqlens = (
        np.zeros(tokens, np.int32),
        np.full(tokens, 64, np.int32),
        np.array([0, tokens - 1, tokens]),
    )
    end[-1] = keys
    shape: dict[str, Any] = {"group": 1, "head_dim": head_dim, "is_plain": True}
    plan = plan_attention(begin, end, cu_seqlens.astype(np.int32), device=device, **shape)
    assert plan.merges is not None and plan.partials == 3
    # Table rows of the long sequence's last tile and of the parts; a grid has 65535 of them.
    table = tiles_of(plan.table)
    chosen = np.flatnonzero((table["batch"] == 1) | (table["first_row"] >= tokens - 1 - 128))

    launched = 0

    def choose(instance: str, grid: Dim) -> list[Dim]:
        nonlocal launched
        if "merge" in instance:
            return [(kv_heads - 1, 0, 0)]
        rows = chosen[(chosen >= launched) & (chosen < launched + grid[1])] - launched
        launched += grid[1]
        return [(kv_heads - 1, int(row), 0) for row in rows]

    device.only_blocks = choose
    lse = device.empty((tokens, kv_heads), np.float32)
    options: dict[str, Any] = {"scale": 0.125, "softcap": None, "bias": None}
    attend(plan, q, k, k, device=device, out=o, lse=lse, **options)
    small = np.zeros((2, 1), np.float32)
    masks = {"key_begin": begin[-2:], "key_end": end[-2:], "cu_seqlens": np.array([0, 1, 2], np.int32)}
    expected = attention(
        q[-2:, -1:].copy(),
        k[:, :, -1:].copy(),
        k[:, :, -1:].copy(),
        lse=small,
        device=kernel_emulator(),
        **options,
        **masks,
    )
    assert_same_bits(lse[-2:, -1:], small)
    assert_same_bits(o[-2:, -1:], expected)


def test_attention_partial_results() -> None:
    kv_heads, head_dim, keys = 1 << 16, 256, 5 * 64
    k = np.broadcast_to(values(0, 1, keys, 1, head_dim, dtype="bfloat16"), (1, keys, kv_heads, head_dim))
    q, o = (overlapping((1, kv_heads, head_dim), heads_apart=True) for _ in range(2))
    q[:, -1] = values(1, head_dim, dtype="bfloat16")
    device = emulated(lambda _, grid: [(grid[0] - 1, y, 0) for y in range(grid[1])])
    options: dict[str, Any] = {
        "scale": 0.06, "softcap": None, "bias": None, "split_keys": 64, "key_begin": np.zeros(1, np.int32),
        "key_end": np.array([keys], np.int32), "cu_seqlens": np.array([0, 1], np.int32),
    }  # fmt: skip
    attention(q, k, k, device=device, out=o, **options)
    small = k[:, :, :1].copy()
    assert_same_bits(o[:, -1:], attention(q[:, -1:].copy(), small, small, device=kernel_emulator(), **options))


# --- what int cannot count is refused ---


def refused(op: Any, *args: Any, **options: Any) -> str:
    """The words in which an op refuses its arguments, before anything is launched or made."""
    device = emulated()
    with pytest.raises(InputError) as info:
        op(*args, device=device, **options)
    assert device.counters is None
    return str(info.value)


def array_of(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> Array:
    """An array that nobody reads, of any shape and strides."""
    return np.lib.stride_tricks.as_strided(np.zeros(64, dtype), shape, strides)


def test_linear_refuses_what_int_cannot_count() -> None:
    short, long = np.zeros((8, 8), BF16), array_of((2**31 - 255, 8), BF16, (16, 2))
    for x, weight in ((long, short), (short, long)):
        assert "no axis may exceed 2147483392" in refused(linear, x, weight)


def test_top_k_refuses_what_int_cannot_count() -> None:
    z = array_of((1, 2**31 - SLICE + 1), np.float32, (4, 4))
    assert "z has 2147475457 logits in a row, at most 2147475456 are possible" in refused(top_k, z, 1)


def test_qk_norm_rope_refuses_what_int_cannot_count() -> None:
    table = np.zeros((1, 32), np.float32)
    options: dict[str, Any] = {"heads": 4, "cos": table, "sin": table, "eps": 1e-6}
    far = array_of((2, 4 * 64), BF16, (2**32, 2))
    assert "the rows of x are 2147483648 elements apart, more than 2147483647" in refused(qk_norm_rope, far, **options)
    tokens = 2**29
    many = array_of((tokens, 4 * 64), BF16, (512, 2))
    options |= {name: array_of((tokens, 32), np.float32, (128, 4)) for name in ("cos", "sin")}
    assert "536870912 tokens of 4 + 2 · 0 heads are more than 2147483520 heads" in refused(
        qk_norm_rope, many, **options
    )


def test_attention_refuses_what_int_cannot_count() -> None:
    masks = {"key_begin": np.zeros(1, np.int32), "cu_seqlens": np.array([0, 1], np.int32)}
    shape: dict[str, Any] = {"group": 1, "head_dim": 64, "is_plain": True}
    words = refused(plan_attention, key_end=np.array([2**31 - 256], np.int32), **masks, **shape)
    assert "key_end reaches 2147483392, at most 2147483391 keys are possible" in words
    masks["key_end"] = np.array([128], np.int32)
    heads = 2**24  # of which each leaves 2 parts of 64 rows
    q, k = array_of((1, heads, 64), BF16, (0, 0, 2)), array_of((1, 128, heads, 64), BF16, (0, 0, 0, 2))
    options: dict[str, Any] = {"scale": 1.0, "softcap": None, "bias": None, "split_keys": 64}
    words = refused(attention, q, k, k, **options, **masks)
    assert "16777216 KV heads into 2 partial results of 64 rows, more than 2147483647 rows" in words
    many = 2**20
    masks = {name: np.zeros(many, np.int32) for name in ("key_begin", "key_end")}
    masks["cu_seqlens"] = np.array([0, many], np.int32)
    words = refused(plan_attention, **masks, **(shape | {"group": 2**11 + 1}))
    assert "1048576 queries of 2049 heads per KV head are more than 2147483647 rows" in words
