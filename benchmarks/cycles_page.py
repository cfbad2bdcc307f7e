"""The estimate for attention in docs/generated/costs.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cycles
from benchmarks.cycles import LENGTHS, PUBLISHED
from benchmarks.markdown import heading, prose, table
from gemma_cuda.bench.cycles import (
    ARCHITECTURE,
    BLOCK_CYCLES,
    CLOCK_HZ,
    MMA_CYCLES,
    MULTIPROCESSORS,
    TileWork,
    attention_seconds,
    of_loop,
    tile_cycles,
)
from gemma_cuda.device.cuda.compile import SHARED_BYTES
from gemma_cuda.device.dry_run import DryRunDevice
from gemma_cuda.ops.attention_plan import plan_attention
from tests.support import compulsory

WITHIN = 0.15
# Layers of models as one prompt: name, query heads, KV heads, head_dim, logit policy, windows (None: causal).
LAYERS: tuple[tuple[str, int, int, int, str, tuple[int | None, ...]], ...] = (
    ("gemma-3-270m, gemma-3-1b", 4, 1, 256, "Plain", (512, None)),
    ("gemma-2-2b", 8, 4, 256, "SoftCap", (None,)),
    ("gemma-3-4b", 8, 4, 256, "Plain", (1024, None)),
    ("gemma-2-27b", 32, 16, 128, "SoftCap", (None,)),
    ("gemma-3-27b", 32, 16, 128, "Plain", (1024, None)),
)
PROMPTS = (512, 2048, 8192)


def lines(loops: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The section's lines, from the inner loops' instructions."""
    yield from _rule()
    yield from _peer()
    yield from _tiles(loops)
    works = {(loop["head_dim"], loop["policy"]): work_of(loop) for loop in loops}
    yield from _same_sizes(works)
    yield from _layers(works)


def work_of(loop: Mapping[str, Any]) -> TileWork:
    """One entry of the result's loops."""
    shape = {name: loop[name] for name in ("warps", "blocks", "block_q", "block_k")}
    return of_loop(loop["opcodes"], **shape)


def estimated_seconds(
    work: TileWork, begin: Any, end: Any, sequences: int, shape: tuple[int, int, int], is_plain: bool
) -> float:
    """Of our attention on an H100: sequences of equal length with key ranges [N], shape (H, KH, D)."""
    heads, kv_heads, head_dim = shape
    cu_seqlens = np.linspace(0, len(end), sequences + 1).astype(np.int32)
    device = DryRunDevice(SHARED_BYTES[ARCHITECTURE])
    plan = plan_attention(
        begin, end, cu_seqlens, group=heads // kv_heads, head_dim=head_dim, is_plain=is_plain, device=device
    )
    assert plan.tiling.block_q == work.block_q, "the loop that was counted is not the one that would run"
    return attention_seconds(work, plan, kv_heads, device)


def _rule() -> Iterator[str]:
    clock = CLOCK_HZ / 1e9
    yield from heading(2, "Attention on an H100: an estimate")
    yield from prose("""
        **What follows is an estimate from static counts, not a measurement.** Nothing here ran on a GPU. It
        is gemma_cuda/bench/cycles.py; `python -m benchmarks.cycles` shows the check. Cycles that a multiprocessor
        needs for one tile of keys of each of its blocks follow from what one turn of the inner loop issues
        (SASS for sm_90a, a tile that all rows see, accumulators not rescaled):
    """)
    yield from prose(f"""
        - *tensor*: m16n8k16 operations × {MMA_CYCLES} in a quarter of a multiprocessor;
        - *softmax*: the sum of special functions (MUFU) × 8, float32 additions and multiplications × 1,
          comparisons, maxima and conversions × 2, in a quarter;
        - *shared*: ldmatrix and 16-byte cp.async of all warps × 4, at 128 bytes a clock;
        - *issue*: all instructions × 1 in a quarter.
    """)
    yield from prose(f"""
        A tile takes max(tensor + softmax, shared, issue): products and softmax of the warps in a quarter do
        not overlap, all else does. A block takes its tiles and {BLOCK_CYCLES} cycles more. Blocks start in
        launch order where others have ended, on {MULTIPROCESSORS} multiprocessors at {clock:.2f} GHz, the
        clock of the data sheet's peak. So keys that a diagonal tile computes in vain, rows that do not fill
        a tile and the last wave are in it; caches, DRAM, latencies and a clock that drops under load are
        not.
    """)
    yield from prose(f"""
        Two constants are fitted to the table below: {MMA_CYCLES} cycles per mma (4 would be the peak, which
        only wgmma reaches) and {BLOCK_CYCLES} cycles per block. The rule itself is the best of four that were
        tried on the same table: that it fits is no proof of it. The check is of head_dim 128 and 256 with
        plain logits; for head_dim 64, a softcap, a bias, windows and short prompts the estimate is an
        extrapolation.
    """)


