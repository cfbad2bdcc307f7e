"""Twins: kernels with one bug, and the same kernels without it. The emulator tells them apart, whoever runs first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device import host_compiler
from gemma_cuda.device.emulator import Emulator, Schedule
from gemma_cuda.errors import KernelError

KERNELS = Path(__file__).parent / "kernels"
ORDERS: tuple[tuple[Schedule, int], ...] = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 3))
WORKERS = (1, 2, 4)
Array = np.ndarray[Any, Any]
RACE = "data race"


@dataclass(frozen=True)
class Unwritten:
    """An argument that the device allocates and nobody writes."""

    size: int
    dtype: Any


@dataclass(frozen=True)
class Twins:
    """Kernels that are launched alike. kinds: what may be reported of a kernel with a bug, and names: what the message
    must name besides the lines; results: what the right ones leave in their arguments, by position."""

    wrong: dict[str, tuple[str, ...]]  # kernel -> what its message names
    right: tuple[str, ...]
    args: tuple[Any, ...]
    results: dict[int, Any]
    block: int = 1
    grid: int = 4
    shared: int = 0
    kinds: tuple[str, ...] = (RACE,)

    def launch(self, kernel: str, device: Emulator) -> list[Any]:
        """The arguments after a launch."""
        args = [self._argument(value, device) for value in self.args]
        device.launch(kernel, (self.grid,), (self.block,), self.shared, args)
        return args

    @staticmethod
    def _argument(value: Any, device: Emulator) -> Any:
        if isinstance(value, Unwritten):
            return device.empty((value.size,), value.dtype)
        return value.copy() if isinstance(value, np.ndarray) else value


def floats(n: int, value: float = 0.0) -> Array:
    return np.full(n, value, np.float32)


def ints(n: int, value: int = 0) -> Array:
    return np.full(n, value, np.int32)


def words(n: int) -> Array:
    return np.zeros(n, np.uint64)


FENCES = (
    Twins(
        {
            name: ("argument 1 (partial)",)
            for name in (
                "ticket_before_write",
                "write_after_fence",
                "no_acquire",
                "release_of_block_scope",
                "acquire_of_block_scope",
            )
        },
        ("ok_ticket",),
        (floats(1), floats(4), ints(1)),
        {0: 10.0, 1: [1, 2, 3, 4], 2: 4},
    ),
    Twins(
        {
            name: ("argument 1 (partial)",)
            for name in ("every_thread_fences_first", "one_fences_before_barrier", "reader_fences_before_ticket")
        },
        ("ok_every_thread_fences", "ok_one_fences_after_barrier", "ok_reader_fences_after_barrier"),
        (floats(1), floats(256), ints(1)),
        {0: 256.0},
        block=64,
        shared=4,
    ),
    Twins(
        {name: ("argument 1 (partial)",) for name in ("lane_fences_for_warp", "shuffled_ticket")},
        ("ok_lane_fences_for_warp",),
        (floats(32), floats(128), ints(1)),
        {0: 4.0},
        block=32,
    ),
    Twins(
        {name: ("argument 1 (sum)",) for name in ("sum_then_count", "count_then_sum")},
        ("ok_sum_then_count",),
        (floats(1), floats(1), ints(1)),
        {0: 10.0},
    ),
    Twins(
        {name: ("argument 1 (arrived)",) for name in ("first_resets_counter", "counter_read_early")},
        ("ok_last_resets_counter",),
        (floats(1), ints(1)),
        {0: 4.0, 1: 0},
    ),
)

LOCKS = (
    Twins(
        {
            name: ("argument 0 (total)",)
            for name in ("lock_without_release", "lock_without_acquire", "unlock_before_fence", "lock_of_block_scope")
        }
        | {"unlock_plainly": ("argument 1 (mutex)",)},
        ("ok_lock",),
        (floats(1), ints(1)),
        {0: 4.0, 1: 0},
    ),
    Twins({"two_locks": ("argument 0 (total)",)}, ("ok_two_locks",), (floats(2), ints(2)), {0: 2.0}),
    Twins(
        {"touch_after_release": ("argument 2 (count)",)},
        ("ok_two_under_one_lock",),
        (floats(1), ints(1), ints(1)),
        {0: 4.0, 2: 4},
    ),
    Twins({"lock_in_shared_memory": ("argument 0 (total)",)}, (), (floats(1),), {}, shared=4),
    Twins({}, ("ok_lock_in_shared_memory",), (floats(4),), {0: 4.0}, block=128, shared=4),
    Twins(
        {
            "once_checked_plainly": ("argument 3 (ready)",),
            "once_without_acquire": ("argument 1 (table)",),
        },
        ("ok_once",),
        (floats(4), floats(1), ints(1), ints(1)),
        {0: 5.0},
    ),
    Twins(
        {"handed_on_without_fence": ("argument 1 (data)",)},
        ("ok_handed_on",),
        (floats(1), floats(1), ints(1), ints(3)),
        {0: 7.0},
        grid=3,
    ),
    Twins(
        {
            "look_back_flag_first": ("argument 0 (prefix)",),
            "look_back_without_acquire": ("argument 0 (prefix)",),
            "look_back_plain_flag": ("argument 2 (flags)",),
        },
        ("ok_look_back",),
        (floats(4), ints(1), ints(4)),
        {0: [1, 2, 3, 4]},
    ),
    Twins(
        {"look_back_half_packed": ("argument 2 (state)",)},
        ("ok_look_back_packed",),
        (floats(4), ints(1), words(4)),
        {0: [1, 2, 3, 4]},
    ),
)

TURNS = (
    Twins(
        {
            name: ("argument 0 (out)",)
            for name in (
                "split_k_passed_on_early",
                "split_k_waits_alone",
                "split_k_without_acquire",
                "split_k_without_release",
            )
        },
        ("ok_split_k", "ok_split_k_all_fence"),
        (floats(64), ints(1), ints(1)),
        {0: 4.0},
        block=64,
    ),
    Twins(
        {"fix_up_reported_by_one_warp": ("argument 1 (workspace)",)},
        ("ok_fix_up",),
        (floats(64), floats(192), ints(1), ints(1)),
        {0: 4.0},
        block=64,
        shared=4,
    ),
    Twins(
        {"last_warp_without_fence": ("argument 1 (partial)",)},
        ("ok_last_warp",),
        (floats(32), floats(128), ints(1)),
        {0: 4.0},
        block=128,
        grid=1,
    ),
    Twins(
        {"last_warp_shared_without_fence": ("shared memory",)},
        ("ok_last_warp_shared",),
        (floats(32),),
        {0: 4.0},
        block=128,
        grid=1,
        shared=516,
    ),
    Twins(
        {name: ("argument 1 (scale)",) for name in ("scale_renewed_without_fence", "scale_read_after_ticket")},
        ("ok_scale_renewed",),
        (floats(4), floats(1, 1.0), ints(1)),
        {0: 1.0, 1: 2.0},
    ),
    Twins(
        {"third_reader_unfenced": ("argument 1 (scale)",)},
        ("ok_third_reader",),
        (floats(4), floats(1, 1.0), ints(1), ints(1)),
        {0: 1.0, 1: 2.0},
    ),
)

ALL = (*FENCES, *LOCKS, *TURNS)

MISSED = "finds nothing"
ACCUSED = "reports a data race"
KNOWN_WRONG = {
    "ticket_before_write": MISSED,
    "write_after_fence": MISSED,
    "ok_every_thread_fences": ACCUSED,
    "ok_reader_fences_after_barrier": ACCUSED,
    "ok_lane_fences_for_warp": ACCUSED,
    "sum_then_count": MISSED,
    "count_then_sum": MISSED,
    "first_resets_counter": "names the line after the atomic operation",
    "lock_without_release": MISSED,
    "unlock_before_fence": MISSED,
    "touch_after_release": MISSED,
    "lock_in_shared_memory": MISSED,
    "ok_lock_in_shared_memory": ACCUSED,
    "look_back_flag_first": MISSED,
    "look_back_half_packed": MISSED,
    "ok_split_k_all_fence": ACCUSED,
    "ok_last_warp": ACCUSED,
    "ok_last_warp_shared": ACCUSED,
    "scale_read_after_ticket": MISSED,
    "third_reader_unfenced": MISSED,
}
"""Kernel -> what the emulator says of it instead, where that is known to be wrong."""


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
    mark = re.compile(rf"// bug: {kernel}\b")
    return {
        f"{path.name}:{number}"
        for path in KERNELS.glob("twins_*.cu")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    }


def wrong_verdicts(verdict: Callable[[Emulator], str]) -> str:
    """In which orders, and with how many workers, what verdict(device) says is not ""; "" if it is always."""
    said: dict[str, list[str]] = {}
    for schedule, seed in ORDERS:
        for workers in WORKERS:
            device = Emulator(checked=True, kernels=KERNELS, schedule=schedule, seed=seed, workers=workers)
            words = verdict(device)
            if words:
                said.setdefault(words, []).append(f"{schedule} {seed}/{workers}")
    return "; ".join(f"{words} [{', '.join(where)}]" for words, where in said.items())


def cases(side: str) -> list[Any]:
    """pytest's parameters: (kernel, its twins), those that are known to be judged wrongly marked as such."""
    return [
        pytest.param(
            kernel,
            twins,
            id=kernel,
            marks=[pytest.mark.xfail(reason=KNOWN_WRONG[kernel], strict=True)] if kernel in KNOWN_WRONG else [],
        )
        for twins in ALL
        for kernel in getattr(twins, side)
    ]


