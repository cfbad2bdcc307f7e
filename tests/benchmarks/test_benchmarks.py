"""The generated pages are what their script makes of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_page, report, timing

PAGES = report.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(report.DOCS)))
def test_the_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PAGES[path], "run: python -m benchmarks.report"


def test_a_stale_page_fails_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    assert report.main() == 0
    page = report.GENERATED / "benchmarks.md"
    monkeypatch.setattr(report, "pages", lambda: {page: page.read_text() + "more\n"})
    assert report.main() == 1


CEILINGS = {"copy_bytes_per_s": 3e12, "product_flops_per_s": 7e14, "product_by": "a library"}
ATTENTION = {
    "op": "attention", "model": "fa3", "shape": "S 2048", "params": {"head_dim": 128, "causal": True, "tokens": 2048},
    "wrong": None, "median_us": 12.5, "low_us": 12.0, "high_us": 13.0, "tflops": 321.4, "gbytes_per_s": 100.0,
    "share": 0.45, "peers": {"torch": {"ours_to_peer": 1.25}},
}  # fmt: skip
PREFILL = {
    "model": "gemma-2-2b", "tokens": 128, "median_ms": 5.25, "host_ms": 0.5, "floor_ms": 2.0, "times_floor": 2.6,
    "launches_per_layer": 9, "peers": {"transformers sdpa": 20.5, "transformers eager": None},
}  # fmt: skip


def test_what_a_gpu_gave_is_on_the_page_and_what_it_did_not_is_said(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [ATTENTION, {**ATTENTION, "op": "linear", "wrong": "NaN"}]
    measured = {
        "gpu-bench": {"gpu": "A GPU", "ceilings": CEILINGS, "rows": rows, "versions": {"torch": "torch 2.13.0"}},
        "gpu-prefill": {"gpu": "A GPU", "ceilings": CEILINGS, "rows": [PREFILL]},
        "gpu-compiled": {
            "kernels": {"rows": [{**ATTENTION, "peers": {"flex": {"ours_to_peer": 0.75}}}]},
            "prefill": {"rows": [{**PREFILL, "peers": {"transformers compiled": 8.25}}]},
        },
    }
    text = "\n".join(gpu_page.lines(measured))
    assert "| attention | fa3 S 2048 | 12.5 (12.0 to 13.0) | 321.4 TFLOP/s | 45 | torch ×1.25 |" in text
    assert "| linear | S 2048 | wrong |" in text and "torch is torch 2.13.0." in text
    compiled = text.partition("### Beside what torch.compile makes")[2]
    assert "| 321.4 TFLOP/s | 45 | flex ×0.75 |" in compiled and "| transformers compiled 8.2 |" in compiled
    assert (
        "| gemma-2-2b | 128 | 5.25 | 0.50 | 2.6 | 9 | transformers sdpa 20.5, transformers eager not measured |" in text
    )
    assert "| 128 causal | ours | not measured | not measured | 321 |" in text
    gpu_page.write_plots(measured, tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"over-length.svg", "roofline.svg", "latency.svg"}
    nothing = "\n".join(gpu_page.lines({}))
    assert "Nobody has measured a GPU yet" in nothing and "| 128 causal | ours | not measured | not" in nothing


def test_interleaved_runs_everyone_once_per_round_in_turning_order() -> None:
    calls: list[str] = []
    seconds = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}


def test_interval_holds_the_median() -> None:
    low, middle, high = timing.interval([0.8, 0.9, 1.0, 0.85, 0.95, 0.7, 1.1])
    assert low <= middle == 0.9 <= high


def test_each_surviving_mutant_has_its_reason() -> None:
    kernels = json.loads((report.ROOT / "results" / "mutants.json").read_text())
    assert all(
        r["killed"] + len(r["survivors"]) == r["counted"] >= r["killed"] >= 0.9 * r["counted"] for r in kernels.values()
    )
    assert all(survivor["why"] for r in kernels.values() for survivor in r["survivors"])
