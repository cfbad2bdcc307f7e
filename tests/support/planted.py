"""Launches of the kernels with planted bugs (tests/kernels/planted.cu) on the emulator, and their errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import KernelError
from tests.support.paths import KERNELS

PLANTED = KERNELS / "planted.cu"


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
