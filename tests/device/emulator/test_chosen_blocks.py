"""Launches of chosen blocks only, and memory that is larger than the machine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import KernelError, LaunchError
from tests.support.emulated import SCHEDULES
from tests.support.paths import KERNELS

BLOCK = (32,)
GIB = 1 << 30
DTYPES = [np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32, np.int32, np.uint8, np.uint64)]


def emulator(**options: Any) -> Emulator:
    return Emulator(**{"checked": True, "kernels": KERNELS, "workers": 2, **options})


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


# --- blocks ---


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("is_checked", [True, False])
def test_the_chosen_blocks_run_once_and_no_others(is_checked: bool, schedule: Any, workers: int) -> None:
    chosen = [(6, 0, 0), (0, 4, 2), (3, 1, 1), (6, 4, 2), (3, 1, 1)]
    asked = []

    def choose(instance: str, grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        asked.append((instance, grid))
        return chosen

    device = emulator(checked=is_checked, schedule=schedule, workers=workers, only_blocks=choose)
    out = np.full(7 * 5 * 3, -1, np.int32)
    device.launch("place", (7, 5, 3), BLOCK, 0, [out])
    expected = np.full_like(out, -1)
    for x, y, z in chosen:
        expected[x + 7 * (y + 5 * z)] = x + 7 * (y + 5 * z)
    np.testing.assert_array_equal(out, expected)
    assert asked == [("place", (7, 5, 3))]
    assert device.counters is not None and (device.counters.blocks, device.counters.threads) == (4, 4 * 32)


def test_no_block_may_be_chosen_and_all_may_be_again() -> None:
    device, out = emulator(only_blocks=lambda _, grid: []), np.zeros(3, np.int32)
    device.launch("place", (3,), BLOCK, 0, [out])
    assert not out.any() and device.counters is not None and device.counters.blocks == 0
    device.only_blocks = None
    device.launch("place", (3,), BLOCK, 0, [out])
    assert out.tolist() == [0, 1, 2]


@pytest.mark.parametrize("block", [(3, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0)])
def test_a_block_outside_the_grid_is_refused(block: tuple[int, int, int]) -> None:
    device, out = emulator(only_blocks=lambda _, grid: [(0, 0, 0), block]), np.full(3, -1, np.int32)
    with pytest.raises(LaunchError, match=r"place: block \(.*\) is to be run, the grid is \(3, 1, 1\)"):
        device.launch("place", (3,), BLOCK, 0, [out])
    assert (out == -1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_chosen_blocks_are_checked_against_each_other(schedule: Any) -> None:
    device, out = emulator(schedule=schedule), np.zeros(5_000_000, np.int32)
    device.only_blocks = lambda _, grid: [(1, 0, 0), (8_000_001, 0, 0), (8_000_000, 0, 0)]
    with pytest.raises(KernelError) as info:
        device.launch("shared_by_two", (9_000_000,), BLOCK, 0, [out])
    assert info.value.kind == "data race"
    device.only_blocks = lambda _, grid: [(1, 0, 0), (8_000_001, 0, 0), (8_000_002, 0, 0)]
    device.launch("shared_by_two", (9_000_000,), BLOCK, 0, [out])


# --- memory ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_memory_holds_what_small_memory_does(dtype: Any) -> None:
    device, before = emulator(), resident_bytes()
    size = 20 * GIB // dtype.itemsize + 3
    for make in (device.empty, device.zeros):
        small, large = make((64,), dtype), make((size,), dtype)
        assert large.shape == (size,) and large.dtype == dtype and large.flags.writeable
        assert large.ctypes.data % 256 == 0
        for part in (large[:64], large[size // 2 :][:64], large[-64:]):
            assert part.tobytes() == small.tobytes()
        large[size // 2 + 1] = 5
        neighbours = large[size // 2 : size // 2 + 3]
        assert neighbours[1] == 5 and neighbours[::2].tobytes() == small[:2].tobytes()
    assert resident_bytes() < before + GIB // 8


@pytest.mark.parametrize("cpp_type", ["float", "int", "unsigned char"])
def test_reads_of_large_memory_that_nobody_wrote_are_found(cpp_type: str) -> None:
    dtype = np.dtype({"float": np.float32, "int": np.int32, "unsigned char": np.uint8}[cpp_type])
    device, size = emulator(), 2 * GIB + 64
    large, small = device.empty((size,), dtype), device.zeros((1,), dtype)
    large[size - 7] = 3
    device.launch(f"move_one<{cpp_type}>", (1,), BLOCK, 0, [small, large, 0, size - 7])
    assert small[0] == 3
    for at in (size - 8, size // 2, 0):
        with pytest.raises(KernelError) as info:
            device.launch(f"move_one<{cpp_type}>", (1,), BLOCK, 0, [small, large, 0, at])
        assert info.value.kind == "uninitialized read" and f"byte {at * dtype.itemsize}" in str(info.value)
    device.launch(f"move_one<{cpp_type}>", (1,), BLOCK, 0, [large, small, size // 2, 0])
    device.launch(f"move_one<{cpp_type}>", (1,), BLOCK, 0, [small, large, 0, size // 2])
    assert large[size // 2] == 3


def test_large_memory_is_given_back() -> None:
    def mapped_bytes() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[0])

    device = emulator()
    device.empty((GIB,), np.float32)
    before = mapped_bytes()
    for _ in range(3):
        device.empty((5 * GIB,), np.float32)
        device.zeros((5 * GIB,), np.int32)
    assert mapped_bytes() < before + GIB
