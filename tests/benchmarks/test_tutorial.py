"""docs/tutorial.md does what it says: its commands print what it shows."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tutorial import ROOT, TUTORIAL, copy_checkout, rewrite


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    text = TUTORIAL.read_text()
    assert rewrite(text, tmp_path) == text, "python -m benchmarks.tutorial brings docs/tutorial.md up to date"
    for name in ("kernels/common/reduce.cuh", "gemma_cuda/ops/rms_norm.py"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"the tutorial leaves {name} changed"
