"""Times of launches as captured graphs, and which of several graphs is the fastest beyond noise.

A loop of the host that launches short kernels measures itself. Between two events of what is timed here there is one
graph, of as many launches as it takes for the host to be ahead of the GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .launch_plan import CapturedPlan

if TYPE_CHECKING:
    from .device import Cuda

Step = Callable[[int], None]
ROUNDS = 11  # of which the deciles leave out the extreme one at each end
TICK_MS = 1e-3  # two ticks of an event, which counts in half microseconds
_SCREENED = 1.25  # times the fastest: what is slower in a first round is not timed any more


@dataclass(frozen=True)
class Choice:
    """Which of several was chosen, and what was measured of it and of the first one: milliseconds of a graph.

    noise_ms: the larger spread of both, from the 10th to the 90th percentile. The first is chosen unless another one is
    faster by more.
    """

    index: int
    chosen_ms: float
    first_ms: float
    fastest_ms: float
    noise_ms: float

    @property
    def is_measured(self) -> bool:
        """Whether it was chosen for its time, and not for being the first."""
        return self.index != 0


@dataclass(frozen=True)
class Steps:
    """Launches over memory that whoever times them keeps."""

    steps: Sequence[Step]

    def start(self, stream: int) -> None:
        """Starts all of them, one after another. Raises LaunchError."""
        for step in self.steps:
            step(stream)


def captured(cuda: Cuda, steps: Sequence[Step]) -> CapturedPlan:
    """step(stream) of each, as one graph; run once before, since a first launch may load what a capture may not.

    The caller keeps the memory that they use.
    """
    plan = Steps(steps)
    cuda.start(plan)
    cuda.synchronize()
    return cuda.capture(plan)


def fastest(cuda: Cuda, graphs: Sequence[CapturedPlan]) -> Choice:
    """The graph that takes least time; the first one unless another is faster by more than the noise.

    They take turns, so that what slows the GPU down slows all of them down.
    """
    screening = cuda.graph_times(graphs)
    limit = _SCREENED * min(screening)
    left = [0, *(i for i in range(1, len(graphs)) if screening[i] <= limit)]
    times = cuda.graph_times([graphs[i] for i in left] * ROUNDS)
    return chosen(left, [times[i :: len(left)] for i in range(len(left))])


def chosen(indices: Sequence[int], times: Sequence[Sequence[float]]) -> Choice:
    """The Choice among these, of which the first is the one to keep; times: of each, in milliseconds."""
    medians = [statistics.median(own) for own in times]
    best = min(range(len(medians)), key=medians.__getitem__)
    noise = max(TICK_MS, _spread(times[0]), _spread(times[best]))
    won = best if medians[0] - medians[best] > noise else 0
    return Choice(indices[won], medians[won], medians[0], medians[best], noise)


def _spread(times: Sequence[float]) -> float:
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return deciles[-1] - deciles[0]
