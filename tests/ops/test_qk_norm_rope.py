"""qk_norm_rope on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gemma_cuda.config import RopeConfig
from gemma_cuda.device.protocol import Device
from gemma_cuda.errors import InputError
from gemma_cuda.model.rope import cos_sin
from gemma_cuda.ops.qk_norm_rope import qk_norm_rope
from gemma_cuda.precision import FLOAT32, Precision
from gemma_cuda.reference.qk_norm_rope import qk_norm_rope as reference_qk_norm_rope
from tests.support import compulsory
from tests.support.compare import DTYPES, assert_within_rule
from tests.support.emulated import (
    APPROXIMATIONS,
    EPS_RATIOS,
    HALF_DTYPES,
    SCHEDULES,
    Array,
    DeviceOf,
    KernelTestDevice,
    amid_nan,
    assert_moves_little_more,
    bounds,
    counted,
    near_eps,
    poisoned,
    values,
)

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One layer's geometry. norm: Raw (Gemma 1, 2), OnePlus (3) or Times (4, with v_norm)."""

    head_dim: int
    heads: int
    kv_heads: int
    tokens: int
    norm: str = "OnePlus"
    k_eq_v: bool = False
    pairs: int | None = None

    @property
    def v_norm(self) -> bool:
        return self.norm == "Times"


# Heads in all: one, a block's 128 · 16 / D less, exactly, more, twice and more; every group size; each part absent.
CASES = [
    Case(64, 1, 1, 1, "Raw"),
    Case(64, 8, 4, 2, "Raw"),
    Case(64, 8, 1, 7, "Raw"),
    Case(64, 0, 3, 11, "Raw"),
    Case(128, 1, 1, 5),
    Case(128, 2, 1, 4),
    Case(128, 32, 16, 2),
    Case(128, 3, 0, 13),
    Case(128, 4, 4, 3),
    Case(256, 4, 1, 1),
    Case(256, 4, 2, 1),
    Case(256, 8, 4, 3),
    Case(256, 8, 1, 5),
    Case(256, 0, 2, 5),
    Case(256, 3, 1, 4, "Raw"),
    Case(256, 16, 16, 1, "Raw"),
    Case(256, 8, 2, 3, "Times"),
    Case(256, 0, 1, 3, "Times"),
    Case(512, 1, 1, 1, "Times", k_eq_v=True),
    Case(512, 2, 1, 1, "Times", pairs=64),
    Case(512, 16, 1, 3, "Times", k_eq_v=True, pairs=64),
    Case(512, 3, 1, 2, "Times", pairs=0),
    Case(512, 8, 4, 2, "Times", k_eq_v=True, pairs=7),
    Case(512, 8, 0, 3, "Times", pairs=13),
    Case(512, 0, 2, 3, "Times", k_eq_v=True, pairs=249),
]


# Whole warps: the largest groups and multi-query attention among them.
TRAFFIC = [
    Case(64, 8, 2, 16),
    Case(128, 32, 16, 4),
    Case(256, 8, 4, 16),
    Case(256, 4, 1, 8),
    Case(512, 16, 2, 4, "Times"),
]


