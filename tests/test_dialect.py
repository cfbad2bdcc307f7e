"""Kernels as people write them for nvcc, in the emulator: they compile as they are and give NumPy's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator import Emulator, Schedule
from tests.emulated import APPROXIMATIONS, SCHEDULES, counted

DIALECT = Path(__file__).parent / "kernels" / "dialect"
BFLOAT16 = ml_dtypes.bfloat16
Array = np.ndarray[Any, Any]


def emulator(schedule: Schedule = "forward", **options: Any) -> Emulator:
    return Emulator(**{"kernels": DIALECT, "checked": True, "workers": 2, "seed": 5, "schedule": schedule, **options})


@pytest.fixture(params=[*((schedule, True) for schedule in SCHEDULES), ("forward", False), ("random", False)], ids=str)
def device(request: pytest.FixtureRequest) -> Emulator:
    """Every schedule with checks, and two of them without."""
    schedule, checked = request.param
    return emulator(schedule, checked=checked)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- kernels as they are found in samples and in other people's repositories ---


@pytest.mark.parametrize(("width", "height"), [(64, 32), (50, 33)])
def test_transpose(device: Emulator, width: int, height: int) -> None:
    x = normal(height, width)
    out = device.empty((width, height), np.float32)
    device.launch("transpose<1>", (-(-width // 32), -(-height // 32)), (32, 8), 0, [out, x, width, height])
    np.testing.assert_array_equal(out, x.T)


def test_padding_of_a_shared_tile_spares_bank_conflicts() -> None:
    device = emulator()
    x, out = normal(64, 64), np.zeros((64, 64), np.float32)
    conflicts = {}
    for instance in ("transpose", "transpose<0>"):  # the default of its template parameter is 1
        device.launch(instance, (2, 2), (32, 8), 0, [out, x, 64, 64])
        conflicts[instance] = counted(device).shared_bank_conflicts
    # Without padding the 32 lanes of a warp read one bank: 31 wavefronts too many in each of 4 x 8 x 4 reads.
    assert conflicts == {"transpose": 0, "transpose<0>": 31 * 4 * 8 * 4}


def test_sums_of_a_block_and_of_a_grid(device: Emulator) -> None:
    x = np.random.default_rng(1).integers(-8, 8, 1000).astype(np.float32)  # exact in any order
    partial = device.empty((4,), np.float32)
    device.launch("reduce_tree", (4,), (128,), 512, [x, partial, 1000])
    np.testing.assert_array_equal(partial, np.pad(x, (0, 24)).reshape(4, 256).sum(1))
    for instance, args in (("reduce_shuffle", [x]), ("reduce_groups", [x])):
        out = np.zeros(1, np.float32)
        n = 250 if instance == "reduce_groups" else 1000
        device.launch(instance, (3,), (96,), 0, [*args, out, n])
        assert out[0] == x.sum(), instance


def test_a_device_variable_counts_blocks_from_launch_to_launch(device: Emulator) -> None:
    x = np.random.default_rng(2).integers(-8, 8, 777).astype(np.float32)
    for _ in range(3):
        partial, out = np.zeros(5, np.float32), np.zeros(1, np.float32)
        device.launch("reduce_last_block", (5,), (64,), 0, [x, partial, out, 777])
        assert out[0] == x.sum()
    assert device.read_variable("reduce_last_block", "retirementCount", np.uint32).tolist() == [0]


def test_lanes_that_are_together_share_one_atomic(device: Emulator) -> None:
    x = np.random.default_rng(3).integers(-5, 6, 300).astype(np.int32)
    out, count = np.zeros(300, np.int32), np.zeros(1, np.int32)
    device.launch("filter_positive", (4,), (96,), 0, [out, count, x, 300])
    assert sorted(out[: count[0]]) == sorted(x[x > 0]) and not out[count[0] :].any()


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("approx", APPROXIMATIONS)
def test_softmax(device: Emulator, approx: Any) -> None:
    device.approx = approx
    x, out = normal(5, 100), device.empty((5, 100), np.float32)
    device.launch("softmax_forward", (5,), (64,), 256, [out, x, 5, 100])
    np.testing.assert_allclose(out, softmax(x), rtol=2e-6)
    online = device.empty((5, 100), np.float32)
    device.launch("online_softmax<64>", (5,), (64,), 0, [x, online, 100])
    np.testing.assert_allclose(online, softmax(x), rtol=5e-6)


def test_layernorm(device: Emulator) -> None:
    x, weight, bias = normal(7, 70), normal(70, seed=1), normal(70, seed=2)
    out, mean, rstd = (device.empty(shape, np.float32) for shape in ((7, 70), (7,), (7,)))
    device.launch("layernorm_forward", (4,), (64,), 0, [out, mean, rstd, x, weight, bias, 7, 70])
    exact = x.astype(np.float64)
    scale = 1 / np.sqrt(exact.var(1) + 1e-5)
    np.testing.assert_allclose(mean, exact.mean(1), atol=1e-6)
    np.testing.assert_allclose(rstd, scale, rtol=1e-6)
    expected = (exact - exact.mean(1, keepdims=True)) * scale[:, None] * weight + bias
    np.testing.assert_allclose(out, expected, atol=2e-6)
    device.launch("layernorm_forward", (4,), (64,), 0, [out, None, None, x, weight, bias, 7, 70])


def test_rmsnorm_in_bfloat16(device: Emulator) -> None:
    x, weight = normal(3, 200).astype(BFLOAT16), normal(200, seed=1).astype(BFLOAT16)
    out = device.empty((3, 200), BFLOAT16)
    device.launch("rmsnorm_bf16", (3,), (64,), 0, [out, x, weight, 100, 1e-6])
    exact = x.astype(np.float64)
    normed = (exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-6)).astype(BFLOAT16)
    expected = (normed.astype(np.float32) * weight.astype(np.float32)).astype(BFLOAT16)
    np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), rtol=2**-7)


def test_histograms(device: Emulator) -> None:
    data = np.random.default_rng(4).integers(0, 40, 1000).astype(np.uint8)
    bins = np.zeros(256, np.uint32)
    device.launch("histogram", (3,), (96,), 0, [bins, data, 1000])
    np.testing.assert_array_equal(bins, np.bincount(data, minlength=256))
    matched = np.zeros(40, np.int32)
    device.launch("histogram_match", (8,), (128,), 0, [matched, data.astype(np.int32), 1000])
    np.testing.assert_array_equal(matched, np.bincount(data, minlength=40))


def test_scans(device: Emulator) -> None:
    x = np.random.default_rng(5).integers(0, 9, 256).astype(np.float32)
    out = device.empty((256,), np.float32)
    device.launch("scan_exclusive", (1,), (128,), 4 * (256 + 8), [out, x, 256])
    np.testing.assert_array_equal(out, np.cumsum(x) - x)
    data = x.astype(np.int32)
    device.launch("scan_inclusive", (1,), (256,), 0, [data])
    np.testing.assert_array_equal(data, np.cumsum(x))


def test_matrix_products(device: Emulator) -> None:
    a, b = normal(64, 32), normal(32, 64, seed=1)
    exact = a.astype(np.float64) @ b
    out = device.empty((64, 64), np.float32)
    device.launch("matrixMul<16>", (4, 4), (16, 16), 0, [out, a, b, 32, 64])
    np.testing.assert_allclose(out, exact, atol=1e-5)
    out = device.empty((64, 64), np.float32)
    device.launch("tiled::sgemm_vectorized", (1, 1), (256,), 0, [64, 64, 32, a, b, out])
    np.testing.assert_allclose(out, exact, atol=1e-5)


def test_products_in_half(device: Emulator) -> None:
    a, x = normal(6, 128).astype(np.float16), normal(128, seed=1).astype(np.float16)
    out = device.empty((6,), np.float16)
    device.launch("hgemv", (6,), (32,), 0, [out, a, x, 64])
    exact = a.astype(np.float64) @ x.astype(np.float64)
    np.testing.assert_allclose(out.astype(np.float64), exact, atol=0.1)


@pytest.mark.parametrize("n", [64, 1000, 1003])
def test_vectors_of_bfloat16(device: Emulator, n: int) -> None:
    x, y = device.from_host(normal(n).astype(BFLOAT16)), device.from_host(normal(n, seed=1).astype(BFLOAT16))
    out = device.empty((n,), BFLOAT16)
    device.launch("add_bf16", (-(-n // 512),), (64,), 0, [out, x, y, n])
    np.testing.assert_array_equal(out, (x.astype(np.float32) + y.astype(np.float32)).astype(BFLOAT16))


def test_a_vector_is_one_access() -> None:
    device = emulator()
    x, y = (device.from_host(normal(1024, seed=i).astype(BFLOAT16)) for i in range(2))
    device.launch("add_bf16", (1,), (128,), 0, [device.empty((1024,), BFLOAT16), x, y, 1024])
    counters = counted(device)
    # Four warps read two arrays and write one, 16 bytes per lane.
    assert counters.global_requests == counters.global_full_requests == 4 * 3
