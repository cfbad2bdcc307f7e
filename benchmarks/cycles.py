"""How well the estimate of gemma_cuda/bench/cycles.py reproduces what is published of FlashAttention-2, and its fit.

FlashAttention-2 is a kernel of the same instructions as ours, and its speed on an H100 is known:
`python -m benchmarks.cycles` shows both, and which of a grid of constants fits best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from gemma_cuda.bench.cycles import TileWork, seconds

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
# TFLOP/s on an H100 SXM by (head_dim, causal): FlashAttention-3's figure of the forward pass in float16 at 16k tokens
# in all, 2048 / head_dim heads (github.com/Dao-AILab/flash-attention, assets/flash3_fp16_fwd.png).
PUBLISHED = {
    (row["head_dim"], row["mask"] == "causal"): tuple(row["tflops"].values())
    for row in json.loads((Path(__file__).parent / "published" / "attention.json").read_text())["attention"]
    if row["by"] == "FlashAttention-2"
}
TOKENS, WIDTH = 16384, 2048


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
