"""The emulator against files of what GPUs gave, and the files themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support import golden
from tests.support.golden import GoldenFile, GoldenLaunch


@pytest.mark.parametrize("path", sorted(golden.DIRECTORY.glob("*.zip")), ids=lambda path: path.stem)
def test_the_emulator_does_what_a_gpu_did(path: Path) -> None:
    differences = [golden.difference(launch) for launch in GoldenFile(path).launches()]
    assert differences and not any(differences), [each for each in differences if each]


ROUND = (np.zeros(8, ml_dtypes.bfloat16), np.linspace(-3, 3, 8, dtype=np.float32), 8)
APPROXIMATE = (np.zeros(8, np.float32), np.linspace(0.1, 3, 8, dtype=np.float32), 8)
MULTIPLY = (
    np.full((1, 32, 4), 0.5, np.float32),
    np.random.default_rng(0).standard_normal((32, 8)).astype(np.float16).view(np.uint32),
    np.random.default_rng(1).standard_normal((1, 32, 4)).astype(np.float16).view(np.uint32),
)


@pytest.mark.parametrize(
    ("instance", "args", "allowed", "wrong"),
    [
        ("round_to<bf16>", ROUND, 0, 0.01),
        ("approximate<Tanh>", APPROXIMATE, 2.0**-12, 2.0**-10),
        ("approximate<Reciprocal>", APPROXIMATE, 2.0**-24, 2.0**-20),
        ("multiply<half, 1>", MULTIPLY, 2.0**-23, 2.0**-15),
    ],
)
def test_a_file_tells_what_differs(
    instance: str, args: tuple[Any, ...], allowed: float, wrong: float, tmp_path: Path
) -> None:
    recording = GoldenFile(tmp_path / "golden.zip")
    for factor in (1 + allowed, 1 + wrong):
        launch = GoldenLaunch(instance, (1,), (32,), 0, list(args), {0: args[0]})
        ours = launch.on_emulator()[0]
        recording.add(GoldenLaunch(**{**vars(launch), "results": {0: (ours * factor).astype(ours.dtype)}}))
    right, planted = (golden.difference(launch) for launch in recording.launches())
    assert right is None
    assert planted is not None and planted.startswith(f"{instance}: argument 0 differs at ")
