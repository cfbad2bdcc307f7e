"""What is timed, and how: on the fake GPU only graph launches lie between two events, and noise makes no winner."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.bench import cases, measure, peers, prefill, timing
from gemma_cuda.bench.measure import Recording
from gemma_cuda.bench.timing import repeats_for, timed
from gemma_cuda.device.cuda import graph_timing
from gemma_cuda.device.cuda.cublaslt import GemmPlans
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.cuda.graph_timing import ROUNDS, TICK_MS, chosen
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import LaunchError
from tests.support import fake_gpu, fake_streams
from tests.support.fake_cublaslt import Algorithm, CublasLt
from tests.support.fake_cuda import Machine

SMALL = "gemma-3-270m"


class Between:
    """What is put on streams between the events that are read afterwards. `intervals`: of each pair, in its order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.intervals: list[list[str]] = []
        self._log: list[Any] = []
        self._in_graph = False
        record, put, launch = fake_streams.Event.record, fake_streams.Stream.put, fake_streams.Graph.launch
        elapsed = fake_streams.elapsed_time

        def spy_record(event: fake_streams.Event, stream: fake_streams.Stream) -> None:
            record(event, stream)
            self._log.append(event)

        def spy_put(stream: fake_streams.Stream, work: fake_streams.Work) -> None:
            put(stream, work)
            if stream.captured is None and not self._in_graph and work.name != "event":
                self._log.append(work.name)

        def spy_launch(graph: fake_streams.Graph) -> None:
            self._log.append(graph)
            self._in_graph = True
            launch(graph)
            self._in_graph = False

        def spy_elapsed(begin: fake_streams.Event, end: fake_streams.Event) -> float:
            self.intervals.append(self._log[self._log.index(begin) + 1 : self._log.index(end)])
            return elapsed(begin, end)

        patch.setattr(fake_streams.Event, "record", spy_record)
        patch.setattr(fake_streams.Stream, "put", spy_put)
        patch.setattr(fake_streams.Graph, "launch", spy_launch)
        patch.setattr(importlib.import_module("cupy").cuda, "get_elapsed_time", spy_elapsed)


def time_products(cuda: Cuda, path: Path) -> int:
    GemmPlans(cuda, cache=path).tune(64, 64, 64, np.float16)
    return 16


def time_ceilings(cuda: Cuda, path: Path) -> int:
    measure.ceilings(cuda, copy_bytes=2**12, size=64)
    return 1


def time_an_op(cuda: Cuda, path: Path) -> int:
    (case,) = cases.chosen(["geglu"], [SMALL], [2])
    given = [case.make(cuda, seed) for seed in range(3)]
    Recording(cuda, [lambda device, each=each: case.run(device, each) for each in given]).time()
    return 3


def time_a_prefill(cuda: Cuda, path: Path) -> int:
    prefill.rehearse(cuda)
    return 1