@pytest.mark.parametrize(("kernel", "twins"), cases("wrong"))
def test_a_bug_is_found_in_every_order(kernel: str, twins: Twins) -> None:
    lines = marked_lines(kernel)
    assert lines, kernel

    def verdict(device: Emulator) -> str:
        try:
            twins.launch(kernel, device)
        except KernelError as error:
            said = set(re.findall(r"\w+\.cu:\d+", str(error)))
            if error.kind not in twins.kinds:
                return f"{error.kind} instead of {' or '.join(twins.kinds)}"
            if not said or not said <= lines:
                return f"{error.kind} at {sorted(said - lines)}"
            missing = [name for name in twins.wrong[kernel] if name not in str(error)]
            return f"{error.kind} that does not name {missing}: {error}" if missing else ""
        return "nothing found"

    assert wrong_verdicts(verdict) == ""


@pytest.mark.parametrize(("kernel", "twins"), cases("right"))
def test_the_right_form_passes_in_every_order(kernel: str, twins: Twins) -> None:
    def verdict(device: Emulator) -> str:
        try:
            args = twins.launch(kernel, device)
        except KernelError as error:
            return f"{error.kind} at {sorted(set(re.findall(r'[a-z_]+[.]cu:[0-9]+', str(error))))}"
        wrong = {i: args[i] for i, value in twins.results.items() if not np.array_equal(args[i], args[i] * 0 + value)}
        return f"results {wrong}" if wrong else ""

    assert wrong_verdicts(verdict) == ""
