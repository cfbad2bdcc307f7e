"""How a GPU's tensor cores round, from a golden file of its launches: python -m benchmarks.golden_rounding FILE"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.support.emulated import MMA_ROUNDINGS
from tests.support.golden import GoldenFile


def agreement(path: Path) -> dict[str, tuple[int, int]]:
    """Rounding of mma -> (sums of matrix products with the bits of the GPU, all of them)."""
    products = [launch for launch in GoldenFile(path).launches() if launch.is_product]
    counts = {}
    for mma in MMA_ROUNDINGS:
        ours = [launch.on_emulator(mma=mma)[i].view(np.uint32) for launch in products for i in launch.results]
        golden = [launch.results[i].view(np.uint32) for launch in products for i in launch.results]
        equal = sum(int((x == y).sum()) for x, y in zip(ours, golden, strict=True))
        counts[mma] = (equal, sum(x.size for x in golden))
    return counts


def main(path: str) -> None:
    for rounding, (equal, total) in agreement(Path(path)).items():
        print(f"{rounding:6} {equal} of {total} sums of matrix products have the GPU's bits")


if __name__ == "__main__":
    main(*sys.argv[1:])
