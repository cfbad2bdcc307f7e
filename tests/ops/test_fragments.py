"""The fragments of the kernels against CuTe's layouts (tests/support/isa/), element by element, on the emulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.isa import layouts
from tests.support.isa.layouts import Array, Layout
from tests.support.isa.probes import CUTE, TYPES, halves, launch, probe

# --- tiles in shared memory ---


def swizzled_chunks() -> Array:
    """int64 [8, 8]: which 16-byte chunk of its row of 128 bytes a chunk becomes under the 128-byte swizzle."""
    table = np.array(layouts.read("swizzle")["128 bytes"]["of_16_bytes"]).reshape(8, 8)
    assert (table // 128 == np.arange(8)[:, None]).all()
    return table % 128 // 16


@pytest.mark.parametrize("width", [64, 128, 256])
def test_tiles_are_swizzled_by_128_bytes(width: int, tmp_path: Path) -> None:
    offset = np.zeros((64, width // 8), np.int32)
    launch(f"tile_offsets<{width}>", [offset], probe(tmp_path, "common/tile.cuh"), grid=64, block=width // 8)
    row, chunk = np.indices(offset.shape)
    expected = width * row + 64 * (chunk // 8) + 8 * swizzled_chunks()[row % 8, chunk % 8]
    np.testing.assert_array_equal(offset, expected)


def test_tiles_of_linear_are_swizzled_by_128_bytes(tmp_path: Path) -> None:
    offset, source = np.zeros((64, 8), np.int32), np.arange(64 * 64, dtype=np.uint16)
    launch("linear_offsets", [offset, source], probe(tmp_path, "linear.cu"), shared=source.nbytes)
    row, chunk = np.indices(offset.shape)
    np.testing.assert_array_equal(offset, 64 * row + 8 * swizzled_chunks()[row % 8, chunk % 8])
    tile = Layout.of(layouts.read("wgmma")["tile"]["K"]["128 bytes"]["64"]["layout"]).addresses()
    np.testing.assert_array_equal(2 * offset, tile[:, ::8])  # what wgmma would read


# --- the kernels' fragments ---


def check_a(width: int, directory: Path, name: str = "bf16") -> None:
    out = np.zeros((width // 16, 32, 4), np.uint32)
    launch(f"a_fragments<{name}, {width}>", [out], directory, shared=32 * width)
    m, k = layouts.mma("a", CUTE[name])
    for step in range(width // 16):
        np.testing.assert_array_equal(halves(out[step]), m * width + 16 * step + k)


def check_b_rows(width: int, tiles: int, directory: Path, name: str = "bf16") -> None:
    out = np.zeros((width // 16, 32, tiles, 2), np.uint32)
    launch(f"b_row_fragments<{name}, {width}, {tiles}>", [out], directory, shared=16 * tiles * width)
    k, n = layouts.mma("b", CUTE[name])
    for step, tile in np.ndindex(width // 16, tiles):
        got = halves(np.ascontiguousarray(out[step, :, tile]))
        np.testing.assert_array_equal(got, (8 * tile + n) * width + 16 * step + k)


def check_b_columns(width: int, tiles: int, directory: Path, name: str = "bf16") -> None:
    steps = width // (8 * tiles)
    out = np.zeros((steps, 32, tiles, 2), np.uint32)
    launch(f"b_column_fragments<{name}, {width}, {tiles}>", [out], directory, shared=32 * width)
    k, n = layouts.mma("b", CUTE[name])
    for step, tile in np.ndindex(steps, tiles):
        got = halves(np.ascontiguousarray(out[step, :, tile]))
        np.testing.assert_array_equal(got, k * width + 8 * (tiles * step + tile) + n)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_fragments_of_a_tile(width: int, name: str, tmp_path: Path) -> None:
    directory = probe(tmp_path, "common/tile.cuh")
    check_a(width, directory, name)
    check_b_rows(width, 8, directory, name)
    check_b_columns(width, 8, directory, name)


def check_linear(tiles: int, directory: Path, name: str = "bf16") -> None:
    x, w = np.zeros((2, 4, 32, 4), np.uint32), np.zeros((4, 32, tiles, 2), np.uint32)
    launch(f"linear_fragments<{name}, {tiles}>", [x, w], directory, shared=128 * 8 * tiles)
    m, k = layouts.mma("a", CUTE[name])
    for block, step in np.ndindex(2, 4):
        np.testing.assert_array_equal(halves(x[block, step]), (16 * block + m) * 64 + 16 * step + k)
    k, n = layouts.mma("b", CUTE[name])
    for step, tile in np.ndindex(4, tiles):
        got = halves(np.ascontiguousarray(w[step, :, tile]))
        np.testing.assert_array_equal(got, (8 * tile + n) * 64 + 16 * step + k)


def check_sums(directory: Path) -> None:
    m, n = layouts.mma("c")
    numbers = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    given = np.zeros((2, 4, 32, 4), np.float32)
    for i, j in np.ndindex(2, 4):
        given[i, j] = numbers[16 * i + m, 8 * j + n]
    by_pair, by_quad = np.zeros_like(numbers), np.zeros_like(numbers)
    launch("placed_sums<2, 4>", [by_pair, by_quad, given], directory)
    np.testing.assert_array_equal(by_pair, numbers)
    np.testing.assert_array_equal(np.sort(by_quad, axis=1), numbers)  # the row is right, the order is its own


@pytest.mark.parametrize("name", TYPES)
def test_fragments_of_linear(name: str, tmp_path: Path) -> None:
    directory = probe(tmp_path, "linear.cu")
    check_linear(4, directory, name)
    check_sums(directory)


def in_registers(matrix: Array, warps: int = 1) -> Array:
    """[32 warps, columns / 8, 4]: the accumulators of a matrix of 16 rows a warp."""
    m, n = layouts.mma("c")
    tiles = matrix.shape[1] // 8
    parts = [[matrix[16 * warp + m, 8 * tile + n] for tile in range(tiles)] for warp in range(warps)]
    return np.ascontiguousarray(np.array(parts).transpose(0, 2, 1, 3).reshape(32 * warps, tiles, 4))


def check_rounded(directory: Path, name: str, columns: int) -> None:
    """What p · v takes as a: small integers, which both types have exactly."""
    numbers = (np.arange(16 * columns * 8, dtype=np.float32) * 7 % 251).reshape(16, -1)
    out = np.zeros((32, columns // 2, 4), np.uint32)
    launch(f"rounded_fragments<{name}, {columns}>", [out, in_registers(numbers)], directory)
    m, k = layouts.mma("a", CUTE[name])
    for step in range(columns // 2):
        got = np.ascontiguousarray(out[:, step]).view(TYPES[name]).astype(np.float32)
        np.testing.assert_array_equal(got, numbers[m, 16 * step + k])


def check_scores(directory: Path) -> None:
    numbers = np.arange(32 * 64, dtype=np.float32).reshape(32, 64)
    out = np.zeros((64, 8, 4), np.float32)
    launch("biased_scores", [out, numbers], directory, block=64, shared=512)
    np.testing.assert_array_equal(out, in_registers(numbers, warps=2))
    rng = np.random.default_rng(0)
    begin, count = (rng.integers(low, 64, 32).astype(np.int32) for low in (40, 0))
    launch("seen_scores", [out, begin, count], directory, block=64, shared=512)
    key = 64 + np.arange(64)
    seen = (begin[:, None] <= key) & (key < (begin + count)[:, None])
    np.testing.assert_array_equal(out, in_registers(np.where(seen, np.float32(0), np.float32(-np.inf)), warps=2))


def check_maxima(directory: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    out = np.zeros((32, 2), np.float32)
    launch("row_maxima", [out, in_registers(scores)], directory)
    m, _ = layouts.mma("c")
    assert (m[:, 0::2] == m[:, 1::2]).all()  # two registers of a row
    np.testing.assert_array_equal(out, scores.max(axis=1)[m[:, ::2]])


def check_output(directory: Path, name: str, width: int) -> None:
    numbers = (np.arange(32 * width, dtype=np.float32) * 7 % 251).reshape(32, width)
    o = np.zeros((32, width), TYPES[name])
    launch(
        f"stored_output<{name}, {width}>",
        [o, in_registers(numbers, warps=2)],
        directory,
        block=64,
        shared=64 * width + 512,
    )
    np.testing.assert_array_equal(o.astype(np.float32), numbers)


@pytest.mark.parametrize("name", TYPES)
def test_fragments_of_attention(name: str, tmp_path: Path) -> None:
    directory = probe(tmp_path, "attention.cu")
    check_rounded(directory, name, 8)
    for width in (64, 256):
        check_output(directory, name, width)


def test_rows_and_keys_of_attention(tmp_path: Path) -> None:
    directory = probe(tmp_path, "attention.cu")
    check_scores(directory)
    check_maxima(directory)


# --- a wrong layout fails ---

MUTANTS: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("common/tile.cuh", "(lane % 16, lane / 16)", "(lane / 2, lane % 2)", lambda d: check_a(64, d)),
    (
        "common/tile.cuh",
        "lane % 8 + lane / 16 * 8, lane / 8 % 2",
        "lane % 16, lane / 16",
        lambda d: check_b_rows(64, 8, d),
    ),
    ("common/tile.cuh", "ldmatrix_x4_trans", "ldmatrix_x4", lambda d: check_b_columns(64, 8, d)),
    (
        "linear.cu",
        "column / kChunk));\n    b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2]",
        "column / kChunk));\n    b[n][0] = pair[0], b[n][1] = pair[2], b[n + 1][0] = pair[1]",
        lambda d: check_linear(4, d),
    ),
    ("linear.cu", "(lane % 16, lane / 16)", "(lane % 16, 1 - lane / 16)", lambda d: check_linear(4, d)),
    ("linear.cu", "kMmaN * n + lane % 4 * 2;", "kMmaN * n + lane / 8 * 2;", check_sums),
    ("linear.cu", "kMmaM * m + 8 * half + lane / 4;", "kMmaM * m + 8 - 8 * half + lane / 4;", check_sums),
    ("linear.cu", "&fragment[m][2 * n + 1][2 * half]", "&fragment[m][2 * n][2 * half]", check_sums),
    ("attention.cu", "[n % 2 * 2 + half]", "[n % 2 + 2 * half]", lambda d: check_rounded(d, "half", 8)),
    ("attention.cu", "params.bias.head + first_key;", "params.bias.head + t + 2 * (lane / 8);", check_scores),
    ("attention.cu", "first_key + kMmaN * n + i)", "first_key + kMmaN * n + 1 - i)", check_scores),
    (
        "attention.cu",
        "(rows_smem + accumulator_row(m, half, lane))",
        "(rows_smem + kMmaM * m + lane / 4 * 2 + half)",
        check_scores,
    ),
    ("attention.cu", "return fmaxf(x, __shfl_xor_sync(kFullMask, x, 2));", "return x;", check_maxima),
    (
        "attention.cu",
        "row = first + accumulator_row(m, half, lane);",
        "row = first + kMmaM * m + lane / 4 * 2 + half;",
        lambda d: check_output(d, "half", 64),
    ),
]


@pytest.mark.parametrize(("of", "before", "after", "check"), MUTANTS)
def test_a_wrong_layout_fails(of: str, before: str, after: str, check: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        check(probe(tmp_path, of, (before, after)))
