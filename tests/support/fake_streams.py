"""Streams, events and graphs of the fake GPU (fake_cuda.py): work waits in its stream until a synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_cuda.errors import KernelError

if TYPE_CHECKING:
    from tests.support.fake_cuda import Machine

HostArray = np.ndarray[Any, Any]


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for a status of the runtime."""


@dataclass(eq=False)
class Allocation:
    """Memory of one array: its bytes, the GPU they are on, the stream in whose order they are reused."""

    data: HostArray
    device: int
    stream: Stream


@dataclass(eq=False)
class Work:
    """What waits in a stream, and the allocations it uses.

    follows: begins when all before it has ended; ends: what comes next begins when it has ended. Neither need be true
    of kernels.
    """

    name: str
    run: Callable[[], None]
    memory: Sequence[Allocation] = ()
    follows: bool = False
    ends: bool = False


class Stream:
    """A queue of work of one GPU; each has a null stream, with ptr 0. While it is captured, work goes to a graph."""

    def __init__(self, machine: Machine, ptr: int, device: int) -> None:
        self._machine, self.ptr, self.device = machine, ptr, device
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None

    def put(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def begin_capture(self) -> None:
        assert self.ptr != 0, "cudaErrorStreamCaptureUnsupported: the null stream cannot be captured"
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        graph, self.captured = Graph(self._machine, self.captured), None
        return graph

    def __enter__(self) -> Stream:
        if self.device != self._machine.device:
            raise RuntimeError("The device that the stream is created on does not match with the current device")
        self._machine.current_streams[self.device].append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._machine.current_streams[self.device].pop()

    def synchronize(self, until: Work | None = None) -> None:
        """Waits for all work, or until a piece of it is done."""
        machine = self._machine
        if self.captured is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        machine.waits += 1
        while machine.failure is None and (self.queue if until is None else any(work is until for work in self.queue)):
            self.run_next()
        machine.emulator.drain(stream=self.ptr)
        if machine.failure is not None:
            raise CUDARuntimeError(f"cudaErrorIllegalAddress: {machine.failure}")

    def run_next(self) -> None:
        work, machine = self.queue.pop(0), self._machine
        machine.running = self
        try:
            if work.follows:
                machine.emulator.drain(stream=self.ptr)
            work.run()
            if work.ends:
                machine.emulator.drain(stream=self.ptr)
            self._machine.clock += self._machine.work_ms
        except KernelError as error:
            self._machine.failure = f"{work.name}: {error}"

    def wait_event(self, event: Event) -> None:
        """What comes later in this stream waits for what the event was recorded after by now."""
        record = event.record_work
        assert record is not None and event.stream is not None, "the event was never recorded"
        other = event.stream

        def wait() -> None:
            while any(work is record for work in other.queue) and self._machine.failure is None:
                other.run_next()

        self.put(Work("wait", wait))


class Graph:
    """cupy.cuda.Graph: work that is started as a whole; it holds no memory."""

    def __init__(self, machine: Machine, works: list[Work]) -> None:
        self._machine, self.works = machine, works

    def launch(self) -> None:
        machine = self._machine
        machine.graphs_launched += 1
        for i, work in enumerate(self.works):
            gone = [m for m in work.memory if not any(m is live for live in machine.live)]
            if gone:
                machine.failure = f"{work.name}: memory that the graph uses was freed"
            if i == 0 or work is self.works[-1]:  # the graph itself overlaps nothing
                work = replace(work, follows=work.follows or i == 0, ends=work.ends or work is self.works[-1])
            machine.stream.put(work)


class Event:
    """cupy.cuda.Event: the machine's clock when what came before it in its stream is done."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.device = machine, machine.device
        self.stream: Stream | None = None
        self.record_work: Work | None = None
        self.time: float | None = None

    def record(self, stream: Stream) -> None:
        def read_clock() -> None:
            self.time = self._machine.clock

        assert stream.device == self.device, "cudaErrorInvalidResourceHandle: an event is of one GPU"
        self.stream, self.time, self.record_work = stream, None, Work("event", read_clock)
        stream.put(self.record_work)

    @property
    def done(self) -> bool:
        return self.time is not None

    def synchronize(self) -> None:
        assert self.stream is not None, "the event was never recorded"
        self.stream.synchronize(self.record_work)


def elapsed_time(begin: Event, end: Event) -> float:
    """cupy.cuda.get_elapsed_time."""
    if begin.time is None or end.time is None:
        raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return end.time - begin.time
