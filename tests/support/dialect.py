"""Launches of tests/kernels/dialect/, kernels as people write them for nvcc, on the emulator."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gemma_cuda.device.emulator.device import Emulator, Schedule
from gemma_cuda.errors import KernelError
from tests.support.paths import KERNELS

DIALECT = KERNELS / "dialect"


def emulator(schedule: Schedule = "forward", **options: Any) -> Emulator:
    return Emulator(**{"kernels": DIALECT, "checked": True, "workers": 2, "seed": 5, "schedule": schedule, **options})


def bug_lines(file: str, name: str) -> list[str]:
    lines = (DIALECT / file).read_text().splitlines()
    marked = [f"{file}:{i}" for i, line in enumerate(lines, 1) if re.search(rf"// bug: {name}\b", line)]
    assert marked, name
    return marked


def fails(
    instance: str,
    args: list[Any],
    *,
    file: str = "planted.cu",
    grid: int = 1,
    block: int = 64,
    shared: int = 0,
    **options: Any,
) -> KernelError:
    """The KernelError of a launch, whose line must be marked in the source."""
    with pytest.raises(KernelError) as info:
        emulator(**options).launch(instance, (grid,), (block,), shared, args)
    assert info.value.source in bug_lines(file, instance), info.value
    return info.value
