"""The emulator's checks: each planted bug is caught and described; the correct form beside it passes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.emulator.device import Emulator, Schedule, missing
from gemma_cuda.errors import DeviceError, KernelError, LaunchError
from tests.support.paths import KERNELS

PLANTED = KERNELS / "planted.cu"
SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")


def bug_lines(name: str) -> list[str]:
    """Lines of planted.cu that carry the bug's mark: "planted.cu:11"; of a race either may come second."""
    lines = PLANTED.read_text().splitlines()
    marked = [f"planted.cu:{i}" for i, line in enumerate(lines, 1) if re.search(rf"// bug: {name}\b", line)]
    assert marked, name
    return marked


def emulator(**options: Any) -> Emulator:
    return Emulator(**{"checked": True, "kernels": KERNELS, "workers": 2, **options})


def floats(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n, dtype=np.float32)


def caught(
    instance: str,
    args: list[Any],
    *,
    kind: str,
    block: int = 64,
    grid: int = 1,
    shared: int = 256,
    mark: str = "",
    **options: Any,
) -> KernelError:
    """The KernelError of a launch; its kind, kernel and line must be the expected ones."""
    with pytest.raises(KernelError) as info:
        emulator(**options).launch(instance, (grid,), (block,), shared, args)
    error = info.value
    assert error.kind == kind, error
    assert error.kernel == instance
    assert error.source in bug_lines(mark or instance), error
    assert instance in str(error) and kind in str(error) and error.source in str(error)
    return error


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


# --- arguments and instances ---


def test_arguments_reach_the_kernel_with_their_types() -> None:
    out = np.zeros(1, np.float64)
    emulator().launch("sums", (1,), (1,), 0, [out, floats(1) + 0.5, -3, 4_000_000_000, 0.25, 2**40, True])
    assert out[0] == 0.5 - 3 + 4_000_000_000 + 0.25 + 2**40 + 1


GOOD = [np.zeros(1, np.float64), floats(1), 1, 1, 1.0, 1, True]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, floats(1), "argument 0 (out) is an array of float32, the kernel wants a pointer to float64"),
        (1, 3, "argument 1 (a) is int, the kernel wants an array of float32"),
        (2, 1.5, "argument 2 (n) is float 1.5, the kernel wants int32"),
        (2, True, "argument 2 (n) is bool True, the kernel wants int32"),
        (2, np.int64(1), "argument 2 (n) is int64, the kernel wants int32"),
        (2, 2**31, "argument 2 (n) is 2147483648"),
        (3, -1, "argument 3 (u) is -1"),
        (4, np.float64(1), "argument 4 (x) is float64, the kernel wants float32"),
        (4, 1, "argument 4 (x) is int 1, the kernel wants float32"),
        (4, floats(1), "argument 4 (x) is an array of float32, the kernel wants float32"),
        (4, None, "argument 4 (x) is None, the kernel wants float32"),
        (6, 1, "argument 6 (flag) is int 1, the kernel wants bool"),
    ],
)
def test_a_wrong_argument_type_is_refused(position: int, value: Any, message: str) -> None:
    args = [*GOOD[:position], value, *GOOD[position + 1 :]]
    with pytest.raises(LaunchError, match=re.escape(message)):
        emulator(checked=False).launch("sums", (1,), (1,), 0, args)


@pytest.mark.parametrize("args", [GOOD[:-1], [*GOOD, 1], []])
def test_a_wrong_argument_count_is_refused(args: list[Any]) -> None:
    with pytest.raises(LaunchError, match=rf"sums takes 7 arguments \(out, a, n, u, x, big, flag\), not {len(args)}"):
        emulator(checked=False).launch("sums", (1,), (1,), 0, args)


