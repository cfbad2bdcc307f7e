"""An NVIDIA GPU through CuPy: launches of kernels, launch plans and CUDA graphs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import DeviceError
from ..arena import Arena
from ..dry_run import Launch
from ..protocol import Argument, Array
from .launch import KernelLoader
from .launch_plan import CapturedPlan, Launchable, LaunchPlan, Operand, StreamLaunch
from .memory import CudaMemory

_FIRST_WITH_OVERLAP = (9, 0)


class Cuda(CudaMemory):
    """A device that runs kernels on one GPU, on the caller's current CuPy stream.

    index: of the GPU among those visible. wait: wait for each launch, so that a failing kernel is reported there.
    overlap: from sm_90 on, let kernels that allow it start while the one before them ends. kernels: directory of .cu
    files, cache: of cubins (None: the package's own, the user's).
    A kernel is compiled and loaded at its first launch: launch everything once before a stream is captured.
    Raises DeviceError where there is no such GPU or a package is not installed.
    """

    name = "cuda"

    def __init__(
        self, index: int = 0, *, wait: bool = False, overlap: bool = True, kernels: Path | None = None,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(index, wait=wait)
        self.overlap = overlap
        self._can_overlap = self.compute_capability >= _FIRST_WITH_OVERLAP
        self._kernels = KernelLoader(index, self.architecture, self.shared_bytes, kernels, cache)

    @classmethod
    def named(cls, name: str, **options: Any) -> Cuda:
        """The device that "cuda" (the first GPU) or "cuda:1" names; raises DeviceError for any other name."""
        match = re.fullmatch(r"cuda(?::(\d+))?", name)
        if match is None:
            raise DeviceError(f"device is {name!r}, expected 'cuda' or a GPU's index as in 'cuda:1'")
        return cls(int(match[1] or 0), **options)

    def launch(
        self,
        instance: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Argument],
        *,
        overlap: bool = False,
    ) -> None:
        """Starts one kernel instance on the current stream; see Device.launch. Before sm_90, overlap changes nothing.

        Arrays may be dropped at once: their memory is reused only by later work of their stream. Raises LaunchError
        before anything runs. A failing kernel is a KernelError at the next call that waits for it.
        """
        overlap = overlap and self.overlap and self._can_overlap
        with self._gpu:
            launch, operands = self._kernels.prepare(instance, grid, block, shared_bytes, args, overlap=overlap)
            self.enqueue(instance, launch, operands)

    def load(self, launches: Sequence[Launch]) -> None:
        """Compiles kernels that are not in the cache, on all processors at once, and loads them all."""
        with self._gpu:
            self._kernels.load_all(launches)

    def enqueue(self, name: str, launch: StreamLaunch, operands: Iterable[Operand]) -> None:
        """Starts a launch on the current stream or, while a plan is recorded, appends it to the plan."""
        if self._plan is not None:
            self._plan.add(name, launch, operands)
            return
        with self._gpu:
            launch(self.stream)
            self._launched(name)

    @contextmanager
    def recording(self, arena: Arena, memory: Array) -> Iterator[LaunchPlan]:
        """Within it launches go to the plan instead of the GPU, and arrays lie in blocks of the arena over `memory`.

        memory: uint8, of the arena's size; the plan uses it whenever it runs. The plan also holds the other operands of
        its launches. Copies, fills and waits, which would run at once, raise DeviceError.
        """
        self._check_not_recording("recording")
        self._plan = plan = LaunchPlan(arena, memory)
        try:
            yield plan
        finally:
            self._plan = None

    def launch_plan(self, plan: Launchable) -> None:
        """Starts a plan's launches on the current stream."""
        self._check_not_recording("launch_plan")
        with self._gpu:
            plan.launch(self.stream)
            self._launched("a plan")

    def capture(self, plan: Launchable) -> CapturedPlan:
        """The plan as a CUDA graph, which `launch_graph` starts as a whole. It holds the plan.

        Run the plan once before: a library's first launch may load modules, which a capture forbids.
        """
        import cupy

        self._check_not_recording("capture")
        with self._gpu, self._raise_cuda_errors, cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                plan.launch(stream.ptr)
            finally:
                graph = stream.end_capture()
        return CapturedPlan(graph, plan)

    def launch_graph(self, captured: CapturedPlan) -> None:
        """Starts a captured plan on the current stream."""
        self._check_not_recording("launch_graph")
        with self._gpu, self._raise_cuda_errors:
            captured.graph.launch()
            self._launched("a graph")

    def graph_times(self, plans: Sequence[CapturedPlan]) -> list[float]:
        """Milliseconds of each of these graphs, launched one after another on the current stream; waits for them.

        The first one is launched once before, untimed. While the GPU runs it the host gets ahead, and it stays ahead
        where a graph runs longer than its launch takes: then no host time lies between two events.
        """
        import cupy

        self._check_not_recording("graph_times")
        with self._gpu, self._raise_cuda_errors:
            stream = cupy.cuda.get_current_stream()
            events = [cupy.cuda.Event() for _ in range(len(plans) + 1)]
            plans[0].graph.launch()
            events[0].record(stream)
            for plan, event in zip(plans, events[1:], strict=True):
                plan.graph.launch()
                event.record(stream)
            events[-1].synchronize()
            return [float(cupy.cuda.get_elapsed_time(*pair)) for pair in itertools.pairwise(events)]

    def _launched(self, name: str) -> None:
        self.last = name
        if self.wait:
            self.synchronize()
