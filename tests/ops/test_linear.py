"""linear on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.cuda.compile import SHARED_BYTES
from gemma_cuda.device.emulator.device import Emulator, MmaRounding
from gemma_cuda.errors import InputError
from gemma_cuda.ops.geglu import geglu
from gemma_cuda.ops.linear import TILINGS, Tiling, choose_tiling, linear, linear_geglu, split_counters, split_steps
from gemma_cuda.ops.logits import softcap
from gemma_cuda.precision import FLOAT64, Precision
from gemma_cuda.reference.linear import linear as reference_linear
from gemma_cuda.reference.linear import linear_geglu as reference_linear_geglu
from tests.support import compulsory
from tests.support.compare import DTYPES, assert_within_rule
from tests.support.emulated import (
    HALF_DTYPES,
    MMA_ROUNDINGS,
    SCHEDULES,
    Array,
    DeviceOf,
    KernelTestDevice,
    amid_nan,
    assert_moves_little_more,
    bounds,
    counted,
    on_cuda,
    values,
)
from tests.support.linear_cases import assert_is_product, summed_one_by_one

pytestmark = pytest.mark.mma

SPLIT = [replace(tiling, split=True) for tiling in TILINGS]
CAPABLE = 227 * 1024


# One tile less one, exactly, more, two and three in both directions; K below, at and above a step and the stages.
@pytest.mark.gpu
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_equals_the_reference(
    tiling: Tiling, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    m, n = tiling.block_m, tiling.block_n
    shapes = [(1, 8, 8), (m, n, 64), (m - 1, n + 8, 200), (m + 1, 2 * n + 24, 72), (2 * m + 3, 64, 56), (m, n - 8, 448)]
    for i, (rows, columns, depth) in enumerate(shapes):
        x, w = values(i, rows, depth, dtype=dtype), values(i + 9, columns, depth, dtype=dtype)
        device = device_of(kernel_test_device(SCHEDULES[i % 3], mma=MMA_ROUNDINGS[i // 2]))
        y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, tiling=tiling)
        assert y.dtype == x.dtype
        assert_is_product(x, w, device.to_host(y), dtype, dtype)


# A split less a vector, exactly, more; two; two and a part of a third.
@pytest.mark.gpu
@pytest.mark.parametrize("tiling", SPLIT, ids=str)
def test_blocks_that_share_k(tiling: Tiling, kernel_test_device: KernelTestDevice) -> None:
    m, n = tiling.block_m, tiling.block_n
    shapes = [(1, 8, 248), (m, n, 256), (m - 1, n + 8, 264), (m + 1, 2 * n + 24, 512), (2 * m + 3, 10, 648)]
    for i, (rows, columns, depth) in enumerate(shapes):
        dtype = HALF_DTYPES[i % 2]
        x, w = values(i, rows, depth, dtype=dtype), values(i + 9, columns, depth, dtype=dtype)
        emulator = kernel_test_device(SCHEDULES[i % 3], mma=MMA_ROUNDINGS[i // 2])
        x_in, w_in = amid_nan(x, emulator, gap=64), amid_nan(w, emulator, gap=8)
        y = linear(x_in, w_in, device=emulator, tiling=tiling)
        if isinstance(emulator, Emulator):
            assert counted(emulator).blocks == tiling.blocks(rows, columns) * -(-depth // 256)
        assert_is_product(x, w, y, dtype, dtype)


def test_sums_start_anew_at_places_that_k_alone_decides() -> None:
    assert [64 * split_steps(k) for k in (8, 256, 4096, 4104, 8192, 8200, 21504)] == [256] * 3 + [512, 512, 768, 1536]


@pytest.mark.gpu
def test_more_row_tiles_than_share_a_pass_over_the_weight(kernel_test_device: KernelTestDevice) -> None:
    """16 tiles of rows form a group: one group and a part, two and a part, over tiles of columns, whole and not."""
    for rows, columns in ((17 * 16, 2 * 64), (35 * 16 + 1, 2 * 64 + 8)):
        x, w = values(0, rows, 16, dtype="bfloat16"), values(1, columns, 16, dtype="bfloat16")
        y = linear(x, w, device=kernel_test_device("random"), tiling=TILINGS[0])
        assert_is_product(x, w, y, "bfloat16", "bfloat16")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 12, 66, 136])
def test_any_number_of_columns_and_float32_out(
    columns: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, out in enumerate((dtype, "float32")):
        x, w = values(i, 5, 80, dtype=dtype), values(i + 9, columns, 80, dtype=dtype)
        device = device_of(kernel_test_device(SCHEDULES[1 + i]))
        out_dtype = x.dtype if out == dtype else np.float32
        y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, out_dtype=out_dtype)
        assert y.dtype.name == out
        assert_is_product(x, w, device.to_host(y), dtype, out)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "columns", "depth"), [(7, 1536, 640), (1, 640, 2048), (70, 1536, 640)])
def test_sizes_of_gemma_3_270m(rows: int, columns: int, depth: int, kernel_test_device: KernelTestDevice) -> None:
    x, w = values(0, rows, depth, dtype="bfloat16"), values(1, columns, depth, dtype="bfloat16", scale=0.05)
    for mma in MMA_ROUNDINGS:
        for out in ("bfloat16", "float32"):
            device = kernel_test_device(checked=False, mma=mma)
            y = linear(x, w, device=device, out_dtype=x.dtype if out == "bfloat16" else np.float32)
            assert_is_product(x, w, y, "bfloat16", out)


@pytest.mark.gpu
@pytest.mark.parametrize("mma", MMA_ROUNDINGS)
def test_a_row_has_the_same_bits_alone_in_any_tile_schedule_and_build(
    mma: MmaRounding, kernel_test_device: KernelTestDevice
) -> None:
    x, w = values(0, 70, 616, dtype="bfloat16"), values(1, 72, 616, dtype="bfloat16")
    expected = linear(x, w, device=kernel_test_device(workers=1, mma=mma), tiling=TILINGS[0])
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for options in ({}, {"checked": False}):
            device = kernel_test_device(schedule, seed=seed, workers=workers, mma=mma, **options)
            assert linear(x, w, device=device).tobytes() == expected.tobytes()
    for tiling in (*TILINGS, *SPLIT):
        assert (
            linear(x, w, device=kernel_test_device(checked=False, mma=mma), tiling=tiling).tobytes()
            == expected.tobytes()
        )
    for i in (0, 15, 16, 69):
        assert linear(x[i : i + 1], w, device=kernel_test_device(mma=mma)).tobytes() == expected[i].tobytes()


@pytest.mark.gpu
def test_what_lies_beyond_the_rows_and_k_is_not_used(kernel_test_device: KernelTestDevice) -> None:
    """Memory on all sides is NaN, and so is a row of x: only its row of y is."""
    x, w = values(0, 19, 72, dtype="float16"), values(1, 70, 72, dtype="float16")
    x[3] = np.nan
    device = kernel_test_device()
    y = linear(amid_nan(x, device, gap=64), amid_nan(w, device, gap=64), device=device).astype(np.float32)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("tiling", [TILINGS[0], TILINGS[-1], SPLIT[2]], ids=str)
def test_the_host_path_of_cuda_gives_the_same_bits(
    tiling: Tiling, monkeypatch: pytest.MonkeyPatch, kernel_test_device: KernelTestDevice
) -> None:
    wide, w = values(0, 9, 64 + 264, dtype="float16"), values(1, 32, 264, dtype="float16")
    emulator, results = kernel_test_device(checked=False), []
    for device in (emulator, on_cuda(emulator, monkeypatch)):
        x, weight = device.from_host(wide)[:, 64:], device.from_host(w)[8:]
        residual = linear(x, weight, device=device, tiling=tiling, out_dtype=x.dtype)
        y = linear(x, weight, device=device, tiling=tiling, residual=residual)
        z = linear(x, weight, device=device, tiling=tiling, out_dtype=np.float32, softcap=3.0)
        outputs = (y, z, linear_geglu(x, weight, device=device, tiling=tiling))
        results.append([device.to_host(output).tobytes() for output in outputs])
    assert results[0] == results[1]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("out", ["bfloat16", "float32"])
def test_cost_is_what_the_shapes_demand(tiling: Tiling, out: str, kernel_test_device: KernelTestDevice) -> None:
    emulator = kernel_test_device()
    m, n, k = 2 * tiling.block_m, 2 * tiling.block_n, 256
    x, w = (emulator.from_host(values(i, rows, k, dtype="bfloat16")) for i, rows in enumerate((m, n)))
    y = linear(x, w, device=emulator, tiling=tiling, out_dtype=x.dtype if out == "bfloat16" else np.float32)
    counters = counted(emulator)
    least = compulsory.linear(y, x, w)
    assert counters.mma == least.mma
    assert_moves_little_more(counters, least)
    assert counters.shared_bank_conflicts == 0
    moved = counters.global_read_bytes + counters.global_write_bytes
    assert moved == 2 * (x.nbytes + w.nbytes) + y.nbytes
    assert moved == 512 * counters.global_requests and counters.global_full_requests == counters.global_requests
    assert counters.barriers == counters.blocks * (k // 64 + 2)


@pytest.mark.parametrize("rows", [1, 16, 33, 64])
@pytest.mark.parametrize("op", [linear, linear_geglu])
def test_few_rows_read_the_weight_once(op: Any, rows: int, kernel_test_device: KernelTestDevice) -> None:
    emulator, columns, depth = kernel_test_device(), 128, 584
    x, w = (emulator.from_host(values(i, n, depth, dtype="bfloat16")) for i, n in enumerate((rows, columns)))
    y = op(x, w, device=emulator)
    tiles, splits = columns // 64, 3
    counters = counted(emulator)
    partial, atomics = splits * rows * columns * 4, 4 * tiles * (splits + 1)
    assert counters.blocks == tiles * splits
    assert counters.global_read_bytes == w.nbytes + tiles * x.nbytes + partial + atomics
    assert counters.global_write_bytes == y.nbytes + partial + atomics
    least = compulsory.linear(y, x, w)
    assert counters.global_read_sectors <= least.read_sectors + partial // 32 + 2
    assert counters.global_write_sectors <= least.write_sectors + partial // 32 + 2


def test_the_tiling_follows_the_shape() -> None:
    rows = [1, 16, 17, 32, 33, 64, 8192]
    assert [choose_tiling(m, 2048, CAPABLE).block_m for m in rows] == [16, 16, 32, 32, 64, 64, 128]
    assert choose_tiling(512, 640, CAPABLE).block_m == 64  # 20 tiles of 128 × 128 would leave most of a GPU idle
    assert [choose_tiling(m, 4096, CAPABLE).split for m in (1, 16, 17, 64, 256)] == [True, True, True, False, False]
    assert [choose_tiling(1, n, CAPABLE).split for n in (255 * 64, 255 * 64 + 1)] == [True, False]
    for shared_bytes in SHARED_BYTES.values():
        assert max(choose_tiling(m, 2048, shared_bytes).shared_bytes(4) for m in rows) <= shared_bytes
    assert choose_tiling(8192, 2048, CAPABLE).stages > choose_tiling(8192, 2048, 99 * 1024).stages


def test_no_rows(kernel_test_device: KernelTestDevice) -> None:
    assert linear(np.zeros((0, 8), np.float16), np.zeros((4, 8), np.float16), device=kernel_test_device()).shape == (
        0,
        4,
    )
    assert linear(np.zeros((4, 8), np.float16), np.zeros((0, 8), np.float16), device=kernel_test_device()).shape == (
        4,
        0,
    )


def gate_and_up(tiling: Tiling) -> list[tuple[int, int, int]]:
    """[M, F, K]: half a tile of columns of either, less one, exactly, more; K in one split and in three."""
    m, n = tiling.block_m, tiling.block_n // 2
    return [(1, 8, 8), (m, n, 64), (m - 1, n - 1, 520), (m + 1, n + 8, 72), (2 * m + 3, 2 * n + 5, 264)]


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [*TILINGS, *SPLIT[:4]], ids=str)
def test_geglu_of_the_product(tiling: Tiling, kernel_test_device: KernelTestDevice) -> None:
    """Equal to the reference, and in its bits to geglu of the stored product."""
    for i, (rows, features, depth) in enumerate(gate_and_up(tiling)):
        dtype = HALF_DTYPES[i % 2]
        x, w = values(i, rows, depth, dtype=dtype), values(i + 9, 2 * features, depth, dtype=dtype, scale=0.1)
        device = kernel_test_device(SCHEDULES[i % 3], approx=("exact", "up", "down")[i % 3], mma=MMA_ROUNDINGS[i // 2])
        y = linear_geglu(amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, tiling=tiling)

        def reference(p: Precision, x: Array = x, w: Array = w) -> Array:
            return reference_linear_geglu(x.astype(p.compute), w.astype(p.compute), precision=p)

        assert_within_rule(y, *bounds(dtype, reference), dtype=dtype, what=f"linear_geglu {rows, features, depth}")
        both = linear(x, w, device=device)
        assert y.tobytes() == geglu(both[:, :features], both[:, features:], device=device).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [TILINGS[0], TILINGS[-1], SPLIT[1], SPLIT[3]], ids=str)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_the_residual_is_added_to_the_rounded_product(
    tiling: Tiling, dtype: str, kernel_test_device: KernelTestDevice
) -> None:
    for i, (rows, columns, depth) in enumerate([(1, 8, 16), (17, 72, 264), (130, 129, 64), (5, 3, 520)]):
        x, w = values(i, rows, depth, dtype=dtype), values(i + 9, columns, depth, dtype=dtype)
        residual = values(i + 20, rows, columns, dtype=dtype, scale=8.0)
        device = kernel_test_device(SCHEDULES[i % 3])
        kept = residual.copy()
        y = linear(
            amid_nan(x, device, gap=64), amid_nan(w, device, gap=8), device=device, residual=residual, tiling=tiling
        )
        assert residual.tobytes() == kept.tobytes()

        def reference(p: Precision, x: Array = x, w: Array = w, residual: Array = residual) -> Array:
            return reference_linear(
                x.astype(p.compute), w.astype(p.compute), residual=residual.astype(p.compute), precision=p
            )

        assert_within_rule(y, *bounds(dtype, reference), dtype=dtype, what=f"residual {rows, columns, depth}")
        product = linear(x, w, device=device).astype(np.float32)
        assert y.tobytes() == (residual.astype(np.float32) + product).astype(DTYPES[dtype]).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [TILINGS[0], TILINGS[4], SPLIT[0], SPLIT[3]], ids=str)
def test_capped_logits_have_the_bits_of_softcap(tiling: Tiling, kernel_test_device: KernelTestDevice) -> None:
    for i, (rows, columns, depth) in enumerate([(1, 8, 16), (17, 72, 264), (3, 131, 520)]):
        x, w = values(i, rows, depth, dtype="bfloat16"), values(i + 9, columns, depth, dtype="bfloat16")
        device = kernel_test_device(SCHEDULES[i % 3])
        z = linear(
            amid_nan(x, device, gap=64),
            amid_nan(w, device, gap=8),
            device=device,
            out_dtype=np.float32,
            softcap=2.0,
            tiling=tiling,
        )
        exact = reference_linear(x.astype(np.float64), w.astype(np.float64), softcap=2.0, precision=FLOAT64)
        sums = summed_one_by_one(x.astype(np.float32), w.astype(np.float32))
        assert np.abs(exact).max() > 1.9
        rounded = np.float32(2) * np.tanh(sums / np.float32(2))
        assert_within_rule(z, exact, rounded, dtype="float32", softcap=True, what=f"softcap {rows, columns, depth}")
        plain = linear(x, w, device=device, out_dtype=np.float32)
        assert z.tobytes() == softcap(plain, 2.0, device=device).tobytes()


@pytest.mark.gpu
def test_a_row_of_geglu_has_the_same_bits_alone_in_any_tile_schedule_and_build(
    kernel_test_device: KernelTestDevice,
) -> None:
    x, w = values(0, 20, 616, dtype="bfloat16"), values(1, 2 * 72, 616, dtype="bfloat16")
    expected = linear_geglu(x, w, device=kernel_test_device(workers=1), tiling=TILINGS[0])
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for tiling in (None, SPLIT[1]):
            device = kernel_test_device(schedule, seed=seed, workers=workers)
            assert linear_geglu(x, w, device=device, tiling=tiling).tobytes() == expected.tobytes()
    for i in (0, 15, 16, 19):
        assert linear_geglu(x[i : i + 1], w, device=kernel_test_device()).tobytes() == expected[i].tobytes()


@pytest.mark.gpu
def test_counters_serve_any_number_of_launches(kernel_test_device: KernelTestDevice) -> None:
    device = kernel_test_device("random")
    counters = split_counters(device)
    for depth, op in ((520, linear), (600, linear_geglu), (2048, linear), (8, linear)):
        x, w = values(0, 3, depth, dtype="float16"), values(1, 136, depth, dtype="float16")
        y = op(x, w, device=device, counters=counters)
        assert y.tobytes() == op(x, w, device=device).tobytes()
        assert not counters.any()


X, W = np.zeros((4, 16), np.float16), np.zeros((3, 16), np.float16)
LONG = {"x": np.zeros((4, 264), np.float16), "weight": np.zeros((3, 264), np.float16)}
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
    ({"residual": np.zeros((4, 4), np.float16)}, "residual is [4, 4], expected [M, N] = [4, 3]"),
    ({"residual": np.zeros((4, 3), np.float32)}, "residual is float32, expected float16"),
    ({"residual": np.zeros((4, 6), np.float16)[:, ::2]}, "residual is not contiguous"),
    (
        {"residual": np.zeros((4, 3), np.float16), "out_dtype": np.float32},
        "out_dtype is float32, expected float16 with",
    ),
    ({"softcap": 30.0}, "softcap is for out_dtype float32, without a residual"),
    ({"softcap": 0.0, "out_dtype": np.float32}, "softcap is 0.0, expected a positive number or None"),
    (
        {**LONG, "counters": np.zeros(0, np.int32)},
        "counters is int32 [0], expected int32 [1 or more] as of split_counters",
    ),
    ({**LONG, "counters": np.zeros(8, np.int64)}, "counters is int64 [8]"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments = {"x": X, "weight": W, **changes}
    device = kernel_test_device()
    with pytest.raises(InputError) as info:
        linear(arguments.pop("x"), arguments.pop("weight"), **arguments, device=device)
    assert message in str(info.value) and str(info.value).startswith("linear: ")
    assert device.counters is None


def test_refuses_an_odd_number_of_gates_and_ups(kernel_test_device: KernelTestDevice) -> None:
    with pytest.raises(InputError, match=r"linear_geglu: weight is \[3, 16\], expected \[2F, K\]"):
        linear_geglu(X, W, device=kernel_test_device())
    with pytest.raises(InputError, match=r"linear_geglu: weight is float32, expected float16 as x"):
        linear_geglu(X, np.zeros((4, 16), np.float32), device=kernel_test_device())