def _peer() -> Iterator[str]:
    yield from heading(3, "Check: FlashAttention-2")
    yield from prose("""
        TFLOP/s on an H100 SXM: published (the FlashAttention-3 paper's figure: float16, 16k tokens in all,
        2048 ÷ head_dim heads) → estimated by the same rule from FlashAttention-2's tiles and algorithm.
        Causal counts half the products.
    """)
    cells: dict[tuple[int, bool], list[str]] = {key: [] for key in PUBLISHED}
    failures = 0
    for head_dim, causal, _, published, estimated in cycles.comparison():
        is_far = abs(estimated / published - 1) > WITHIN
        failures += is_far
        text = f"{published} → {estimated:.0f}"
        cells[head_dim, causal].append(f"**{text} ✗**" if is_far else text)
    rows = [[f"{head_dim}, {_mask(causal)}", *row] for (head_dim, causal), row in cells.items()]
    yield from table(["head_dim, mask", *map(str, LENGTHS)], rows)
    verdict = "met" if not failures else f"**missed in {failures} cells**"
    yield from prose(f"""
        Target, within {WITHIN:.0%} everywhere: {verdict}. The largest error is {cycles.worst_error():.1%}.
    """)


def _tiles(loops: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from heading(3, "Cycles of a tile")
    yield from prose("""
        MUFU is a part of softmax. *Bound* is the side of the rule that decides. A bias also loads from
        global memory, of which the estimate only sees that it is issued.
    """)
    rows = []
    for loop in loops:
        work = work_of(loop)
        t = tile_cycles(work, work.blocks)
        sides = {"tensor + softmax": t.tensor + t.softmax, "shared": t.shared, "issue": t.issue}
        figures = (work.blocks, t.tensor, t.softmax, t.special, t.shared, t.issue, t.total)
        bound = max(sides, key=lambda name: sides[name])
        rows.append([f"`{loop['instance']}`", *(f"{figure:.0f}" for figure in figures), bound])
    columns = ["blocks", "tensor", "softmax", "MUFU", "shared", "issue", "tile", "bound"]
    yield from table(["instance", *columns], rows)


def _same_sizes(works: Mapping[tuple[int, str], TileWork]) -> Iterator[str]:
    yield from heading(3, "Estimate at the published sizes")
    yield from prose("""
        Estimated TFLOP/s of our instances in bfloat16 at the sizes of the check, counted as there; plain
        logits beside the estimate for FlashAttention-2. Ours start the longest rows first.
    """)
    peer = {(d, causal, length): value for d, causal, length, _, value in cycles.comparison()}
    rows = []
    for head_dim, causal in PUBLISHED:
        rows.append([f"{head_dim}, {_mask(causal)}, FlashAttention-2"])
        rows[-1] += [f"{peer[head_dim, causal, length]:.0f}" for length in LENGTHS]
        for policy in ("Plain", "SoftCap"):
            work = works[head_dim, policy]
            figures = [_published_size(work, head_dim, length, causal, policy == "Plain") for length in LENGTHS]
            rows.append([f"{head_dim}, {_mask(causal)}, ours, {policy}", *(f"{figure:.0f}" for figure in figures)])
    yield from table(["head_dim, mask, kernel", *map(str, LENGTHS)], rows)


def _published_size(work: TileWork, head_dim: int, length: int, causal: bool, is_plain: bool) -> float:
    sequences, heads = cycles.TOKENS // length, cycles.WIDTH // head_dim
    end = np.tile(np.arange(1, length + 1, dtype=np.int32), sequences)
    if not causal:
        end[:] = length
    time = estimated_seconds(work, np.zeros_like(end), end, sequences, (heads, heads, head_dim), is_plain)
    return cycles.published_flops(length, causal) / time / 1e12


def _layers(works: Mapping[tuple[int, str], TileWork]) -> Iterator[str]:
    yield from heading(3, "Estimate for layers of Gemma")
    yield from prose("""
        One prompt alone: estimated µs of one layer's attention, and TFLOP/s over visible pairs. That few
        blocks leave multiprocessors idle is in it.
    """)
    rows = []
    for name, heads, kv_heads, head_dim, policy, windows in LAYERS:
        for window in windows:
            row = [name, f"{'causal' if window is None else f'window {window}'}, {policy}"]
            for tokens in PROMPTS:
                end = np.arange(1, tokens + 1, dtype=np.int32)
                begin = np.zeros_like(end) if window is None else np.maximum(0, end - np.int32(window))
                shape = (heads, kv_heads, head_dim)
                time = estimated_seconds(works[head_dim, policy], begin, end, 1, shape, policy == "Plain")
                flops = 4 * compulsory.visible_pairs(begin, end) * heads * head_dim
                row.append(f"{time * 1e6:.0f} µs, {flops / time / 1e12:.0f}")
            rows.append(row)
    yield from table(["model", "mask, logits", *(f"{tokens} tokens" for tokens in PROMPTS)], rows)


def _mask(causal: bool) -> str:
    return "causal" if causal else "full"
