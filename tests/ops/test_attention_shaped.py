"""A kernel of the shape of real attention runs under every check and schedule: the checks make nothing up."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Approximation, Emulator, Schedule
from tests.support.paths import KERNELS


def run(device: Emulator, arrays: list[Any], heads: int, width: int) -> np.ndarray[Any, Any]:
    tokens = arrays[0].shape[0]
    out = device.empty(arrays[0].shape, arrays[0].dtype)
    scale = float(width**-0.5 * np.log2(np.e))
    device.launch(
        f"attention_shaped<{width}>",
        (tokens // 64, heads),
        (128,),
        3 * 64 * width * 2,
        [out, *arrays, tokens, heads, scale],
    )
    return out


@pytest.mark.parametrize("width", [64, 128])
def test_every_schedule_gives_the_same_bits_and_the_right_result(width: int) -> None:
    heads, tokens = 2, 128
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((tokens, heads, width)).astype(ml_dtypes.bfloat16) for _ in range(3))
    schedules: list[tuple[Schedule, int, bool]] = [
        ("forward", 0, True),
        ("reverse", 0, True),
        ("random", 1, True),
        ("random", 2, False),
    ]
    results = [
        run(Emulator(checked=c, schedule=s, seed=n, kernels=KERNELS), [q, k, v], heads, width) for s, n, c in schedules
    ]
    assert len({result.tobytes() for result in results}) == 1
    scores = np.einsum("shd,thd->hst", q.astype(np.float64), k.astype(np.float64)) / np.sqrt(width)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("hst,thd->shd", weights / weights.sum(-1, keepdims=True), v.astype(np.float64))
    assert np.abs(results[0].astype(np.float64) - exact).max() < 2.0**-7


@pytest.mark.parametrize("approx", ["up", "down"])
def test_approximation_errors_reach_the_result_and_stay_small(approx: Approximation) -> None:
    random = np.random.default_rng(1)
    arrays = [random.standard_normal((64, 1, 64)).astype(ml_dtypes.bfloat16) for _ in range(3)]
    exact = run(Emulator(kernels=KERNELS), arrays, 1, 64).astype(np.float32)
    off = run(Emulator(kernels=KERNELS, approx=approx), arrays, 1, 64).astype(np.float32)
    assert np.abs(off - exact).max() <= 2.0**-7


@pytest.mark.parametrize(("workers", "schedule"), [(1, "forward"), (2, "forward"), (2, "reverse"), (2, "random")])
def test_its_cost_is_what_the_shapes_say(workers: int, schedule: Schedule) -> None:
    heads, tokens, width = 1, 128, 64
    device = Emulator(checked=True, kernels=KERNELS, workers=workers, schedule=schedule)
    arrays = [device.from_host(np.ones((tokens, heads, width), ml_dtypes.bfloat16)) for _ in range(3)]
    run(device, arrays, heads, width)
    counters = device.counters
    assert counters is not None
    assert counters.mma == 4 * tokens * tokens * width * heads // (2 * 16 * 8 * 16)
    assert counters.shared_bank_conflicts == 0
    loads, stores = 5 * 64 * width // 8 // 32 * tokens // 64, tokens * width // 2 // 32  # 16 and 4 bytes per lane
    assert counters.global_requests == loads + stores
    assert counters.global_request_sectors == 16 * loads + 8 * stores
    assert counters.global_read_sectors == 3 * arrays[0].nbytes // 32
    assert counters.global_write_bytes == arrays[0].nbytes
    tiles = tokens // 64
    assert counters.global_read_bytes == arrays[0].nbytes * (1 + 2 * tiles)
