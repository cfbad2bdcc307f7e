"""Times of launches over rotating inputs, as one CUDA graph, and the GPU's two ceilings: copy and product."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..device.arena import Arena
from ..device.cuda.device import Cuda
from ..device.cuda.graph_timing import captured
from ..device.cuda.launch_plan import LaunchPlan, StreamLaunch
from ..device.dry_run import DryRunDevice
from ..device.protocol import Array, Device
from ..errors import GemmaError
from .peers import torch_on_gpu, torch_timing
from .timing import Timing, repeats_for, timed

BF16 = np.dtype(ml_dtypes.bfloat16)
_BLOCK = 1 << 22  # random values that are drawn; larger arrays repeat them


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of this GPU: bytes read and written per second by a copy, operations by a product.

    product_by: the library of the product. None: it could not be measured.
    """

    copy_bytes_per_s: float
    product_flops_per_s: float | None
    product_by: str | None


class Recording:
    """Calls that each launch something on a device, as one graph; their outputs lie in memory of its own."""

    def __init__(self, cuda: Cuda, calls: Sequence[Callable[[Device], Array]]) -> None:
        arena = Arena()
        recorder = DryRunDevice(cuda.shared_bytes, arena)
        kept = [call(recorder) for call in calls]
        cuda.load(recorder.launches)
        self._cuda, self.count = cuda, len(calls)
        self._memory = cuda.empty((max(arena.peak, 1),), np.uint8)
        self.plan: LaunchPlan
        with cuda.recording(Arena(arena.peak), self._memory) as self.plan:
            self.outputs = [call(cuda) for call in calls]
        del kept
        self.poison()
        self._graph = captured(cuda, self.plan.launches)

    def poison(self) -> None:
        """Makes every output NaN."""
        self._cuda.fill(self._memory, 0xFF)

    def replay(self) -> None:
        self._cuda.launch_graph(self._graph)

    def time(self) -> Timing:
        """Of one call."""
        return timed_steps(self._cuda, self.plan.launches, self.count)


def timed_steps(cuda: Cuda, steps: Sequence[StreamLaunch], count: int = 1, *, enough_s: float | None = None) -> Timing:
    """Timing of one of `count` equal parts of these steps, as one CUDA graph that repeats them if they are short.

    enough_s: seconds after which no round is added to the fewest (None: ENOUGH_SECONDS).
    """
    graph = captured(cuda, steps)
    repeats = repeats_for(min(cuda.graph_times([graph] * 2)))
    if repeats > 1:
        graph = captured(cuda, [*steps] * repeats)
    return timed(lambda rounds: cuda.graph_times([graph] * rounds), count * repeats, enough_s=enough_s)


@functools.cache
def _drawn() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(_BLOCK, np.float32)


def noise(device: Device, seed: int, shape: Sequence[int], *, dtype: Any = BF16, scale: float = 1.0) -> Array:
    """Normal values of standard deviation `scale`, on the device; beyond 4 million of them they repeat."""
    size = math.prod(shape)
    block = (np.roll(_drawn(), 7919 * seed)[: min(size, _BLOCK)] * np.float32(scale)).astype(dtype)
    if size <= _BLOCK:
        return device.from_host(block.reshape(tuple(shape)))
    source, array = device.from_host(block[None]), device.empty((size,), dtype)
    whole = size // _BLOCK
    blocks = array[: whole * _BLOCK].reshape(whole, _BLOCK)
    for i in range(whole):
        device.copy(blocks[i : i + 1], source)
    if size % _BLOCK:
        device.copy(array[whole * _BLOCK :].reshape(1, -1), source[:, : size % _BLOCK])
    return array.reshape(tuple(shape))


def ceilings(cuda: Cuda, *, copy_bytes: int = 2**30, size: int = 8192) -> Ceilings:
    """Measured now: a copy on the device, and a bfloat16 product [size, size] of random values by a library."""
    copy = _copy_us(cuda, copy_bytes)
    median_ms, by = _product_ms(cuda, size)
    flops = None if median_ms is None else 2.0 * size**3 / (1e-3 * median_ms)
    return Ceilings(2 * copy_bytes / (1e-6 * copy), flops, by)


def _copy_us(cuda: Cuda, size: int) -> float:
    source = noise(cuda, 0, (1, size // 2))
    target = cuda.empty(source.shape, source.dtype)
    return timed_steps(cuda, [lambda stream: cuda.copy(target, source)]).median_us  # a capture's stream is current


def _product_ms(cuda: Cuda, size: int) -> tuple[float | None, str | None]:
    """(milliseconds, library) of a product by cuBLASLt, or else by torch's library; (None, None) without either."""
    try:
        from ..device.cuda.cublaslt import GemmPlans

        gemms = GemmPlans(cuda)
        plan = gemms.tune(size, size, size, BF16)
        x, weight = noise(cuda, 1, (size, size)), noise(cuda, 2, (size, size))
        out = cuda.empty((size, size), BF16)
        result = timed_steps(cuda, [partial(plan.launch, *(cuda.address(each) for each in (out, x, weight)))])
        return 1e-3 * result.median_us, f"cuBLASLt {gemms.version}"
    except GemmaError:
        pass
    torch = torch_on_gpu(cuda.index)
    if torch is None:
        return None, None
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 1e-3 * torch_timing(lambda: left @ right).median_us, f"torch {torch.__version__}"
