"""The emulator's checks: each planted bug is caught and described; the correct form beside it passes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Schedule
from gemma_cuda.errors import KernelError
from tests.support.planted import bug_lines, caught, emulator, floats

SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")


# --- races ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "instance", ["shared_race", "shared_overwrite", "missing_syncwarp", "syncwarp_across_warps", "syncwarp_half"]
)
def test_races_in_shared_memory_are_found_in_every_schedule(instance: str, schedule: Schedule) -> None:
    error = caught(instance, [floats(64), floats(64)], kind="data race", schedule=schedule, seed=3)
    assert "shared memory" in str(error) and len(error.threads) == 2
    assert error.threads[0] != error.threads[1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("instance", ["ok_shared", "ok_syncwarp"])
def test_barriers_order_what_threads_do(instance: str, schedule: Schedule) -> None:
    out = floats(32)
    for seed in range(4):
        emulator(schedule=schedule, seed=seed).launch(instance, (1,), (32,), 128, [out, floats(32)])
    expected = np.roll(floats(32), -1) if instance == "ok_shared" else floats(32).reshape(-1, 2)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_named_barriers_order_only_one_way(schedule: Schedule) -> None:
    out = floats(32)
    emulator(schedule=schedule).launch("ok_named_barrier", (1,), (64,), 128, [out, floats(32) + 7])
    np.testing.assert_array_equal(out, floats(32) + 7)
    caught("named_barrier_wrong_way", [out, floats(32)], kind="data race", schedule=schedule)


def test_a_race_in_global_memory_inside_a_block_is_found() -> None:
    error = caught("global_race", [floats(32)], kind="data race")
    assert "argument 0 (out)" in str(error) and error.address != 0 and error.block == (0, 0, 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_race_between_blocks_is_found(schedule: Schedule, workers: int) -> None:
    error = caught(
        "global_race_across_blocks", [floats(64)], kind="data race", grid=2, schedule=schedule, workers=workers
    )
    assert "of block (" in str(error)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reading_what_another_block_writes_is_a_race(schedule: Schedule) -> None:
    with pytest.raises(KernelError, match=r"data race.*block \(\d"):
        emulator(schedule=schedule).launch("global_read_across_blocks", (4,), (32,), 0, [floats(128)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ordered_and_neighbouring_accesses_are_no_race(schedule: Schedule) -> None:
    device, out = emulator(schedule=schedule), floats(128)
    device.launch("ok_global", (2,), (64,), 0, [out])
    np.testing.assert_array_equal(out, np.tile(np.roll(floats(64), -1), 2))
    halves = np.zeros(64, ml_dtypes.bfloat16)
    device.launch("halves_of_a_word", (1,), (64,), 0, [halves])
    np.testing.assert_array_equal(halves.astype(np.float32), floats(64))
    single = np.zeros(64, np.uint8)
    device.launch("bytes_of_a_word", (1,), (64,), 0, [single])
    np.testing.assert_array_equal(single, np.arange(64))


def test_atomics_do_not_race_with_each_other_but_with_plain_accesses() -> None:
    count, total = np.zeros(1, np.int32), np.zeros(1, np.float32)
    emulator().launch("ok_atomic", (8,), (64,), 0, [count, total])
    assert count[0] == 512 and total[0] == 256.0
    error = caught("atomic_and_plain", [count], kind="data race")
    assert error.primitive == "atomic"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fences_and_atomics_order_blocks(schedule: Schedule, workers: int) -> None:
    def args() -> list[Any]:
        return [floats(64), floats(64 * 5), np.zeros(1, np.int32)]

    good = args()
    emulator(schedule=schedule, workers=workers).launch("last_block_sums<true, true>", (5,), (64,), 4, good)
    assert (good[0] == 5).all()
    options: dict[str, Any] = {"kind": "data race", "grid": 5, "shared": 4, "mark": "last_block_sums"}
    for instance in ("last_block_sums<false, true>", "last_block_sums<true, false>"):
        error = caught(instance, args(), schedule=schedule, workers=workers, **options)
        assert "argument 1 (partial)" in str(error)


# --- bounds and content ---


@pytest.mark.parametrize(
    ("instance", "args", "words"),
    [
        ("read_past_end", [floats(64), floats(64), 1], "reads 4 bytes.*0 bytes past the end of argument 1 (in)"),
        ("read_past_end", [floats(64), floats(64), -70], "reads 4 bytes.*before the start of argument 1 (in)"),
        ("write_past_end", [floats(64), 1], "writes 4 bytes.*0 bytes past the end of argument 0 (out)"),
        ("shared_past_end", [floats(64)], "0 bytes past the end of the block's 256 bytes of shared memory"),
        ("vector_past_end", [floats(256), floats(254)], "reads 16 bytes.*0 bytes past the end of argument 1 (in)"),
    ],
)
def test_an_access_out_of_bounds_is_found(instance: str, args: list[Any], words: str) -> None:
    args = [_apart(value) for value in args]
    error = caught(instance, args, kind="out of bounds")
    pattern = ".*".join(re.escape(part) for part in words.split(".*"))
    assert re.search(pattern, str(error)), error


def _apart(value: Any) -> Any:
    """Arrays amid others' memory: what lies past the end belongs to no other argument."""
    if not isinstance(value, np.ndarray):
        return value
    room = np.zeros(value.size + 512, value.dtype)
    inside = room[256 : 256 + value.size]
    inside[:] = value
    return inside


