"""linear on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_cuda.errors import InputError
from gemma_cuda.ops.linear import Tiling, choose_tiling, linear
from gemma_cuda.reference.linear import linear as reference_linear
from gemma_cuda.reference.precision import FLOAT64
from tests.compare import assert_within_rule
from tests.emulated import (
    HALF_DTYPES,
    ROUNDING,
    SCHEDULES,
    Array,
    DeviceOf,
    amid_nan,
    checked,
    counted,
    sectors,
    values,
)

TILINGS = [Tiling(16, 64, 4), Tiling(32, 64, 4), Tiling(64, 128, 3), Tiling(128, 128, 3)]


def check(x: Array, w: Array, y: Array, dtype: str, out: str) -> None:
    exact = reference_linear(x.astype(np.float64), w.astype(np.float64), precision=FLOAT64)
    if out == "float32":
        rounded = summed_one_by_one(x.astype(np.float32), w.astype(np.float32))
    else:
        rounded = reference_linear(x.astype(np.float32), w.astype(np.float32), precision=ROUNDING[dtype])
    assert_within_rule(y, exact, rounded, dtype=out, what=f"linear {x.shape} {w.shape} {dtype} {out}")


def summed_one_by_one(x: Array, w: Array) -> Array:
    """The product with a tensor core's rounding points: to float32 after every product of a sum.

    BLAS, which the reference is, sums in blocks, so its error grows more slowly with K than that of any mma.
    """
    sums = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        sums += (x[:, k, None] * w[:, k]).astype(np.float32)
    return sums


# One tile less one, exactly, more, two and three in both directions; K below, at and above a step and the stages.
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_equals_the_reference(tiling: Tiling, dtype: str, device_of: DeviceOf) -> None:
    m, n = tiling.block_m, tiling.block_n
    shapes = [(1, 8, 8), (m, n, 64), (m - 1, n + 8, 200), (m + 1, 2 * n + 24, 72), (2 * m + 3, 64, 56), (m, n - 8, 448)]
    for i, (rows, columns, depth) in enumerate(shapes):
        x, w = values(i, rows, depth, dtype=dtype), values(i + 9, columns, depth, dtype=dtype)
        device = device_of(checked(SCHEDULES[i % 3]))
        y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, tiling=tiling)
        assert y.dtype == x.dtype
        check(x, w, device.to_host(y), dtype, dtype)


def test_more_row_tiles_than_share_a_pass_over_the_weight() -> None:
    """16 tiles of rows form a group: one group and a part, two and a part, over several tiles of columns."""
    for rows in (17 * 16, 35 * 16 + 1):
        x, w = values(0, rows, 16, dtype="bfloat16"), values(1, 2 * 64 + 8, 16, dtype="bfloat16")
        y = linear(x, w, device=checked("random"), tiling=TILINGS[0])
        check(x, w, y, "bfloat16", "bfloat16")


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 12, 66, 136])
def test_any_number_of_columns_and_float32_out(columns: int, dtype: str, device_of: DeviceOf) -> None:
    for i, out in enumerate((dtype, "float32")):
        x, w = values(i, 5, 80, dtype=dtype), values(i + 9, columns, 80, dtype=dtype)
        device = device_of(checked(SCHEDULES[1 + i]))
        out_dtype = x.dtype if out == dtype else np.float32
        y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, out_dtype=out_dtype)
        assert y.dtype.name == out
        check(x, w, device.to_host(y), dtype, out)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(7, 1536, 640), (1, 640, 2048), (70, 1536, 640)])
def test_sizes_of_gemma_3_270m(rows: int, columns: int, depth: int) -> None:
    x, w = values(0, rows, depth, dtype="bfloat16"), values(1, columns, depth, dtype="bfloat16", scale=0.05)
    for out in ("bfloat16", "float32"):
        y = linear(x, w, device=checked(checked=False), out_dtype=x.dtype if out == "bfloat16" else np.float32)
        check(x, w, y, "bfloat16", out)


def test_a_row_has_the_same_bits_alone_in_any_tile_schedule_and_build() -> None:
    x, w = values(0, 70, 136, dtype="bfloat16"), values(1, 72, 136, dtype="bfloat16")
    expected = linear(x, w, device=checked(workers=1))
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for options in ({}, {"checked": False}):
            device = checked(schedule, seed=seed, workers=workers, **options)
            assert linear(x, w, device=device).tobytes() == expected.tobytes()
    for tiling in TILINGS:
        assert linear(x, w, device=checked(checked=False), tiling=tiling).tobytes() == expected.tobytes()
    for i in (0, 15, 16, 69):
        assert linear(x[i : i + 1], w, device=checked()).tobytes() == expected[i].tobytes()


def test_what_lies_beyond_the_rows_and_k_is_not_used() -> None:
    """Memory on all sides is NaN, and so is a row of x: only its row of y is."""
    x, w = values(0, 19, 72, dtype="float16"), values(1, 70, 72, dtype="float16")
    x[3] = np.nan
    device = checked()
    y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=64), device=device).astype(np.float32)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("out", ["bfloat16", "float32"])
def test_cost_is_what_the_shapes_demand(tiling: Tiling, out: str) -> None:
    emulator = checked()
    m, n, k = 2 * tiling.block_m, 2 * tiling.block_n, 256
    x, w = (emulator.from_host(values(i, rows, k, dtype="bfloat16")) for i, rows in enumerate((m, n)))
    y = linear(x, w, device=emulator, tiling=tiling, out_dtype=x.dtype if out == "bfloat16" else np.float32)
    counters = counted(emulator)
    assert counters.mma == m * n * k // (16 * 8 * 16)
    assert counters.global_read_sectors <= 1.02 * sectors([x, w])
    assert counters.global_write_sectors <= 1.02 * sectors([y])
    assert counters.shared_bank_conflicts == 0
    moved = counters.global_read_bytes + counters.global_write_bytes
    assert moved == 2 * (x.nbytes + w.nbytes) + y.nbytes
    assert moved == 512 * counters.global_requests and counters.sectors_per_request == 16
    assert counters.barriers == counters.blocks * (k // 64 + 2)


def test_the_tiling_follows_the_shape() -> None:
    rows = [1, 16, 17, 32, 33, 64, 8192]
    assert [choose_tiling(m, 2048).block_m for m in rows] == [16, 16, 32, 32, 64, 64, 128]
    assert choose_tiling(512, 640).block_m == 64  # 20 tiles of 128 × 128 would leave most of a GPU idle
    assert max(t.shared_bytes(4) for t in TILINGS) <= 99 * 1024


def test_no_rows() -> None:
    assert linear(np.zeros((0, 8), np.float16), np.zeros((4, 8), np.float16), device=checked()).shape == (0, 4)
    assert linear(np.zeros((4, 8), np.float16), np.zeros((0, 8), np.float16), device=checked()).shape == (4, 0)


X, W = np.zeros((4, 16), np.float16), np.zeros((3, 16), np.float16)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((2, 3, 16), np.float16)}, "x is [2, 3, 16], expected [M, K]"),
    ({"weight": np.zeros(16, np.float16)}, "weight is [16], expected [N, K]"),
    ({"x": np.zeros((4, 16), np.float32)}, "x is float32, expected bfloat16 or float16"),
    ({"weight": np.zeros((3, 16), np.float32)}, "weight is float32, expected float16 as x"),
    ({"weight": np.zeros((3, 24), np.float16)}, "weight is [3, 24], expected [N, K] = [3, 16]"),
    ({"x": np.zeros((4, 12), np.float16), "weight": np.zeros((3, 12), np.float16)}, "with K a multiple of 8"),
    ({"x": np.zeros((4, 0), np.float16), "weight": np.zeros((3, 0), np.float16)}, "with K a multiple of 8"),
    ({"x": np.zeros((4, 32), np.float16)[:, ::2]}, "the rows of x are not contiguous"),
    ({"weight": np.zeros((3, 20), np.float16)[:, :16]}, "weight starts, or has rows that start, off a multiple of 16"),
    ({"x": np.zeros((4, 24), np.float16)[:, 1:17]}, "x starts, or has rows that start, off a multiple of 16 bytes"),
    ({"out_dtype": np.float64}, "out_dtype is float64, expected float16 or float32"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "weight": W, **changes}
    device = checked()
    with pytest.raises(InputError) as info:
        linear(arguments.pop("x"), arguments.pop("weight"), **arguments, device=device)
    assert message in str(info.value) and str(info.value).startswith("linear: ")
    assert device.counters is None
