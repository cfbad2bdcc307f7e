"""Times of launches as CUDA graphs, and the choice of the fastest graph beyond noise.

A host loop that launches short kernels measures itself. Here one graph lies between two events, with enough launches
for the host to be ahead of the GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .device import Cuda
from .launch_plan import CapturedPlan, StreamLaunch

ROUNDS = 11  # deciles of 11 times leave out the extreme one at each end
TICK_MS = 1e-3  # two ticks of an event, which counts in half microseconds
_SCREENED = 1.25  # graphs slower than so many times the fastest of a first round are not timed again


@dataclass(frozen=True)
class Choice:
    """Index of the chosen graph, with median times in milliseconds.

    noise_ms: the larger spread of the first and the fastest, from the 10th to the 90th percentile. The first is chosen
    unless another one is faster by more.
    """

    index: int
    chosen_ms: float
    first_ms: float
    fastest_ms: float
    noise_ms: float

    @property
    def is_measured(self) -> bool:
        """Whether a graph other than the first was chosen, for its time."""
        return self.index != 0


@dataclass(frozen=True)
class LaunchSequence:
    """Launches over memory that the caller keeps."""

    launches: Sequence[StreamLaunch]

    def launch(self, stream: int) -> None:
        """Starts all of them, one after another. Raises LaunchError."""
        for launch in self.launches:
            launch(stream)


def captured(cuda: Cuda, launches: Sequence[StreamLaunch]) -> CapturedPlan:
    """The launches as one graph, over memory that the caller keeps; they run once before the capture."""
    plan = LaunchSequence(launches)
    cuda.launch_plan(plan)
    cuda.synchronize()
    return cuda.capture(plan)


def fastest(cuda: Cuda, graphs: Sequence[CapturedPlan]) -> Choice:
    """The Choice among graphs, which take turns, so that a slow phase of the GPU slows all of them down."""
    screening = cuda.graph_times(graphs)
    limit = _SCREENED * min(screening)
    left = [0, *(i for i in range(1, len(graphs)) if screening[i] <= limit)]
    times = cuda.graph_times([graphs[i] for i in left] * ROUNDS)
    return chosen(left, [times[i :: len(left)] for i in range(len(left))])


def chosen(indices: Sequence[int], times: Sequence[Sequence[float]]) -> Choice:
    """The Choice among graphs of these indices, by the times of each in milliseconds."""
    medians = [statistics.median(own) for own in times]
    best = min(range(len(medians)), key=medians.__getitem__)
    noise = max(TICK_MS, _spread(times[0]), _spread(times[best]))
    won = best if medians[0] - medians[best] > noise else 0
    return Choice(indices[won], medians[won], medians[0], medians[best], noise)


def _spread(times: Sequence[float]) -> float:
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return deciles[-1] - deciles[0]