def test_a_view_opens_only_its_own_memory() -> None:
    base = floats(256)
    emulator().launch("copy<float>", (1,), (64,), 0, [floats(64), base[64:128]])
    caught("copy<float>", [floats(64), base[64:127]], kind="out of bounds", mark="copy")


def test_writing_through_const_is_found() -> None:
    error = caught("writes_const", [floats(64), floats(64)], kind="read-only memory")
    assert "argument 1 (in)" in str(error)


def test_reading_unwritten_shared_memory_is_found() -> None:
    error = caught("unwritten_shared", [floats(64)], kind="uninitialized read")
    assert error.threads == (5,) and "byte 20 of shared memory" in str(error)


@pytest.mark.parametrize(("cpp", "dtype"), [("float", np.float32), ("bf16", ml_dtypes.bfloat16), ("half", np.float16)])
def test_reading_unwritten_global_memory_is_found(cpp: str, dtype: Any) -> None:
    device = emulator()
    fresh = device.empty((64,), dtype)
    assert np.isnan(fresh.astype(np.float32)).all()
    fresh[:9] = 1
    error = caught(f"copy<{cpp}>", [np.zeros(64, dtype), fresh], kind="uninitialized read", mark="copy")
    assert error.threads == (9,) and "argument 1 (in)" in str(error)
    device.launch(f"copy<{cpp}>", (1,), (64,), 0, [fresh, np.ones(64, dtype)])
    device.launch(f"copy<{cpp}>", (1,), (64,), 0, [np.zeros(64, dtype), fresh])


# --- barriers ---


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("instance", ["divergent_barrier", "divergent_helper"])
def test_barriers_reached_from_two_places_are_found(instance: str, schedule: Schedule, checked: bool) -> None:
    with pytest.raises(KernelError) as info:
        emulator(checked=checked, schedule=schedule).launch(instance, (1,), (32,), 256, [floats(32)])
    error = info.value
    assert error.kind == "divergent barrier" and error.primitive == "__syncthreads" and error.block == (0, 0, 0)
    assert bug_lines(instance)[0] in str(error)
    assert {thread < 16 for thread in error.threads} == {True, False}


@pytest.mark.parametrize("n", [0, 1])
def test_a_branch_that_the_whole_block_takes_is_no_divergence(n: int) -> None:
    emulator().launch("ok_uniform_branch", (1,), (64,), 0, [floats(64), n])


@pytest.mark.parametrize("checked", [True, False])
def test_a_thread_that_leaves_before_a_barrier_is_found(checked: bool) -> None:
    error = caught("missing_barrier", [floats(64), 60], kind="barrier", checked=checked)
    assert "threads 0-59 wait at __syncthreads" in str(error) and "threads 60-63 exited" in str(error)
    assert error.primitive == "__syncthreads"


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_deadlock_says_who_waits_where(schedule: Schedule, checked: bool) -> None:
    error = caught("deadlock", [floats(64)], kind="deadlock", schedule=schedule, checked=checked)
    assert "threads 0-31 wait at named barrier 1 (32 of 64 threads arrived)" in str(error)
    assert "threads 32-63 wait at named barrier 2 (32 of 64 threads arrived)" in str(error)
    assert error.threads == tuple(range(64))


def test_a_shuffle_that_waits_for_lanes_elsewhere_is_a_deadlock() -> None:
    error = caught("lonely_shuffle", [floats(32)], kind="deadlock", block=32)
    assert "threads 0-7 wait at __shfl_sync with mask 0xffffffff" in str(
        error
    ) and "threads 8-31 wait at __syncthreads" in str(error)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_that_have_exited_are_not_waited_for(schedule: Schedule) -> None:
    out = np.zeros(8, np.uint32)
    emulator(schedule=schedule).launch("ok_vote_of_those_left", (1,), (32,), 0, [out])
    assert (out == 0b01010101).all()


@pytest.mark.parametrize("instance", ["inactive_source", "not_in_mask"])
def test_shuffles_outside_their_mask_are_found(instance: str) -> None:
    error = caught(instance, [floats(32)], kind="divergence", block=32)
    assert error.primitive == "__shfl_sync"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_different_collectives_with_one_mask_are_found(schedule: Schedule) -> None:
    with pytest.raises(KernelError, match=r"__ballot_sync.*") as info:
        emulator(schedule=schedule).launch("mixed_collectives", (1,), (32,), 0, [np.zeros(64, np.uint32)])
    assert info.value.kind == "divergence" and "__shfl_sync" in str(info.value)