@dataclass
class Inputs:
    case: Case
    x: Array
    q_weight: Array | None
    k_weight: Array | None
    cos: Array  # [P, D/2]
    sin: Array
    positions: Array
    slots: Array
    cache_rows: int

    @classmethod
    def draw(cls, case: Case, dtype: str, seed: int = 0) -> Inputs:
        random = np.random.default_rng(seed)
        parts = case.heads + case.kv_heads * (1 if case.k_eq_v else 2)
        table, rows = case.tokens + 5, case.tokens + 3
        rope = RopeConfig("default", 100.0)
        cos, sin = cos_sin(rope, case.head_dim, np.arange(table) * 7, FLOAT32)
        if case.pairs is not None:  # what does not turn is never looked at
            cos[:, case.pairs :] = sin[:, case.pairs :] = np.nan
        weights = [
            values(seed + i, case.head_dim, dtype=dtype) if case.norm != "Raw" and heads else None
            for i, heads in ((1, case.heads), (2, case.kv_heads))
        ]
        return cls(
            case, values(seed, case.tokens, parts * case.head_dim, dtype=dtype, scale=3.0), *weights, cos, sin,
            random.integers(0, table, case.tokens).astype(np.int32),
            random.permutation(rows)[: case.tokens].astype(np.int32), rows,
        )  # fmt: skip

    def reference(self, p: Precision) -> tuple[Array, Array, Array]:
        """q and the caches, whose other rows are NaN."""
        case, compute = self.case, p.compute
        width = case.head_dim
        cos, sin = self.cos.copy(), self.sin.copy()
        if case.pairs is not None:
            cos[:, case.pairs :], sin[:, case.pairs :] = 1, 0
        turn: dict[str, Any] = {
            "cos": cos[self.positions].astype(compute), "sin": sin[self.positions].astype(compute),
            "eps": EPS, "precision": p,
        }  # fmt: skip
        q_weight, k_weight = (None if w is None else w.astype(compute) for w in (self.q_weight, self.k_weight))
        caches = [np.full((self.cache_rows, case.kv_heads, width), np.nan, compute) for _ in range(2)]
        q = reference_qk_norm_rope(
            self.x.astype(compute), heads=case.heads, q_weight=q_weight, k_weight=k_weight,
            plus_one=case.norm == "OnePlus", v_norm=case.v_norm, k_eq_v=case.k_eq_v, **turn,
            k_cache=caches[0] if case.kv_heads else None, v_cache=caches[1] if case.kv_heads else None,
            slots=self.slots,
        )  # fmt: skip
        return q, caches[0], caches[1]

    def run(self, device: Device, dtype: str) -> tuple[Array, Array, Array]:
        case = self.case
        shape = (self.cache_rows, case.kv_heads, case.head_dim)
        caches = [device.empty(shape, DTYPES[dtype]) if case.kv_heads else None for _ in range(2)]
        place = device.from_host
        q = qk_norm_rope(
            amid_nan(self.x, device, gap=64),
            heads=case.heads,
            cos=place(self.cos),
            sin=place(self.sin),
            eps=EPS,
            device=device,
            q_weight=None if self.q_weight is None else place(self.q_weight),
            k_weight=None if self.k_weight is None else place(self.k_weight),
            plus_one=case.norm == "OnePlus",
            v_norm=case.v_norm,
            k_cache=caches[0],
            v_cache=caches[1],
            slots=place(self.slots) if case.kv_heads else None,
            positions=place(self.positions),
            pairs=case.pairs,
            k_eq_v=case.k_eq_v,
        )
        empty = poisoned(*shape, dtype=dtype)
        k, v = (empty if cache is None else device.to_host(cache) for cache in caches)
        return device.to_host(q), k, v


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_equals_the_reference(
    index: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    case = CASES[index]
    inputs = Inputs.draw(case, dtype, seed=index)
    results = inputs.run(
        device_of(kernel_test_device(SCHEDULES[index % 3], approx=APPROXIMATIONS[index // 3 % 3])), dtype
    )
    exact, rounded = bounds(dtype, inputs.reference)
    unwritten = np.setdiff1d(np.arange(inputs.cache_rows), inputs.slots)
    poison = poisoned(1, dtype=dtype).view(np.uint16)
    for name, y, r, b in zip(("q", "k", "v"), results, exact, rounded, strict=True):
        if name != "q":
            assert (y[unwritten].view(np.uint16) == poison).all(), f"{name}: a row that is no slot was written"
            y, r, b = y[inputs.slots], r[inputs.slots], b[inputs.slots]
        if y.size:
            assert_within_rule(y, r, b, dtype=dtype, what=f"{name} of {case}")
    if case.kv_heads and not case.v_norm:  # then V is copied
        v = inputs.x[:, -case.kv_heads * case.head_dim :].reshape(case.tokens, case.kv_heads, -1)
        assert np.array_equal(results[2][inputs.slots].view(np.uint16), v.view(np.uint16))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [CASES[11], CASES[20]], ids=str)
def test_every_schedule_build_and_batch_gives_the_same_bits(case: Case, kernel_test_device: KernelTestDevice) -> None:
    inputs = Inputs.draw(case, "bfloat16")

    def bits(device: Device, of: Inputs = inputs) -> list[bytes]:
        q, k, v = of.run(device, "bfloat16")
        return [q.tobytes(), k[of.slots].tobytes(), v[of.slots].tobytes()]

    expected = bits(kernel_test_device(workers=1))
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        assert bits(kernel_test_device(schedule, seed=seed, workers=workers)) == expected
        assert bits(kernel_test_device(schedule, seed=seed, workers=workers, checked=False)) == expected
    alone = []
    for i in range(case.tokens):
        one = slice(i, i + 1)
        of = Inputs(
            case, inputs.x[one], inputs.q_weight, inputs.k_weight, inputs.cos, inputs.sin, inputs.positions[one],
            inputs.slots[one], inputs.cache_rows,
        )  # fmt: skip
        of.case = Case(**{**case.__dict__, "tokens": 1})
        alone.append(bits(kernel_test_device(), of))
    assert [b"".join(parts) for parts in zip(*alone, strict=True)] == expected


@pytest.mark.gpu
def test_positions_and_slots_are_implied(kernel_test_device: KernelTestDevice) -> None:
    case = Case(256, 4, 2, 5)
    inputs = Inputs.draw(case, "bfloat16")
    inputs.positions, inputs.slots = (np.arange(5, dtype=np.int32) for _ in range(2))
    expected = inputs.run(kernel_test_device(), "bfloat16")
    device = kernel_test_device()
    k, v = (device.empty((inputs.cache_rows, 2, 256), DTYPES["bfloat16"]) for _ in range(2))
    q = qk_norm_rope(
        inputs.x, heads=4, cos=inputs.cos, sin=inputs.sin, eps=EPS, device=device, plus_one=True,
        q_weight=inputs.q_weight, k_weight=inputs.k_weight, k_cache=k, v_cache=v,
    )  # fmt: skip
    assert [a.tobytes() for a in (q, k, v)] == [a.tobytes() for a in expected]


def test_what_has_no_slot_is_not_kept(device_of: DeviceOf, kernel_test_device: KernelTestDevice) -> None:
    inputs, device = Inputs.draw(CASES[10], "bfloat16"), device_of(kernel_test_device())
    q, k, v = inputs.run(device, "bfloat16")
    inputs.slots = inputs.slots.copy()
    slot, inputs.slots[0] = inputs.slots[0], -1
    again = inputs.run(device, "bfloat16")
    assert again[0].tobytes() == q.tobytes()
    for before, after in ((k, again[1]), (v, again[2])):
        changed = np.flatnonzero((before.view(np.uint16) != after.view(np.uint16)).any(axis=(1, 2)))
        assert changed.tolist() == [slot]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("norm", ["OnePlus", "Times"])
def test_eps_decides_where_a_head_is_small(
    norm: str, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    """Heads of q, k and v whose mean square is eps times a ratio, or 0. Each is held to the rule by itself."""
    case = Case(256, 4, 2, len(EPS_RATIOS), norm)
    inputs = Inputs.draw(case, dtype)
    inputs.x = near_eps(values(3, case.tokens, 8, case.head_dim, dtype="float32"), EPS, dtype).reshape(inputs.x.shape)
    device = device_of(kernel_test_device("random"))
    results = inputs.run(device, dtype)
    exact, rounded = bounds(dtype, inputs.reference)
    for name, y, r, b in zip(("q", "k", "v"), results, exact, rounded, strict=True):
        rows = range(case.tokens) if name == "q" else inputs.slots
        for token, row in enumerate(rows):
            assert_within_rule(y[row], r[row], b[row], dtype=dtype, what=f"{name}, ratio {EPS_RATIOS[token]}")


def test_no_tokens(kernel_test_device: KernelTestDevice) -> None:
    empty = np.zeros((0, 256), np.float16)
    table = np.ones((1, 32), np.float32)
    assert qk_norm_rope(empty, heads=4, cos=table, sin=table, eps=EPS, device=kernel_test_device()).shape == (0, 4, 64)


@pytest.mark.parametrize("case", TRAFFIC, ids=str)
def test_traffic_is_what_the_shapes_demand(case: Case, kernel_test_device: KernelTestDevice) -> None:
    inputs = Inputs.draw(case, "bfloat16")
    inputs.positions, inputs.slots = (np.arange(case.tokens, dtype=np.int32) for _ in range(2))
    emulator = kernel_test_device()
    place = emulator.from_host
    caches = [emulator.empty((case.tokens, case.kv_heads, case.head_dim), DTYPES["bfloat16"]) for _ in range(2)]
    cos, sin = (place(table[: case.tokens]) for table in (inputs.cos, inputs.sin))
    read = [place(inputs.x), cos, sin, *(place(w) for w in (inputs.q_weight, inputs.k_weight) if w is not None)]
    q = qk_norm_rope(
        read[0], heads=case.heads, cos=cos, sin=sin, eps=EPS, device=emulator, q_weight=read[3], k_weight=read[4],
        plus_one=case.norm == "OnePlus", v_norm=case.v_norm, k_cache=caches[0], v_cache=caches[1],
    )  # fmt: skip
    counters = counted(emulator)
    assert_moves_little_more(counters, compulsory.moved(read, [q, *caches]))
    # Without index arrays every request is 32 lanes of 16 bytes: 2 reads and 2 writes of each head, 2 of its weight, 4
    # of its angles unless it is a value.
    warps_per_head = case.head_dim // 16 / 32
    keyed, in_all = case.heads + case.kv_heads, case.heads + 2 * case.kv_heads
    assert counters.global_requests == case.tokens * warps_per_head * (4 * in_all + 6 * keyed)
    asked = counters.global_read_bytes + counters.global_write_bytes
    assert asked == 512 * counters.global_requests
    assert counters.shared_requests == 0 and counters.barriers == 0


def refusal_arguments() -> dict[str, Any]:
    """5 tokens, 4 query heads, 2 KV heads, D 64."""
    half = np.float16
    table, cache, weight = np.zeros((5, 32), np.float32), np.zeros((6, 2, 64), half), np.zeros(64, half)
    return {
        "x": np.zeros((5, 512), half), "heads": 4, "cos": table, "sin": table, "q_weight": weight, "k_weight": weight,
        "k_cache": cache, "v_cache": cache.copy(), "slots": np.arange(5, dtype=np.int32), "positions": None,
        "pairs": None,
    }  # fmt: skip


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((5, 8, 64), np.float16)}, "x is [5, 8, 64], expected [N, (H + 2 KH) D]"),
    ({"x": np.zeros((5, 512), np.float32)}, "x is float32, expected bfloat16 or float16"),
    ({"x": np.zeros((5, 448), np.float16)}, "x is [5, 448], expected [N, 8 · 64] of 4 query heads and 2 keys and"),
    ({"k_eq_v": True}, "x is [5, 512], expected [N, 6 · 64] of 4 query heads and 2 keys that are values, too"),
    ({"x": np.zeros((5, 1024), np.float16)[:, ::2]}, "the rows of x are not contiguous"),
    ({"x": np.zeros((5, 516), np.float16)[:, :512]}, "x starts, or has rows that start, off a multiple of 16 bytes"),
    ({"cos": np.zeros((5, 40), np.float32)}, "cos is [5, 40], expected [P, D/2] with D one of (64, 128, 256, 512)"),
    ({"sin": np.zeros((4, 32), np.float32)}, "sin is [4, 32], expected [P, D/2] = [5, 32]"),
    ({"sin": np.zeros((5, 32))}, "sin is float64, expected float32"),
    ({"cos": np.zeros((4, 32), np.float32), "sin": np.zeros((4, 32), np.float32)}, "x has 5 tokens and no posi"),
    ({"positions": np.zeros(4, np.int32)}, "positions is [4], expected [N] = [5]"),
    ({"positions": np.zeros(5, np.int64)}, "positions is int64, expected int32"),
    ({"positions": np.array([0, 4, 5, 1, 2], np.int32)}, "positions holds 5, outside the 5 rows of cos"),
    ({"slots": np.array([0, 4, -2, 1, 2], np.int32)}, "slots holds -2, outside the 6 rows of k_cache"),
    ({"slots": np.zeros(5, np.float32)}, "slots is float32, expected int32"),
    ({"slots": None, "k_cache": np.zeros((4, 2, 64), np.float16), "v_cache": np.zeros((4, 2, 64), np.float16)},
     "x has 5 tokens and no slots, but k_cache only 4 rows"),
    ({"v_cache": None}, "k_cache and v_cache are needed together"),
    ({"v_cache": np.zeros((6, 1, 64), np.float16)}, "v_cache is [6, 1, 64], expected [6, 2, 64] as k_cache"),
    ({"k_cache": np.zeros((6, 128), np.float16)}, "k_cache is [6, 128], expected [rows, KH, D]"),
    ({"k_cache": np.zeros((6, 2, 32), np.float16), "v_cache": np.zeros((6, 2, 32), np.float16)},
     "k_cache is [6, 2, 32], expected [rows, KH, D] = [6, 2, 64]"),
    ({"k_cache": np.zeros((6, 2, 64), np.float32), "v_cache": np.zeros((6, 2, 64), np.float32)}, "k_cache is float32"),
    ({"k_cache": None, "v_cache": None, "x": np.zeros((5, 256), np.float16)}, "slots are given, but no k_cache"),
    ({"k_cache": None, "v_cache": None, "heads": 0}, "heads is 0 without a k_cache: there is nothing to do"),
    ({"k_weight": None}, "q_weight and k_weight are needed together"),
    ({"q_weight": np.zeros(32, np.float16)}, "q_weight is [32], expected [D] = [64]"),
    ({"pairs": 33}, "pairs is 33, expected 0 to D/2 = 32"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments = refusal_arguments() | changes
    device = kernel_test_device()
    with pytest.raises(InputError) as info:
        qk_norm_rope(arguments.pop("x"), **arguments, eps=EPS, device=device)
    assert message in str(info.value) and str(info.value).startswith("qk_norm_rope: ")
    assert device.counters is None


def test_what_is_not_refused(kernel_test_device: KernelTestDevice) -> None:
    arguments = refusal_arguments()
    assert qk_norm_rope(arguments.pop("x"), **arguments, eps=EPS, device=kernel_test_device()).shape == (5, 4, 64)
