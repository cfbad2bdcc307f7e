"""The generated pages are what their script makes of the committed results."""

from __future__ import annotations

import pytest

from benchmarks import report, timing


@pytest.mark.parametrize("path", ["benchmarks.md", "costs.md", "emulator.md"])
def test_the_page_is_up_to_date(path: str) -> None:
    assert (report.DOCS / path).read_text() == report.pages()[report.DOCS / path], "run: python -m benchmarks.report"


def test_interleaved_runs_everyone_once_per_round_in_turning_order() -> None:
    calls: list[str] = []
    seconds = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}


def test_interval_holds_the_median() -> None:
    low, middle, high = timing.interval([0.8, 0.9, 1.0, 0.85, 0.95, 0.7, 1.1])
    assert low <= middle == 0.9 <= high