def test_mma_needs_a_whole_warp() -> None:
    caught("partial_warp_mma", [floats(16)], kind="divergence", block=16)


# --- asynchronous copies ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("instance", ["missing_wait", "short_wait", "missing_commit"])
def test_a_missing_or_short_wait_is_found(instance: str, schedule: Schedule) -> None:
    error = caught(instance, [floats(64), floats(64)], kind="missing async wait", block=32, schedule=schedule)
    assert "started at planted.cu:" in str(error)


def test_without_checks_unwaited_copies_yield_nan() -> None:
    out = floats(64)
    emulator(checked=False).launch("short_wait", (1,), (32,), 256, [out, floats(64)])
    assert np.isnan(out[32:]).all() and not np.isnan(out[:32]).any()


def test_a_wait_does_not_replace_a_barrier() -> None:
    caught("wait_without_barrier", [floats(64), floats(64)], kind="data race", block=32)


# --- alignment, faults ---


@pytest.mark.parametrize("checked", [True, False])
def test_misaligned_vectors_are_found(checked: bool) -> None:
    error = caught("misaligned_vector", [floats(256), floats(256)], kind="misaligned access", checked=checked)
    assert "not a multiple of 16" in str(error) and error.primitive == "load_vector"


def test_misaligned_words_are_found() -> None:
    caught("misaligned_word", [np.zeros(64, np.uint8), np.zeros(512, np.uint8)], kind="misaligned access")


@pytest.mark.parametrize("checked", [True, False])
def test_misaligned_matrix_rows_are_found(checked: bool) -> None:
    error = caught("misaligned_row", [floats(32)], kind="misaligned access", block=32, checked=checked)
    assert error.primitive == "ldmatrix"


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("instance", ["matrix_of_global_memory", "async_copy_to_global"])
def test_what_works_on_shared_memory_refuses_global_memory(instance: str, checked: bool) -> None:
    device = emulator()
    out, x = (device.from_host(floats(256)) for _ in range(2))
    error = caught(instance, [out, x], kind="out of bounds", block=32, checked=checked)
    assert re.search(r"byte 0 of argument \d .*works on shared memory", str(error))


@pytest.mark.parametrize("address", [0, 64, 0x123456789ABC, 0xFFFF_8000_0000_0000])
@pytest.mark.parametrize("checked", [True, False])
def test_a_wild_pointer_is_an_exception(address: int, checked: bool) -> None:
    kind = "out of bounds" if checked else "wild pointer"
    for _ in range(3):  # the process lives on
        error = caught("wild_pointer", [floats(64), np.uint64(address)], kind=kind, checked=checked)
    if address < 0x1000:
        assert "a null pointer" in str(error)


def test_a_wild_pointer_inside_the_runtime_names_the_kernel_line() -> None:
    caught("wild_async", [floats(64), np.uint64(0x123456789AB0)], kind="wild pointer", checked=False, shared=1024)


@pytest.mark.parametrize("checked", [True, False])
def test_a_stack_overflow_is_an_exception(checked: bool) -> None:
    emulator(checked=checked).launch("stack_overflow", (1,), (64,), 0, [floats(64), 20])
    with pytest.raises(KernelError) as info:
        emulator(checked=checked).launch("stack_overflow", (1,), (64,), 0, [floats(64), 100_000])
    assert info.value.kind == "stack overflow" and "planted.cu" in str(info.value)


@pytest.mark.parametrize("checked", [True, False])
def test_an_integer_division_by_zero_is_an_exception(checked: bool) -> None:
    caught("divides_by_zero", [np.zeros(64, np.int32), 0], kind="arithmetic trap", checked=checked)


def test_an_index_beyond_a_local_array_is_an_exception() -> None:
    assert "thread 0 indexes an array beyond its end" in str(
        caught("local_overrun", [floats(64), 5], kind="array index", block=1)
    )
    emulator().launch("local_overrun", (1,), (1,), 0, [floats(64), 4])
    caught("unrolled_overrun", [floats(256), floats(256)], kind="array index")


def test_a_trap_is_an_exception() -> None:
    assert caught("traps", [floats(64)], kind="trap").threads == (7,)


@pytest.mark.parametrize("checked", [True, False])
def test_ctrl_c_stops_a_kernel_that_spins(checked: bool) -> None:
    device, flag = emulator(checked=checked), np.zeros(1, np.int32)
    device.launch("prints", (1,), (32,), 0, [1.0])
    device._compiler.library("spins", checked=checked)  # compiled before the interrupt comes
    interrupt = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        device.launch("spins", (2,), (32,), 0, [flag])
    assert time.monotonic() - start < 60
    device.launch("prints", (1,), (32,), 0, [1.0])


def test_printf_reaches_standard_output_in_block_order(capsys: pytest.CaptureFixture[str]) -> None:
    emulator(schedule="reverse").launch("prints", (3,), (32,), 0, [1.5])
    assert capsys.readouterr().out == "block 0: 1.50\nblock 1: 1.50\nblock 2: 1.50\n"
