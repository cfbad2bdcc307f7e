"""Launches that overlap: whoever touches what the one before may still use, before it has waited, is told so."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator, Schedule
from gemma_cuda.errors import KernelError
from tests.support.emulated import SCHEDULES, kernel_emulator
from tests.support.paths import KERNELS

Array = np.ndarray[Any, Any]
SOURCE = KERNELS / "dependent.cu"
N = 64


class Chain:
    """Launches of N threads in one stream, each of which overlaps the one before."""

    def __init__(self, **options: Any) -> None:
        self.device: Emulator = kernel_emulator(kernels=KERNELS, **options)
        self.arrays = {name: self.device.from_host(np.ones(N, np.float32)) for name in "abcdefgh"}

    def run(self, instance: str, *names: str, grid: int = 1, n: int = N, overlap: bool = True, stream: int = 0) -> None:
        args = [self.arrays[name] for name in names]
        size = [n] if instance.startswith("grid_copy<") else []
        self.device.launch(instance, (grid,), (N // grid,), 0, [*args, *size], overlap=overlap, stream=stream)

    def copy(self, order: str, out: str, source: str, **options: Any) -> None:
        self.run(f"grid_copy<{order}, float>", out, source, **options)

    def refuses(self, instance: str, *names: str, words: str = "", mark: str = "", **options: Any) -> KernelError:
        """The report of a launch, whose line is marked `mark`."""
        with pytest.raises(KernelError, match=f"dependent launch.*{words}") as info:
            self.run(instance, *names, **options)
        line = int(info.value.source.rpartition(":")[2])
        assert info.value.kind == "dependent launch" and info.value.kernel == instance
        assert f"// touch{mark and ' '}{mark}" in SOURCE.read_text().splitlines()[line - 1], info.value
        return info.value


COPY = "grid_copy<{}, float>"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", ["Nothing", "OnlyRelease", "WaitLast"])
def test_reading_before_the_wait_is_found(order: str, schedule: Schedule) -> None:
    chain = Chain(schedule=schedule)
    chain.copy("WaitFirst", "b", "a")
    error = chain.refuses(
        COPY.format(order), "c", "b",
        words=r"reads byte \d+ of argument 1 \(in\) .*, which grid_copy<WaitFirst, float> may still be writing",
    )  # fmt: skip
    assert "no grid_dependency_wait comes before" in str(error) and len(error.threads) == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_waiting_first_is_right(schedule: Schedule, workers: int) -> None:
    chain = Chain(schedule=schedule, workers=workers)
    for out, source in itertools.pairwise("abcdefgh"):
        chain.copy("WaitFirst", source, out, grid=4)
    for out, source in itertools.pairwise("hgfedcba"):
        chain.copy("ReleaseFirst", source, out, grid=4)


def test_overwriting_what_the_launch_before_reads_or_writes_is_found() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.refuses(COPY.format("Nothing"), "a", "c", words=r"writes .*argument 0 \(out\).* may still be reading")
    chain.copy("WaitFirst", "b", "a")
    chain.refuses(COPY.format("Nothing"), "b", "c", words=r"writes .* may still be writing")
    chain.copy("WaitFirst", "b", "a")
    chain.copy("Nothing", "d", "a")  # to read what is read is no conflict


def test_atomics_of_both_are_no_excuse() -> None:
    chain = Chain()
    chain.arrays["counter"] = chain.device.zeros((1,), np.int32)
    chain.run("grid_count_up<WaitFirst>", "counter")
    chain.run("grid_count_up<WaitFirst>", "counter")
    chain.refuses("grid_count_up<Nothing>", "counter", words="atomically updates .* may still be writing")
    assert int(chain.arrays["counter"][0]) == 2 * N


def test_without_overlap_a_launch_waits_for_all() -> None:
    chain = Chain()
    chain.copy("Nothing", "b", "a")
    chain.copy("Nothing", "c", "b", overlap=False)
    chain.refuses(COPY.format("Nothing"), "d", "c")
    chain.copy("Nothing", "e", "d")  # nothing runs on after a fault


@pytest.mark.parametrize("what", ["zeros", "from_host", "to_host", "copy", "drain"])
def test_what_is_no_kernel_waits_for_all(what: str) -> None:
    chain = Chain()
    device, a, b = chain.device, chain.arrays["a"], chain.arrays["b"]
    chain.copy("WaitFirst", "b", "a")
    {
        "zeros": lambda: device.zeros((3,), np.int8),
        "from_host": lambda: device.from_host(a),
        "to_host": lambda: device.to_host(a),
        "copy": lambda: device.copy(a, b),
        "drain": lambda: device.drain(),
    }[what]()
    chain.copy("Nothing", "c", "b")


def test_to_allocate_is_no_wait() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.device.empty((4,), np.float32)
    chain.refuses(COPY.format("Nothing"), "c", "b")


# --- who has waited ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wait_counts_for_those_who_are_ordered_after_it(schedule: Schedule) -> None:
    for meeting, is_right in {"Alone": False, "WarpSync": False, "Barrier": True, "NamedBarrier": True}.items():
        chain = Chain(schedule=schedule)
        chain.copy("WaitFirst", "b", "a")
        instance = f"grid_wait_by_one<{meeting}>"
        if is_right:
            chain.run(instance, "c", "b")
            continue
        with pytest.raises(KernelError, match=r"dependent launch.*no grid_dependency_wait comes before"):
            chain.run(instance, "c", "b")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warp_sync_hands_a_wait_to_its_lanes(schedule: Schedule) -> None:
    chain = Chain(schedule=schedule)
    chain.copy("WaitFirst", "b", "a")
    args = [chain.arrays["c"], chain.arrays["b"]]
    chain.device.launch("grid_wait_by_one<WarpSync>", (1,), (32,), 0, args, overlap=True)


# --- more than two launches at once ---


def test_who_waits_before_it_lets_the_next_one_start_leaves_one_launch_running() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.copy("WaitFirst", "d", "c")
    chain.run("grid_copy_two<WaitFirst>", "e", "b", "d")
    chain.copy("WaitFirst", "d", "c")
    chain.refuses("grid_copy_two<WaitFirst>", "f", "d", "b", mark="early")


def test_who_lets_the_next_one_start_before_it_waits_leaves_two_launches_running() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.copy("ReleaseFirst", "d", "c")
    chain.run("grid_copy_two<WaitFirst>", "e", "a", "b")  # its wait is for both, as the one before has waited
    chain.copy("ReleaseFirst", "d", "c")
    chain.refuses("grid_copy_two<WaitFirst>", "f", "e", "d", mark="early", words="which grid_copy_two<WaitFirst>")


def test_a_wait_tells_nothing_of_what_the_launch_before_never_waited_for() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.copy("Nothing", "d", "c")
    error = chain.refuses(COPY.format("WaitFirst"), "e", "b", words=r"argument 1 \(in\)")
    assert "the wait was for grid_copy<Nothing, float>, which did not wait for it" in str(error)
    chain.copy("WaitFirst", "b", "a")
    chain.copy("Nothing", "d", "c")
    chain.copy("WaitFirst", "e", "d")  # leaves the first unwaited for
    chain.refuses(COPY.format("WaitFirst"), "f", "b", words="did not wait for it")
    chain.copy("WaitFirst", "b", "a")
    chain.copy("WaitLast", "d", "c")
    chain.copy("WaitFirst", "e", "b")


def test_one_block_that_waits_first_holds_the_next_launch_back() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.run("grid_wait_by_one_block", "c", grid=4)
    chain.run("grid_copy_two<WaitFirst>", "d", "b", "c")


def test_of_launches_that_never_wait_many_are_remembered_and_not_more() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    for _ in range(126):
        chain.copy("Nothing", "d", "c", n=0)
    chain.refuses(COPY.format("WaitFirst"), "e", "b")
    chain.copy("WaitFirst", "b", "a")
    for _ in range(128):
        chain.copy("Nothing", "d", "c", n=0)
    chain.copy("WaitFirst", "e", "b")  # no GPU runs so many launches at once


def test_streams_are_apart() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a", stream=1)
    chain.copy("WaitFirst", "d", "c", stream=2)
    chain.copy("Nothing", "e", "b", stream=2)
    chain.device.drain(stream=2)
    chain.refuses(COPY.format("Nothing"), "f", "b", stream=1)


def test_what_another_library_wrote_needs_a_wait() -> None:
    chain = Chain()
    a, b = chain.arrays["a"], chain.arrays["b"].reshape(8, 8)
    chain.device.note_launch("matmul", [a], [b[:, :4]])
    chain.refuses(COPY.format("Nothing"), "c", "b", words="which matmul may still be writing")
    chain.device.note_launch("matmul", [a], [b[:, :4]])
    chain.arrays["half"] = b[0, 4:]
    chain.device.launch(COPY.format("Nothing"), (1,), (4,), 0, [chain.arrays["c"], b[0, 4:], 4], overlap=True)
    chain.refuses(COPY.format("Nothing"), "a", "d", words="which matmul may still be reading")


# --- bytes and addresses ---


def test_neighbouring_bytes_are_told_apart() -> None:
    device: Emulator = kernel_emulator(kernels=KERNELS)
    room, other = device.zeros((96,), np.int8), device.zeros((96,), np.int8)

    def copy(order: str, out: Array, source: Array) -> None:
        device.launch(f"grid_copy<{order}, int8_t>", (1,), (32,), 0, [out, source, out.size], overlap=True)

    for split in (1, 31, 32, 33, 63, 64, 65):
        copy("WaitFirst", room[:split][-32:], other[:split][-32:])
        copy("Nothing", other[split:][:31], room[split:][:31])
        device.drain()
        copy("WaitFirst", room[:split][-32:], other[:split][-32:])
        with pytest.raises(KernelError, match="dependent launch"):
            copy("Nothing", other[80:], room[split - 1 :][:16])


def test_an_arena_gives_memory_on_that_is_still_in_use() -> None:
    chain = Chain()
    arena = chain.device.empty((4 * N,), np.float32)
    chain.arrays["first"] = arena[:N]
    chain.copy("WaitFirst", "first", "a")
    del chain.arrays["first"]
    gc.collect()
    chain.arrays["second"] = arena[:N].view(np.float32)
    chain.refuses(COPY.format("Nothing"), "second", "b", words="may still be writing")


def test_a_new_array_at_an_old_address_is_new_memory() -> None:
    """NumPy gives freed memory away again, most often at once; on a GPU nothing of this launch is left there."""
    chain = Chain()
    for _ in range(100):
        chain.arrays["x"] = chain.device.empty((N,), np.float32)
        address = chain.device.address(chain.arrays["x"])
        chain.copy("WaitFirst", "x", "a")
        del chain.arrays["x"]
        chain.arrays["y"] = np.zeros(N, np.float32)
        again = chain.device.empty((N,), np.float32)
        if chain.device.address(again) == address:
            break
    else:
        pytest.fail("no address came back")
    again[:] = 1
    chain.arrays["x"] = again
    chain.copy("Nothing", "b", "x")


# --- memory that is declared constant ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_constants_may_be_read_before_the_wait(schedule: Schedule) -> None:
    chain = Chain(schedule=schedule)
    chain.copy("WaitFirst", "b", "a")
    chain.run("grid_scale", "c", "d", "b")
    chain.run("grid_scale", "e", "d", "c")
    np.testing.assert_array_equal(chain.arrays["e"], 3.0)


def test_what_the_launch_before_writes_is_no_constant() -> None:
    chain = Chain()
    chain.copy("WaitFirst", "b", "a")
    chain.refuses("grid_scale", "c", "b", "d", mark="weight", words=r"argument 1 \(weight\)")
    chain.copy("WaitFirst", "b", "a")
    error = chain.refuses("grid_scale_late", "c", "b", "d", mark="weight")  # a wait makes it no better
    assert "the parameter is declared constant" in str(error)
    chain.copy("WaitFirst", "b", "a")
    chain.copy("WaitFirst", "d", "c")
    chain.run("grid_scale_late", "e", "b", "d")  # it has been constant since this launch could start


def test_views_that_reach_to_the_end_of_one_memory_are_told_apart() -> None:
    """As a GPU's arrays are in tests: all that is known is where each begins."""
    chain = Chain()
    arena = chain.device.from_host(np.ones(4 * N, np.float32))
    chain.arrays.update({str(i): arena[i * N :] for i in range(4)})
    chain.copy("WaitFirst", "1", "0")
    chain.run("grid_scale_late", "2", "0", "1")
    chain.copy("WaitFirst", "1", "0")
    chain.refuses("grid_scale_late", "2", "1", "0", mark="weight", words="declared constant")
