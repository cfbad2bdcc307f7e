"""Recorded launch plans on a fake GPU: what they hold, what they refuse, and what cannot be recorded."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.arena import Arena
from gemma_cuda.device.cuda.cublaslt import GemmPlans
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.cuda.launch_plan import LaunchPlan
from gemma_cuda.device.cuda.stream_order import StreamOrder
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError, LaunchError
from tests.support.fake_cublaslt import CublasLt
from tests.support.fake_cuda import Machine
from tests.support.paths import KERNELS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Emulator(workers=2, kernels=KERNELS))
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def cuda(machine: Machine) -> Cuda:
    return Cuda(kernels=KERNELS)


def floats(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n, dtype=np.float32)


def record(cuda: Cuda, launches: Callable[[], None], memory: Any = None) -> LaunchPlan:
    memory = cuda.empty((1024,), np.uint8) if memory is None else memory
    with cuda.recording(Arena(memory.nbytes), memory) as plan:
        launches()
    return plan


def add_one(cuda: Cuda, array: Any) -> None:
    cuda.launch("adds_one", (1,), (array.size,), 0, [array])


# --- what a plan holds ---


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_plan_holds_what_everybody_else_drops(cuda: Cuda, as_graph: bool) -> None:
    out, arrays = cuda.empty((4,), np.float32), [cuda.from_host(floats(8))]

    def launches() -> None:
        between = cuda.empty((4,), np.float32)  # in the arena
        cuda.launch("pointers<float>", (1,), (4,), 0, [between, arrays[0][2:6], None, 4, 1])
        add_one(cuda, between)
        cuda.launch("pointers<float>", (1,), (4,), 0, [out, between, None, 4, 1])

    plan = record(cuda, launches)
    arrays.clear()
    gc.collect()
    if as_graph:
        captured = cuda.capture(plan)
        del plan
        gc.collect()
        cuda.launch_graph(captured)
    else:
        cuda.launch_plan(plan)
    assert cuda.to_host(out).tolist() == [3, 4, 5, 6]


def test_a_plan_holds_memory_of_other_libraries(cuda: Cuda, machine: Machine) -> None:
    host = floats(4)
    record_of = [machine.adopt(host)]
    owner = record_of[0].data.mem
    plan = record(cuda, lambda: add_one(cuda, record_of[0][1:]))
    record_of.clear()
    assert owner in plan._held.values()  # and with it what DLPack gave
    cuda.launch_plan(plan)
    cuda.synchronize()
    assert host.tolist() == [0, 2, 3, 4]


def test_a_plan_holds_its_kernels(cuda: Cuda, machine: Machine) -> None:
    x = cuda.from_host(floats(4))
    devices = [Cuda(kernels=KERNELS)]
    plan = record(devices[0], lambda: add_one(devices[0], x))
    devices.clear()
    gc.collect()
    cuda.launch_plan(plan)
    assert cuda.to_host(x).tolist() == [1, 2, 3, 4]


def test_a_graph_of_products_outlives_who_made_them(
    cuda: Cuda, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    CublasLt(machine).install(monkeypatch)
    gemms = GemmPlans(cuda, cache=tmp_path)
    ones = np.ones((16, 64), ml_dtypes.bfloat16)
    x, weight, out = cuda.from_host(ones), cuda.from_host(ones), cuda.empty((16, 16), ml_dtypes.bfloat16)
    product = gemms.plan(16, 16, 64, ml_dtypes.bfloat16)
    captured = cuda.capture(record(cuda, partial(gemms.run, product, out, x, weight)))
    gemms.close()
    del gemms, product, x, weight
    gc.collect()
    cuda.launch_graph(captured)
    assert (cuda.to_host(out) == 64).all()


# --- what it refuses ---


def test_an_address_that_nobody_owns_is_refused(cuda: Cuda, machine: Machine) -> None:
    cupy = importlib.import_module("cupy")  # the fake
    x = cuda.from_host(floats(4))

    def at(address: int, owner: object) -> Any:
        memory = cupy.cuda.UnownedMemory(address, 8, owner, 0)
        return cupy.ndarray((2,), np.float32, cupy.cuda.MemoryPointer(memory, 0))

    address = cuda.address(x)
    with pytest.raises(LaunchError, match=f"adds_one: x at {address:#x} lies in no memory that the plan could hold"):
        record(cuda, lambda: add_one(cuda, at(address, None)))
    stale = at(address, x)
    stale.data.ptr += 8  # an address from elsewhere
    with pytest.raises(LaunchError, match=r"adds_one: x at .* lies in no memory that the plan could hold"):
        record(cuda, lambda: add_one(cuda, stale))
    record(cuda, lambda: add_one(cuda, at(address, x)))


def test_a_free_block_of_the_arena_is_refused(cuda: Cuda) -> None:
    memory, kept = cuda.empty((1024,), np.uint8), []

    def first() -> None:
        kept.extend(cuda.empty((4,), np.float32) for _ in range(2))
        add_one(cuda, kept[1])

    record(cuda, first, memory)
    with pytest.raises(LaunchError, match=r"adds_one: x at .* lies in a free block of the arena"):
        record(cuda, lambda: add_one(cuda, kept[1]), memory)


@pytest.mark.parametrize(
    "what",
    ["fill", "zeros", "copy", "from_host", "upload", "to_host", "upload_pinned", "synchronize",
     "record_event", "wait_event", "graph_times", "launch_plan", "capture", "launch_graph", "recording"],
)  # fmt: skip
def test_what_would_run_once_cannot_be_recorded(cuda: Cuda, machine: Machine, what: str) -> None:
    x, pinned, event = cuda.from_host(floats(4)), cuda.pinned(16), cuda.record_event(None)
    memory = cuda.empty((1024,), np.uint8)
    plan = record(cuda, lambda: add_one(cuda, x))
    captured = cuda.capture(plan)
    arguments: dict[str, tuple[Any, ...]] = {
        "fill": (x, 0), "zeros": ((4,), np.float32), "copy": (x, x), "from_host": (floats(4),),
        "upload": (x, floats(4)), "to_host": (x,), "upload_pinned": (x, pinned, 16), "synchronize": (),
        "record_event": (event,), "wait_event": (event,), "graph_times": ([captured],), "launch_plan": (plan,),
        "capture": (plan,), "launch_graph": (captured,), "recording": (Arena(1024), memory),
    }  # fmt: skip
    waiting = len(machine.stream.queue)
    with pytest.raises(DeviceError, match=" while a plan is recorded: it would run now, and not when the plan does"):
        record(cuda, lambda: getattr(cuda, what)(*arguments[what]).__enter__())
    assert len(machine.stream.queue) == waiting
    add_one(cuda, x)  # the device is as usable as before
    assert cuda.to_host(x).tolist() == [1, 2, 3, 4]


# --- order between streams ---


def test_uses_are_ordered_though_a_handle_is_given_again(cuda: Cuda, machine: Machine) -> None:
    x, order = cuda.from_host(floats(4)), StreamOrder(cuda)
    cuda.synchronize()
    destroyed = machine.new_stream()
    with destroyed, order:
        add_one(cuda, x)
    with machine.new_stream(destroyed.ptr):
        with order:
            add_one(cuda, x)
        assert cuda.to_host(x).tolist() == [2, 3, 4, 5]
