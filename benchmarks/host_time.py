"""Python's share of a prefill on CUDA: python -m benchmarks.host_time [--json FILE]

Runs where there is no GPU: what CuPy and the driver would do is replaced by nothing (tests/support/fake_cuda.py, which
checks what it is asked, stripped of its checks). So these are the times of this package alone; CuPy's and the driver's
own come on top, a few microseconds a call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from tests.support import fake_cuda, fake_streams
from tests.support.fake_cublaslt import CublasLt
from tests.support.hf_models import Size, build

LENGTHS = (1, 128, 1024)
ROUNDS = 300
SIZE = Size(head_dim=64, global_head_dim=64, hidden_size=64, intermediate_size=96, sliding_window=24, prompt=8)


class IdleGraph:
    """A graph that does nothing."""

    def launch(self) -> None:
        pass


class IdleGpu(fake_cuda.Machine):
    """A GPU that answers at once and does nothing."""

    def __init__(self) -> None:
        super().__init__(Emulator(), memory=2**36)
        self._made: dict[tuple[Any, ...], fake_cuda.DeviceArray] = {}
        self.is_idle = False

    def empty(self, shape: Any, dtype: Any) -> fake_cuda.DeviceArray:
        if not self.is_idle:
            return super().empty(shape, dtype)
        key = (*shape, np.dtype(dtype).str)
        if key not in self._made:
            self._made[key] = super().empty(shape, dtype)
        return self._made[key]

    def copy_memory(self, *arguments: int) -> None:
        pass

    def copy_rows(self, *arguments: int) -> None:
        pass

    def launch(self, *arguments: Any) -> tuple[fake_cuda.Status]:
        return (fake_cuda.Status.CUDA_SUCCESS,)


def microseconds(run: Callable[[], object]) -> float:
    """Median of many runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def prepared(patch: pytest.MonkeyPatch) -> tuple[IdleGpu, gemma_cuda.Gemma]:
    """A small model that is warmed up for LENGTHS on a GPU that will be idle once its is_idle says so."""
    machine = IdleGpu()
    machine.install(patch)
    CublasLt(machine).install(patch)
    patch.setattr(fake_streams.Event, "record", lambda self, stream: setattr(self, "stream", stream))
    patch.setattr(fake_streams.Event, "synchronize", lambda self: None)
    patch.setattr(fake_streams.Stream, "wait_event", lambda self, event: None)
    patch.setattr(fake_streams.Stream, "end_capture", lambda self: IdleGraph())
    gemma = gemma_cuda.Gemma.from_pretrained(build("gemma3_text", SIZE).path, device=Cuda())
    gemma.warmup(lengths=LENGTHS, kv_rows=1, kv_capacity=4096, tune=False)
    return machine, gemma


def measure() -> dict[str, Any]:
    """Microseconds of a graphed prefill by tokens, of a first one of its length, and of a launch in a plan."""
    patch = pytest.MonkeyPatch()
    machine, gemma = prepared(patch)
    machine.is_idle = True
    ids = np.random.default_rng(0).integers(3, gemma.config.vocab_size, 1024)
    graphed = {n: microseconds(lambda n=n: gemma.prefill(ids[:n])) for n in LENGTHS}
    lengths = iter(range(1024, 0, -1))
    first = microseconds(lambda: gemma.prefill(ids[: next(lengths)]))
    graphs = gemma._engine.graphs
    assert graphs is not None
    plan = graphs.buckets[-1].plan
    ours = [step for name, step in zip(plan.names, plan.launches, strict=True) if name != "gemm"]
    launches = microseconds(lambda: [step(0) for step in ours]) / len(ours)
    patch.undo()
    return {
        "prefill_us": {str(n): round(us, 1) for n, us in graphed.items()},
        "first_of_its_length_us": round(first, 1),
        "launch_us": round(launches, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    result = measure()
    for n, us in result["prefill_us"].items():
        print(f"graphed prefill of {n:>4} tokens  {us:7.1f} us")
    print(f"first one of its length      {result['first_of_its_length_us']:7.1f} us")
    print(f"launch of a plan             {result['launch_us']:7.2f} us")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
