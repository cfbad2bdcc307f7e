"""What fuzz tests share: the number of examples, hostile values and files. `make fuzz TIMES=50 SEED=1` draws more.

Each states how many examples `make test` draws, seeded; `pytest --fuzz N` draws N times as many, others each time.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def examples(number: int) -> settings:
    """Settings of a fuzz test that draws `number` examples in `make test`: about five CPU seconds' worth.

    Hypothesis's profile says how many times as many are drawn: its max_examples is 100 times that factor.
    """
    times = settings().max_examples // 100
    return settings(
        max_examples=number * times,
        derandomize=times == 1,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
