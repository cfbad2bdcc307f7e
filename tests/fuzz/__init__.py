"""Fuzz tests: files, arguments and luck that nobody means well with. `make fuzz TIMES=50 SEED=1` draws more of them.

Each states how many examples `make test` draws, seeded; `pytest --fuzz N` draws N times as many, others each time.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_times = 1


def draw_times(times: int) -> None:
    """Makes every fuzz test that is collected from now on draw so many times as many examples."""
    global _times
    _times = times


def examples(number: int) -> settings:
    """Settings of a fuzz test that draws `number` examples in `make test`: about five CPU seconds' worth."""
    return settings(
        max_examples=number * _times,
        derandomize=_times == 1,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
