"""An estimate of attention's speed on an H100 from static counts. It is no measurement, and nothing here was timed.

Per tile of keys, a multiprocessor's tensor cores, special-function units, arithmetic pipes, issue slots and shared
memory each need some cycles. The rule that combines them, and two fitted constants, reproduce what has been published
of FlashAttention-2, a kernel of the same instructions; docs/generated/costs.md shows how well.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..device.cuda.compile import CompiledKernel
from ..device.dry_run import Launch
from ..device.protocol import Device
from ..ops.attention_plan import BLOCK_K, AttentionPlan, key_tiles, tiles_of
from . import sass
from .occupancy import blocks_per_multiprocessor

ARCHITECTURE = "sm_90a"
"""Of the GPU that is meant, an H100 SXM."""
CLOCK_HZ = 1.83e9  # that of the 989 TFLOP/s in NVIDIA's data sheet of the H100 SXM; a GPU under load may be slower
MULTIPROCESSORS = 132
QUARTERS = 4  # of a multiprocessor: each has its own scheduler, tensor core and arithmetic units
# CUDA C++ Programming Guide, throughput of native arithmetic instructions, compute capability 9.0: 128 float32
# operations a clock of a multiprocessor; 64 comparisons, minima and conversions to 16 bits; 16 special functions.
FLOAT_CYCLES, COMPARE_CYCLES, SPECIAL_CYCLES = 1, 2, 8  # of an instruction of one warp, in its quarter
# Shared memory: 32 banks of 4 bytes a clock, so ldmatrix.x4 and 32 cp.async of 16 bytes take 4 clocks each.
SHARED_CYCLES = 4
# Fitted to the published figures of FlashAttention-2:
MMA_CYCLES = 6.2  # of an m16n8k16 mma.sync in its quarter; 4 would be the peak, which takes wgmma
BLOCK_CYCLES = 11_000  # of a block beyond its tiles: start, load of q and the first keys, end

_FLOAT, _COMPARE = ("FADD", "FFMA", "FMUL"), ("F2FP", "FMNMX", "FSEL", "FSETP")


@dataclass(frozen=True)
class TileWork:
    """What one warp does for one tile of keys: instructions, and how its kernel is cut.

    mma, shared (ldmatrix and cp.async), special, floats, compares, issued (all); warps of a block, blocks of a
    multiprocessor, rows and keys of a tile.
    """

    mma: float
    shared: float
    special: float
    floats: float
    compares: float
    issued: float
    warps: int
    blocks: int
    block_q: int
    block_k: int


@dataclass(frozen=True)
class TileCycles:
    """Cycles that a multiprocessor's resident blocks need for one tile of keys each."""

    tensor: float
    softmax: float
    special: float  # a part of softmax
    shared: float
    issue: float

    @property
    def total(self) -> float:
        """A warp's softmax waits for its products and the next products for the softmax; shared memory works along."""
        return max(self.tensor + self.softmax, self.shared, self.issue)


def of_loop(loop: Mapping[str, int], *, warps: int, blocks: int, block_q: int, block_k: int) -> TileWork:
    """From instructions by opcode, as sass.tile_loop counts them."""
    return TileWork(
        mma=loop["HMMA"],
        shared=loop["LDSM"] + loop["LDGSTS"],
        special=loop["MUFU"],
        floats=sum(loop.get(name, 0) for name in _FLOAT),
        compares=sum(loop.get(name, 0) for name in _COMPARE),
        issued=sum(loop.values()),
        warps=warps,
        blocks=blocks,
        block_q=block_q,
        block_k=block_k,
    )


def of_attention(compiled: CompiledKernel, launch: Launch, block_q: int) -> TileWork:
    """Of one of our instances for ARCHITECTURE, as it is launched. Raises DeviceError without nvdisasm."""
    blocks = blocks_per_multiprocessor(ARCHITECTURE, launch, compiled.resources)
    loop = sass.tile_loop(compiled)
    return of_loop(loop, warps=launch.threads // 32, blocks=blocks, block_q=block_q, block_k=BLOCK_K)


def tile_cycles(work: TileWork, resident: int, mma_cycles: float = MMA_CYCLES) -> TileCycles:
    """Of `resident` blocks at once on a multiprocessor."""
    warps = resident * work.warps
    special = warps / QUARTERS * work.special * SPECIAL_CYCLES
    arithmetic = warps / QUARTERS * (work.floats * FLOAT_CYCLES + work.compares * COMPARE_CYCLES)
    return TileCycles(
        tensor=warps / QUARTERS * work.mma * mma_cycles,
        softmax=special + arithmetic,
        special=special,
        shared=warps * work.shared * SHARED_CYCLES,
        issue=warps / QUARTERS * work.issued,
    )


def seconds(
    work: TileWork,
    tiles: Sequence[int],
    *,
    copies: int,
    mma_cycles: float = MMA_CYCLES,
    block_cycles: float = BLOCK_CYCLES,
) -> float:
    """Of a launch of `copies` times the blocks with these numbers of tiles, each begun where one has ended."""
    resident = max(1, min(work.blocks, math.ceil(len(tiles) * copies / MULTIPROCESSORS)))
    per_tile = tile_cycles(work, resident, mma_cycles).total
    ends = [0.0] * (MULTIPROCESSORS * resident)
    for count in tiles:
        for _ in range(copies):
            heapq.heapreplace(ends, ends[0] + count * per_tile + block_cycles)
    return max(ends) / CLOCK_HZ


def attention_seconds(work: TileWork, plan: AttentionPlan, kv_heads: int, device: Device) -> float:
    """Of our attention by that plan, which lies on the device; where it is cut along its keys, without the merge."""
    tiles = key_tiles(tiles_of(device.to_host(plan.table)))
    return seconds(work, tiles.tolist(), copies=kv_heads)
