"""docs/generated/costs.md: counts are those of today's kernels, targets are judged, the estimate meets its check."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks import cost, cost_cases, costs_page, cycles, cycles_page
from benchmarks.cost_cases import Case
from gemma_cuda.bench import cases, counted, occupancy, sass
from gemma_cuda.bench.cycles import CLOCK_HZ, seconds, tile_cycles
from gemma_cuda.bench.matrix_cases import ranges
from gemma_cuda.device.cuda.compile import SHARED_BYTES
from gemma_cuda.device.cuda.cubin import Resources
from gemma_cuda.device.dry_run import DryRunDevice, Launch

RESULT: dict[str, Any] = json.loads(cost.RESULT.read_text())
STALE = "kernels or ops have changed; run: python -m benchmarks.cost && python -m benchmarks.report"
CASES = list(cost_cases.cases())
SMALL = [
    case for case in CASES if case.model == "gemma-3-270m" and not case.shape.startswith(("q, k, v: [256", "gate"))
]


# --- the committed counts ---


def test_every_case_is_counted() -> None:
    counted = [(row["kernel"], row["model"], row["shape"]) for row in RESULT["counted"] if row["checked"]]
    assert counted == [(case.kernel, case.model, case.shape) for case in CASES]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.kernel} {case.shape}")
def test_counts_are_those_of_the_kernel_as_it_is(case: Case) -> None:
    again = cost.count(case, 227 * 1024, checked=True)
    assert again in RESULT["counted"], STALE


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_products_are_those_of_attention_as_it_is(head_dim: int) -> None:
    case = cost_cases.attention_case("", head_dim, 1, 1, cost_cases.PROMPT, cost_cases.WINDOW)
    assert cost.count(case, 163 * 1024, checked=False) in RESULT["counted"], STALE


def test_the_instances_are_those_that_are_launched() -> None:
    device = DryRunDevice(SHARED_BYTES["sm_90a"])
    for case in CASES:
        case.run(device)
    launched = {(launch.instance, launch.threads, launch.shared_bytes) for launch in device.launches}
    rows = [row for row in RESULT["static"] if row["architecture"] == "sm_90a"]
    assert {(row["instance"], row["threads"], row["shared_bytes"]) for row in rows} == launched, STALE


def test_each_target_that_is_missed_has_its_reason() -> None:
    """And no reason is kept for what is no longer missed."""
    failures = costs_page.missed(RESULT)
    reasons = {
        (target, kernel)
        for target, what, _ in failures
        for of, kernel in costs_page.REASONS
        if of is target and what.startswith(kernel)
    }
    assert reasons == set(costs_page.REASONS)
    for target, what, value in failures:
        assert any(of is target and what.startswith(k) for of, k in reasons), f"{value} {target.name}: {what}"


def test_a_miss_is_marked() -> None:
    result = copy.deepcopy(RESULT)
    row = next(row for row in result["counted"] if row["kernel"] == "geglu")
    row["counters"]["global_read_sectors"] *= 2
    result["static"][0]["spill_load_bytes"] = 8
    assert len(costs_page.missed(result)) == len(costs_page.missed(RESULT)) + 2
    text = costs_page.page(result)
    assert "**1.667 ✗**" in text and f"- 8 {costs_page.SPILLS.name}: {result['static'][0]['instance']}" in text


# --- blocks, instructions ---


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("sm_90a", 128, 255, (0, 0), 2),  # registers: 8 warps
        ("sm_90a", 128, 168, (0, 0), 3),
        ("sm_90a", 128, 32, (100 * 1024, 0), 2),  # shared memory: 228 KiB, 1 KiB of each block reserved
        ("sm_90a", 128, 32, (113 * 1024, 0), 2),
        ("sm_90a", 128, 32, (113 * 1024, 4), 1),
        ("sm_90a", 128, 32, (114 * 1024, 0), 1),
        ("sm_86", 256, 32, (0, 0), 6),  # 48 warps
        ("sm_80", 32, 16, (0, 0), 32),  # 32 blocks
    ],
)
def test_blocks_of_a_multiprocessor(
    architecture: str, threads: int, registers: int, shared: tuple[int, int], blocks: int
) -> None:
    launch, needs = Launch("", threads, shared[0]), Resources(registers, shared[1], 0, 0, 0)
    assert occupancy.blocks_per_multiprocessor(architecture, launch, needs) == blocks


LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/                   FSEL R8, R8, -INF, P2 ;
        /*0050*/                   FSEL R9, R9, -INF, P2 ;
.L_x_1:
        /*0060*/               @P3 BRA `(.L_x_2) ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R20], desc[UR4][R22.64] ;
.L_x_2:
        /*0080*/              @!P4 BRA `(.L_x_3) ;
        /*0090*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*00a0*/                   FMUL R8, R8, R3 ;
        /*00a8*/                   FMUL R9, R9, R3 ;
.L_x_4:
        /*00b0*/                   MUFU.EX2 R8, R8 ;
        /*00c0*/               @P0 BRA `(.L_x_0) ;
        /*00d0*/                   EXIT ;
"""