@pytest.mark.parametrize("work", [time_products, time_ceilings, time_an_op, time_a_prefill])
def test_what_lies_between_two_events_is_one_graph(
    work: Callable[[Cuda, Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = fake_gpu.for_bench(monkeypatch)
    if work is time_products:
        monkeypatch.setattr(GemmPlans, "tune", TUNE)
    between = Between(monkeypatch)
    least = work(cuda, tmp_path)
    assert between.intervals
    for interval in between.intervals:
        (graph,) = interval
        assert isinstance(graph, fake_streams.Graph) and len(graph.works) >= least


TUNE = GemmPlans.tune


def test_the_host_is_ahead_before_the_first_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is not counted is at work when the host starts the first one that is."""
    machine = Machine(Emulator())
    machine.install(monkeypatch)
    cuda, order = Cuda(), []
    x = cuda.zeros((4,), np.float32)
    graph = graph_timing.captured(cuda, [lambda stream: cuda.fill(x, 1)])
    record, launch = fake_streams.Event.record, fake_streams.Graph.launch
    monkeypatch.setattr(fake_streams.Event, "record", lambda e, s: (order.append("event"), record(e, s)))
    monkeypatch.setattr(fake_streams.Graph, "launch", lambda g: (order.append("graph"), launch(g)))
    waits = machine.waits
    assert len(cuda.graph_times([graph] * 3)) == 3
    assert order == ["graph", "event", "graph", "event", "graph", "event", "graph", "event"]
    assert machine.waits == waits + 1  # at the end


def test_short_graphs_are_repeated() -> None:
    assert [repeats_for(ms) for ms in (1e-9, 0.001, 0.05, 0.19, 0.2, 7.0)] == [64, 64, 4, 2, 1, 1]
    calls: list[int] = []

    def times(rounds: int) -> list[float]:
        calls.append(rounds)
        return [0.4] * rounds

    timing = timed(times, 4)
    assert timing.median_us == timing.low_us == timing.high_us == 100 and sum(calls) == timing.rounds + 2


def jittered(level: float, spread: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [level + spread * draw.uniform(-1, 1) for _ in range(ROUNDS)]


def test_a_winner_is_faster_by_more_than_the_noise() -> None:
    for seed in range(200):
        same = [jittered(1.0, 0.1, seed), jittered(1.0, 0.1, seed + 1000), jittered(1.0, 0.1, seed + 2000)]
        assert chosen([0, 3, 5], same).index == 0
        clear = [jittered(1.0, 0.1, seed), jittered(0.7, 0.1, seed + 1000)]
        found = chosen([0, 3], clear)
        assert found.index == 3 and found.is_measured and found.fastest_ms < found.first_ms - found.noise_ms
    assert chosen([0, 1], [[1.0] * ROUNDS, [1.0 - 0.9 * TICK_MS] * ROUNDS]).index == 0  # an event cannot tell
    assert chosen([0, 1], [[1.0] * ROUNDS, [1.0 - 1.1 * TICK_MS] * ROUNDS]).index == 1
    spike = [[1.0] * (ROUNDS - 1) + [3.0], [0.9] * ROUNDS]  # one round of one of them was disturbed
    assert chosen([0, 1], spike).index == 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> CublasLt:
    machine = Machine(Emulator(workers=1))
    machine.install(monkeypatch)
    library = CublasLt(machine, (Algorithm(20, 1.0), Algorithm(21, 0.97), Algorithm(22, 3.0)))
    library.install(monkeypatch)
    return library


def number_of(plan: Any) -> int:
    return int(np.frombuffer(plan.algorithm, np.uint64)[0])


@pytest.mark.parametrize(("jitter", "number"), [(0.0, 21), (0.1, 20)])
def test_noise_makes_no_winner_and_the_record_says_so(
    jitter: float, number: int, library: CublasLt, tmp_path: Path
) -> None:
    draw, launches = random.Random(1), itertools.count()
    draws: dict[int, float] = {}
    library.slowdown = lambda: draws.setdefault(next(launches) // 16, 1 + jitter * draw.random())  # 16 are a graph
    gemms = GemmPlans(Cuda(), cache=tmp_path)
    assert number_of(gemms.tune(8, 64, 64, np.float16)) == number
    (path,) = (tmp_path / "cublaslt").iterdir()
    (entry,) = json.loads(path.read_text())["algorithms"].values()
    words = "it was the fastest" if number == 21 else "the first guess: no other was faster beyond the noise"
    assert entry["chosen"] == words
    assert entry["fastest_us"] <= entry["chosen_us"] <= entry["first_us"]
    assert (entry["first_us"] - entry["fastest_us"] > entry["noise_us"]) == (number == 21)
    library.launched.clear()
    later = GemmPlans(Cuda(), cache=tmp_path)
    assert number_of(later.tune(8, 64, 64, np.float16)) == number and library.launched == []


def test_what_is_much_slower_is_timed_once(library: CublasLt, tmp_path: Path) -> None:
    GemmPlans(Cuda(), cache=tmp_path).tune(8, 64, 64, np.float16)
    assert library.machine.graphs_launched == 3 + 1 + 2 * ROUNDS + 1
    assert len([n for n in library.launched if n == 22]) == 2 * 16  # before the capture, and while it is captured


def test_where_no_guess_can_be_run_the_refusal_is_told(library: CublasLt, tmp_path: Path) -> None:
    library.refused = {20}
    assert number_of(GemmPlans(Cuda(), cache=tmp_path).tune(8, 64, 64, np.float16)) == 21
    library.refused = {20, 21, 22}
    with pytest.raises(LaunchError, match=r"cuBLASLt refuses the launch: .* algorithm 20"):
        GemmPlans(Cuda(), cache=tmp_path).tune(9, 64, 64, np.float16)


class FakeTorch:
    """torch.cuda as far as a peer is timed by it: a clock that calls and replays move on, and a log."""

    def __init__(self, *, can_capture: bool) -> None:
        self.clock, torch = 0.0, self
        self.log: list[str] = []
        self.captured: int | None = None

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.time = torch.clock
                torch.log.append("event")

            def synchronize(self) -> None:
                torch.log.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return float(end.time - self.time)

        class Graph:
            calls = 0

            def replay(self) -> None:
                torch.clock += 0.01 * self.calls
                torch.log.append("graph")

        @contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            if not can_capture:
                raise RuntimeError("operation not permitted when stream is capturing")
            torch.captured = 0
            yield
            graph.calls, torch.captured = torch.captured, None

        self.cuda = types.SimpleNamespace(
            Stream=object, stream=lambda stream: nullcontext(), synchronize=lambda: None, CUDAGraph=Graph,
            graph=capture, Event=Event,
        )  # fmt: skip

    def call(self) -> None:
        if self.captured is not None:
            self.captured += 1
            return
        self.clock += 0.01
        self.log.append("call")


@pytest.mark.parametrize("can_capture", [True, False])
def test_a_peer_is_timed_as_we_are(can_capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch(can_capture=can_capture)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    measured = peers.torch_timing(torch.call, torch.call)
    assert measured.median_us == pytest.approx(10) and measured.is_graph == can_capture
    last = torch.log[-2 * timing.FEWEST_ROUNDS - 2 :]
    if can_capture:  # two calls take 0.02 ms, so the graph has ten times as many
        assert last == [*["event", "graph"] * timing.FEWEST_ROUNDS, "event", "wait"]
    else:
        assert set(torch.log) == {"call", "event", "wait"}
