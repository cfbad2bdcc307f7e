"""Twins: kernels with one bug, and the same kernels without it. The emulator tells them apart, whoever runs first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.emulator import host_compiler
from gemma_cuda.device.emulator.device import Emulator, Schedule
from gemma_cuda.device.sources import kernel_name
from gemma_cuda.errors import KernelError
from tests.support import twins_in_a_block, twins_of_blocks
from tests.support.paths import KERNELS
from tests.support.twins import Twins, ints

ORDERS: tuple[tuple[Schedule, int], ...] = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 3))
WORKERS = (1, 2, 4)
ALL = (*twins_of_blocks.ALL, *twins_in_a_block.ALL)


@pytest.fixture(autouse=True, scope="module")
def _lines_are_looked_up_once() -> Iterator[None]:
    """The same places are reported in every order of threads; looking one up runs a tool."""
    known: dict[tuple[Path, int], list[host_compiler.Frame]] = {}
    look_up = host_compiler.frames

    def frames(library: Path, place: int) -> list[host_compiler.Frame]:
        if (library, place) not in known:
            known[library, place] = look_up(library, place)
        return known[library, place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_compiler, "frames", frames)
        yield


def marked_lines(kernel: str) -> set[str]:
    """Lines that carry the mark of a kernel's bug: "twins_locks.cu:11"."""
    mark = re.compile(rf"// bug: {kernel_name(kernel)}\b")
    return {
        f"{path.name}:{number}"
        for path in KERNELS.glob("twins_*.cu")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    }


def lines_of(error: KernelError) -> set[str]:
    return set(re.findall(r"\w+\.cu:\d+", str(error)))


def wrong_results(case: Twins, args: list[Any]) -> str:
    """What differs from the results of the right form; "" if nothing does."""
    expected = {i: np.broadcast_to(np.asarray(value), args[i].shape) for i, value in case.results.items()}
    return "; ".join(
        f"argument {i} is {args[i]}" for i, value in expected.items() if not np.array_equal(args[i], value)
    )


def wrong_verdicts(verdict: Callable[[Emulator], str]) -> str:
    """What verdict(device) says, and in which orders and with how many workers; "" if it never says anything."""
    said: dict[str, list[str]] = {}
    for schedule, seed in ORDERS:
        for workers in WORKERS:
            device = Emulator(checked=True, kernels=KERNELS, schedule=schedule, seed=seed, workers=workers)
            words = verdict(device)
            if words:
                said.setdefault(words, []).append(f"{schedule} {seed}/{workers}")
    return "; ".join(f"{words} [{', '.join(where)}]" for words, where in said.items())


def cases(side: str) -> list[Any]:
    """pytest's parameters: (kernel, its twins)."""
    return [pytest.param(kernel, case, id=kernel) for case in ALL for kernel in getattr(case, side)]


@pytest.mark.parametrize(("kernel", "case"), cases("wrong"))
def test_a_bug_is_found_in_every_order(kernel: str, case: Twins) -> None:
    lines = marked_lines(kernel)
    assert lines, kernel

    def verdict(device: Emulator) -> str:
        try:
            args = case.launch(kernel, device)
        except KernelError as error:
            if error.kind not in case.kinds:
                return f"{error.kind} instead of {' or '.join(case.kinds)}"
            if not lines_of(error) or not lines_of(error) <= lines:
                return f"{error.kind} at {sorted(lines_of(error) - lines)}"
            missing = [name for name in case.names if name not in str(error)]
            return f"{error.kind} that does not name {missing}: {error}" if missing else ""
        if case.kinds:
            return "nothing found"
        return "" if wrong_results(case, args) else "the result looks right"

    assert wrong_verdicts(verdict) == ""


@pytest.mark.parametrize(("kernel", "case"), cases("right"))
def test_the_right_form_passes_in_every_order(kernel: str, case: Twins) -> None:
    def verdict(device: Emulator) -> str:
        try:
            args = case.launch(kernel, device)
        except KernelError as error:
            return f"{error.kind} at {sorted(lines_of(error))}"
        return wrong_results(case, args)

    assert wrong_verdicts(verdict) == ""


def test_memory_that_an_earlier_launch_or_the_host_has_written_is_written() -> None:
    device = Emulator(checked=True, kernels=KERNELS)

    def assert_can_be_read(values: np.ndarray[Any, Any]) -> None:
        bins = ints(8)
        device.launch("ok_global_histogram", (1,), (8,), 0, [bins, values])
        assert bins.sum() == 8

    by_kernel, by_host, by_copy = (device.empty((64,), np.int32) for _ in range(3))
    device.launch("ok_reads_written<int>", (1,), (64,), 0, [ints(64), by_kernel])
    assert_can_be_read(by_kernel)
    by_host[:8] = 1
    assert_can_be_read(by_host)
    device.copy(by_copy, by_kernel)
    assert_can_be_read(by_copy)


def test_every_twin_of_the_kernels_is_launched() -> None:
    declared = {
        name for path in KERNELS.glob("twins_*.cu") for name in re.findall(r"__global__ void (\w+)\(", path.read_text())
    }
    launched = {kernel_name(kernel) for case in ALL for kernel in (*case.wrong, *case.right)}
    assert launched == declared
