"""An estimate of attention's speed on an H100 from static counts. It is no measurement, and nothing here was timed.

Per tile of keys, a multiprocessor's tensor cores, special-function units, arithmetic pipes, issue slots and shared
memory each need some cycles. The rule that combines them, and two fitted constants, reproduce what has been published
of FlashAttention-2, a kernel of the same instructions (`python -m benchmarks.cycles` shows it, and fits again).
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """From instructions by opcode, as gemma_cuda/bench/sass.py counts them."""
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


def flash_attention_2(head_dim: int) -> TileWork:
    """FlashAttention-2 on an H100, from its tiles (flash_fwd_launch_template.h) and its algorithm.

    128 rows of head_dim 128, 64 of 256; 64 keys, 4 warps; registers and shared memory allow two blocks. Of each score:
    a multiply-add, a sum, a maximum, an exponential and half a conversion; every tile rescales the accumulators.
    """
    block_q, block_k, warps = 128 if head_dim == 128 else 64, 64, 4
    rows = block_q // warps
    tiles, steps, columns, key_tiles = rows // 16, head_dim // 16, head_dim // 8, block_k // 8
    mma = tiles * key_tiles * steps + tiles * columns * (block_k // 16)
    ldmatrix = steps * (tiles + key_tiles // 2) + block_k // 16 * columns // 2
    copies = 2 * block_k * head_dim * 2 // (32 * 16) // warps
    scores = rows * block_k / 32
    floats, compares = 2 * scores + rows * head_dim / 32, 1.5 * scores
    issued = mma + ldmatrix + copies + scores + floats + compares
    return TileWork(mma, ldmatrix + copies, scores, floats, compares, issued, warps, 2, block_q, block_k)


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


LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
# TFLOP/s on an H100 SXM by (head_dim, causal): FlashAttention-3's figure of the forward pass in float16 at 16k tokens
# in all, 2048 / head_dim heads (github.com/Dao-AILab/flash-attention, assets/flash3_fp16_fwd.png).
PUBLISHED = {
    (row["head_dim"], row["mask"] == "causal"): tuple(row["tflops"].values())
    for row in json.loads((Path(__file__).parent / "published" / "attention.json").read_text())["attention"]
    if row["by"] == "FlashAttention-2"
}
TOKENS, WIDTH = 16384, 2048


def published_tflops(work: TileWork, head_dim: int, length: int, *, causal: bool, **constants: float) -> float:
    """The estimate for one published size; the last rows start last, as FlashAttention-2 launches them."""
    rows = range(work.block_q, length + 1, work.block_q)
    tiles = [math.ceil((end if causal else length) / work.block_k) for end in rows]
    copies = TOKENS // length * WIDTH // head_dim
    # FlashAttention-2's blocks run through the rows of one head first; which head comes first makes no difference.
    time = seconds(work, tiles * copies, copies=1, **constants)
    return published_flops(length, causal) / time / 1e12


def published_flops(length: int, causal: bool) -> float:
    """Operations of one published size; causal counts half of the square."""
    return 4 * length * TOKENS * WIDTH / (2 if causal else 1)


def comparison(**constants: float) -> Iterator[tuple[int, bool, int, float, float]]:
    """(head_dim, causal, length, published, estimated) TFLOP/s of FlashAttention-2."""
    for (head_dim, causal), row in PUBLISHED.items():
        work = flash_attention_2(head_dim)
        for length, published in zip(LENGTHS, row, strict=True):
            yield (
                head_dim,
                causal,
                length,
                published,
                published_tflops(work, head_dim, length, causal=causal, **constants),
            )


def worst_error(**constants: float) -> float:
    """The largest relative error over all published sizes."""
    return max(abs(estimated / published - 1) for *_, published, estimated in comparison(**constants))


def main() -> None:
    for head_dim, causal, length, published, estimated in comparison():
        mask = "causal" if causal else "full"
        print(f"D {head_dim} {mask:6} {length:6}: published {published}, estimated {estimated:.0f}")
    print(f"largest error {worst_error():.1%}")
    grid = [(mma, block) for mma in (6.0, 6.2, 6.4, 6.6, 6.8) for block in range(6_000, 14_001, 1_000)]
    best = min(grid, key=lambda pair: worst_error(mma_cycles=pair[0], block_cycles=pair[1]))
    print(f"of a grid, {best[0]} cycles per mma and {best[1]} per block fit best")


if __name__ == "__main__":
    main()
