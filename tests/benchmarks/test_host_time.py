"""The measurement of the host's share runs on today's package."""

from __future__ import annotations

import pytest

from benchmarks import host_time


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # memory that nobody wrote
def test_every_figure_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_time, "ROUNDS", 3)
    result = host_time.measure()
    assert list(result["prefill_us"]) == [str(n) for n in host_time.LENGTHS]
    assert all(us > 0 for us in (*result["prefill_us"].values(), result["first_of_its_length_us"], result["launch_us"]))