def test_an_inner_tile_takes_the_shortest_way_that_leaves_nothing_out() -> None:
    """Not the element test, not the rescaling; but the copies, although a branch goes around them."""
    turn = sass.shortest_turn(sass.parse(LISTING))
    assert turn == {"LDSM": 1, "HMMA": 1, "LDGSTS": 1, "MUFU": 1, "BRA": 5}


@pytest.mark.parametrize("loop", RESULT["loops"], ids=lambda loop: loop["instance"])
def test_the_inner_loops_hold_the_products_and_copies_of_a_tile(loop: dict[str, Any]) -> None:
    rows, opcodes = loop["block_q"] // loop["warps"], loop["opcodes"]
    assert opcodes["HMMA"] == 2 * rows * loop["block_k"] * loop["head_dim"] // (16 * 8 * 16)
    assert opcodes["LDGSTS"] * loop["warps"] * 512 == 2 * loop["block_k"] * loop["head_dim"] * 2
    exponentials = 3 if loop["policy"] == "SoftCap" else 1  # tanh is an exponential and a reciprocal
    assert opcodes["MUFU"] >= exponentials * rows * loop["block_k"] // 32


# --- the estimate ---


@pytest.mark.parametrize(
    ("head_dim", "causal", "length", "published", "estimated"),
    list(cycles.comparison()),
    ids=[f"D{d} {'causal' if c else 'full'} {n}" for d, c, n, *_ in cycles.comparison()],
)
def test_the_estimate_reproduces_what_is_published(
    head_dim: int, causal: bool, length: int, published: float, estimated: float
) -> None:
    assert abs(estimated / published - 1) <= cycles_page.WITHIN


@pytest.mark.parametrize("constants", [{"mma_cycles": 4.0}, {"mma_cycles": 8.0}, {"block_cycles": 40_000.0}])
def test_other_constants_do_not(constants: dict[str, float]) -> None:
    assert cycles.worst_error(**constants) > cycles_page.WITHIN


def test_cycles_of_a_tile() -> None:
    """Two blocks of four warps: a quarter of a multiprocessor has two warps."""
    work = cycles.flash_attention_2(256)
    t = tile_cycles(work, 2, mma_cycles=6)
    assert work.mma == 256 and t.tensor == 2 * 256 * 6
    assert t.special == 2 * 32 * 8 and t.softmax == t.special + 2 * (64 + 128 + 48 * 2)
    assert t.shared == 8 * (16 * 5 + 4 * 16 + 32) * 4 == t.total


def test_blocks_run_in_waves() -> None:
    work = cycles.flash_attention_2(128)
    tile = tile_cycles(work, 2).total

    def in_cycles(tiles: list[int]) -> float:
        return seconds(work, tiles, copies=1, block_cycles=0) * CLOCK_HZ

    assert in_cycles([5] * 264) == pytest.approx(5 * tile)
    assert in_cycles([5] * 265) == pytest.approx(10 * tile)
    assert in_cycles([7] + [5] * 264) == pytest.approx(10 * tile)
    assert in_cycles([5] * 100) == pytest.approx(5 * tile_cycles(work, 1).total), "alone on a multiprocessor"


@pytest.mark.parametrize(("model", "policy"), [("gemma-3-270m", "Plain"), ("gemma-2-2b", "SoftCap")])
def test_the_estimate_is_that_of_the_costs_page(model: str, policy: str) -> None:
    result = json.loads(cost.RESULT.read_text())
    (loop,) = [loop for loop in result["loops"] if (loop["head_dim"], loop["policy"]) == (256, policy)]
    for case in cases.chosen(["attention"], [model], [2048]):
        device = DryRunDevice(SHARED_BYTES["sm_90a"])
        given = case.make(device, 0)
        case.run(device, given)
        estimate = counted._estimate(case, given, device.launches[0], device)
        p = case.params
        seconds = cycles_page.estimated_seconds(
            cycles_page.work_of(loop), *ranges(p), 1, (p["heads"], p["kv_heads"], 256), policy == "Plain"
        )
        assert estimate["tflops"] == pytest.approx(case.flops / seconds / 1e12)
