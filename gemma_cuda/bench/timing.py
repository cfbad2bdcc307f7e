"""Median and spread of times taken in rounds, for our launches (measure.py) and for peers (peers.py) alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 7, 100, 0.3
LEAST_GRAPH_MS, MOST_REPEATS = 0.2, 64  # a shorter graph is repeated inside a longer one; the host starts one in 10 us


@dataclass(frozen=True)
class Timing:
    """Microseconds of one launch: median, 10th and 90th percentile over `rounds` rounds.

    is_graph: a CUDA graph was timed; without one the host's own time may be part of it.
    """

    median_us: float
    low_us: float
    high_us: float
    rounds: int
    is_graph: bool = True


def repeats_for(graph_ms: float) -> int:
    """Repetitions inside one graph of work that takes graph_ms, so that the host gets ahead of the GPU."""
    return max(1, min(math.ceil(LEAST_GRAPH_MS / max(graph_ms, 1e-6)), MOST_REPEATS))


def timed(
    times_ms: Callable[[int], Sequence[float]],
    count: int = 1,
    *,
    is_graph: bool = True,
    enough_s: float | None = None,
) -> Timing:
    """Timing of one launch, where times_ms(n) measures n times the milliseconds of `count` launches together."""
    times_ms(2)  # not counted
    times: list[float] = []
    enough_s = ENOUGH_SECONDS if enough_s is None else enough_s
    start = time.perf_counter()
    while len(times) < FEWEST_ROUNDS or (len(times) < MOST_ROUNDS and time.perf_counter() - start < enough_s):
        times += [1e3 * ms / count for ms in times_ms(FEWEST_ROUNDS)]
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(statistics.median(times), deciles[0], deciles[-1], len(times), is_graph)
