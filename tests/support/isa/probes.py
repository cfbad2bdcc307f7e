"""Kernels that show what the lanes of a warp hold of numbered elements: what the tests of layouts launch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from gemma_cuda.device.sources import kernel_directory
from tests.support.compare import DTYPES
from tests.support.emulated import KernelTestDevice, kernel_emulator
from tests.support.isa.layouts import Array
from tests.support.paths import KERNELS

TYPES = {"bf16": DTYPES["bfloat16"], "half": DTYPES["float16"]}
CUTE = {"bf16": "bf16", "half": "f16"}


def launch(
    instance: str,
    args: list[Any],
    kernels: Path = KERNELS,
    *,
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
    make_device: KernelTestDevice = kernel_emulator,
) -> None:
    """Runs a kernel of a directory."""
    make_device(kernels=kernels, checked=False).launch(instance, (grid,), (block,), shared, args)


def probe(directory: Path, of: str, mutation: tuple[str, str] | None = None) -> Path:
    """`directory`, with a file probe.cu: kernels/OF with its headers of kernels/common inlined, then *_probe.cu.

    mutation: (before, after), of which the first is in the text once.
    """
    included = set()

    def text_of(name: str) -> str:
        if name in included:
            return ""
        included.add(name)
        text = (kernel_directory() / name).read_text(encoding="utf-8").replace("#pragma once", "")
        return re.sub(r'#include "(common/\w+\.cuh)"', lambda match: text_of(match[1]), text)

    text = text_of(of)
    if mutation is not None:
        assert text.count(mutation[0]) == 1, f"{mutation[0]!r} is {text.count(mutation[0])} times in {of}"
        text = text.replace(*mutation)
    text += (Path(__file__).parent / f"{Path(of).stem}_probe.cu").read_text(encoding="utf-8")
    (directory / "probe.cu").write_text(text, encoding="utf-8")
    return directory


def halves(registers: Array) -> Array:
    """uint16 values of each lane's 32-bit registers, in CuTe's order of values."""
    return registers.view(np.uint16)
