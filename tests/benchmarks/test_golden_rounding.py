"""A golden file of products tells which rounding of mma the GPU has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.golden_rounding import agreement
from tests.support import golden
from tests.support.golden import GoldenFile, GoldenLaunch

MULTIPLY = (
    np.full((1, 32, 4), 0.5, np.float32),
    np.random.default_rng(0).standard_normal((32, 8)).astype(np.float16).view(np.uint32),
    np.random.default_rng(1).standard_normal((1, 32, 4)).astype(np.float16).view(np.uint32),
)


def test_a_file_tells_how_the_gpu_rounds(tmp_path: Path) -> None:
    recording = GoldenFile(tmp_path / "golden.zip")
    launch = GoldenLaunch("multiply<half, 1>", (1,), (32,), 0, list(MULTIPLY), {0: MULTIPLY[0]})
    recording.add(GoldenLaunch(**{**vars(launch), "results": launch.on_emulator(mma="hopper")}))
    assert [golden.difference(launch) for launch in recording.launches()] == [None]
    counts = agreement(recording.path)
    assert counts.pop("hopper") == (128, 128)
    assert all(20 < equal < 128 and total == 128 for equal, total in counts.values())