def test_a_read_only_array_is_refused_where_the_kernel_may_write() -> None:
    out = floats(64)
    out.flags.writeable = False
    with pytest.raises(LaunchError, match=r"argument 0 \(out\) is read-only"):
        emulator().launch("copy<float>", (1,), (64,), 0, [out, floats(64)])


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("no_such_kernel<float>", "no kernel is called no_such_kernel; there are .*copy"),
        ("copy<float", "is not a kernel instance"),
        ("copy<float>); system(", "is not a kernel instance"),
        ("copy<nonsense>", "copy<nonsense> does not compile: .*nonsense"),
        ("copy<float, float>", "does not compile"),
    ],
)
def test_an_unknown_instance_is_refused(instance: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        emulator(checked=False).launch(instance, (1,), (64,), 0, [floats(64), floats(64)])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (32,), 0, "grid is (0,), expected 1 to 3 positive sizes"),
        ((1,), (1025,), 0, "has 1025 threads, at most 1024"),
        ((1,), (32, 32, 2), 0, "has 2048 threads"),
        ((1, 70000), (32,), 0, "grid is (1, 70000, 1)"),
        ((1,), (32,), 10**6, "1000000 bytes of shared memory"),
        ((1,), (1, 1, 1, 1), 0, "block is (1, 1, 1, 1)"),
    ],
)
def test_an_impossible_launch_is_refused(grid: Any, block: Any, shared: int, message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        emulator(checked=False).launch("copy<float>", grid, block, shared, [floats(64), floats(64)])


def test_a_block_beyond_the_launch_bounds_is_refused() -> None:
    emulator().launch("bounded<64>", (1,), (64,), 0, [floats(64)])
    with pytest.raises(LaunchError, match=r"the block is \(65, 1, 1\), the kernel's launch bounds allow 64 threads"):
        emulator().launch("bounded<64>", (1,), (65,), 0, [floats(128)])


# --- compilation ---


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", "no-such-compiler, which is not installed"),
        (sys.executable, f"{sys.executable}, which is not GCC"),
    ],
)
def test_without_a_compiler_the_device_says_so(compiler: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert message in str(missing())
    with pytest.raises(DeviceError, match=re.escape(message)):
        emulator().launch("copy<float>", (1,), (64,), 0, [floats(64), floats(64)])


def test_without_the_compiled_part_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma_cuda._emulator", None)
    assert "needs the compiled part of gemma-cuda" in str(missing())
    with pytest.raises(DeviceError, match=r"Linux on x86-64 and a C\+\+ compiler"):
        emulator()


def test_an_edited_kernel_runs_at_the_next_call(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    source = kernels / "constant.cu"
    text = "#include <platform.cuh>\n__global__ void constant(int* out) { out[0] = VALUE; }\n"
    device = emulator(kernels=kernels, cache=tmp_path / "cache", checked=False)
    out = np.zeros(1, np.int32)
    for value in (7, 8):
        source.write_text(text.replace("VALUE", f"{value} - 0"))
        device.launch("constant", (1,), (1,), 0, [out])
        assert out[0] == value
    assert len(list((tmp_path / "cache" / "emulator").glob("constant-*.so"))) == 2


@pytest.mark.parametrize("checkout", ["a", "z"])  # names before and after that of kernels/
def test_checkouts_share_one_cache(checkout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report names the kernel's lines, whichever checkout has compiled it."""
    copy = tmp_path / checkout / "bindings" / "emulator"
    shutil.copytree(sources.emulator_directory(), copy)
    kernels = tmp_path / "kernels"
    kernels.symlink_to(sources.kernel_directory())
    monkeypatch.setattr(sources, "kernel_directory", lambda: kernels)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "emulator_directory", lambda: copy)
        other = emulator(cache=tmp_path, checked=False)
        path = other._compiler.library("divergent_helper", checked=False)
    device = emulator(cache=tmp_path, checked=False)
    assert device._compiler.library("divergent_helper", checked=False) == path
    with pytest.raises(KernelError) as info:
        device.launch("divergent_helper", (1,), (32,), 0, [floats(32)])
    assert bug_lines("divergent_helper")[0] in str(info.value) and "platform.cuh" not in str(info.value)


def test_processes_share_one_cache(tmp_path: Path) -> None:
    program = f"""
import numpy as np
from pathlib import Path
from gemma_cuda.device.emulator import Emulator
out = np.zeros(64, np.float32)
Emulator(kernels=Path({str(KERNELS)!r}), cache=Path({str(tmp_path)!r})).launch(
    "copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
assert out.sum() == 64
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    kept = list((tmp_path / "emulator").iterdir())
    assert [path.suffix for path in kept] == [".so"] and kept[0].name.startswith("copy-")


def test_launches_from_several_threads_do_not_disturb_each_other() -> None:
    failures: list[BaseException] = []

    def work(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    def good() -> None:
        out = floats(64)
        for _ in range(20):
            emulator(workers=1).launch("ok_shared", (1,), (64,), 256, [np.zeros(64, np.float32), out])

    def bad() -> None:
        for _ in range(20):
            caught("wild_pointer", [floats(64), np.uint64(64)], kind="wild pointer", checked=False)

    threads = [threading.Thread(target=work, args=(run,)) for run in (good, bad, good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
