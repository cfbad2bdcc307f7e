"""Sums of tensor cores that others published, beside the emulator's: python -m benchmarks.published_results DIR

DIR is a checkout of github.com/north-numerical-computing/MATLAB-tensor-core, which is not part of this project. Its
model_validation/GPU/TYPE/ has the operands of some thousands of sums of 8 or 16 products, a line each, and in d_*.txt
what the GPU made of them (arXiv 2512.07004).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_cuda.device.emulator.device import Emulator
from tests.support.compare import DTYPES
from tests.support.isa import layouts
from tests.support.isa.layouts import Array
from tests.support.paths import KERNELS

TYPES = {"bf16": ("bf16", DTYPES["bfloat16"]), "fp16": ("half", DTYPES["float16"])}
GPUS: dict[str, Any] = {
    **dict.fromkeys(("A2", "A30", "A40", "A100", "Ada", "L40S"), "ampere"),
    **dict.fromkeys(("H100", "H200", "B200"), "hopper"),
}


@dataclass(frozen=True)
class Agreement:
    """How many sums of a GPU have the bits of the emulator's `mma`."""

    gpu: str
    kind: str
    mma: str
    equal: int
    sums: int


def compare(directory: Path) -> list[Agreement]:
    """Each GPU and type that DIR/model_validation has."""
    found = []
    for path in sorted(directory.glob("model_validation/*/*/d_*_fp32.txt")):
        gpu, kind = path.parts[-3:-1]
        if gpu not in GPUS or kind not in TYPES:
            continue
        name, dtype = TYPES[kind]
        a, b = (_hexadecimal(path.with_name(f"{of}_{gpu}_{kind}.txt")).astype(dtype) for of in "ab")
        c, d = (_binary(path.with_name(f"{of}_{gpu}_fp32.txt")) for of in "cd")
        ours = sums(name, a, b, c.view(np.float32), GPUS[gpu])
        found.append(Agreement(gpu, kind, GPUS[gpu], int((ours == d).sum()), len(d)))
    return found


def sums(name: str, a: Array, b: Array, c: Array, mma: Any) -> Array:
    """uint32 bits [n] of c + Σ a · b on the emulator, for a and b [n, up to 16]: 8 of them are a product's diagonal."""
    device, out = Emulator(kernels=KERNELS, mma=mma), np.zeros(len(c), np.uint32)
    (a_m, a_k), (b_k, b_n), (c_m, c_n) = (layouts.mma(operand) for operand in "abc")
    for first in range(0, len(c), 8):
        part = slice(first, min(first + 8, len(c)))
        count, terms = part.stop - first, a.shape[1]
        left, right, start = np.zeros((16, 16), a.dtype), np.zeros((16, 8), a.dtype), np.zeros((16, 8), np.float32)
        left[:count, :terms], right[:terms, :count] = a[part], b[part].T
        start[range(count), range(count)] = c[part]
        d = np.ascontiguousarray(start[c_m, c_n])[None]
        operands = (np.ascontiguousarray(of).view(np.uint32) for of in (left[a_m, a_k], right[b_k, b_n]))
        device.launch(f"multiply<{name}, 1>", (1,), (32,), 0, [d, *operands])
        start[c_m, c_n] = d[0]
        out[part] = start[range(count), range(count)].view(np.uint32)
    return out


def _hexadecimal(path: Path) -> Array:
    rows = [[int(number, 16) for number in line.split()] for line in path.read_text().splitlines()]
    return np.array(rows, np.uint32).view(np.float32)


def _binary(path: Path) -> Array:
    return np.array([int(line, 2) for line in path.read_text().split()], np.uint32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    for of in compare(parser.parse_args().directory):
        print(f"{of.gpu:5} {of.kind}: {of.equal} of {of.sums} sums have the bits of {of.mma}")


if __name__ == "__main__":
    main()
