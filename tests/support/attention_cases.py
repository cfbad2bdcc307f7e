"""Attention problems for tests: every pair of factors meets in some case; memory around and between is NaN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from gemma_cuda.device.emulator.device import MmaRounding, Schedule
from gemma_cuda.device.protocol import Device
from gemma_cuda.ops.attention import attention
from gemma_cuda.precision import FLOAT64, Precision
from gemma_cuda.reference.attention import attention as reference
from tests.support.compare import DTYPES, assert_within_rule
from tests.support.emulated import MMA_ROUNDINGS, ROUNDING, SCHEDULES, Array, amid_nan
from tests.support.pairwise import pairwise

TILE = 64  # keys of a tile, and rows of the smaller of the two

FACTORS: dict[str, tuple[Any, ...]] = {
    "queries": (1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3),
    "past": (0, 1, TILE - 1, TILE, 2 * TILE + 3),  # keys before the first query's own
    "mask": (
        "causal",
        "window 1",
        "window 64",
        "window 9999",
        "spans",
        "window spans",
        "two-sided window",
        "all",
        "any",
    ),
    "heads": ((1, 1), (2, 1), (3, 2), (4, 1), (8, 1), (1, 3)),  # of a group, KV heads
    "head_dim": (64, 128, 256),
    "dtype": ("bfloat16", "float16"),
    "logit": ("plain", "cap 50", "cap 2", "bias float32", "bias bfloat16", "cap 2 bias float16"),
    "sequences": (1, 3),
    "split_keys": (None, 64, 128),
    "shared_kib": (99, 163, 227),
    "schedule": SCHEDULES,
    "approx": ("exact", "up", "down"),
    "mma": MMA_ROUNDINGS,
}


@dataclass(frozen=True)
class Case:
    """One value of each factor."""

    queries: int
    past: int
    mask: str
    heads: tuple[int, int]
    head_dim: int
    dtype: str
    logit: str
    sequences: int
    split_keys: int | None
    shared_kib: int
    schedule: Schedule
    approx: Any
    mma: MmaRounding

    def __str__(self) -> str:
        return " ".join(f"{name}={getattr(self, name)}" for name in FACTORS)


def pairwise_cases(seed: int = 0) -> list[Case]:
    """Cases in which every pair of values occurs."""
    return [Case(**values) for values in pairwise(FACTORS, seed=seed)]


def ranges(mask: str, queries: int, past: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """key_begin, key_end int32 [queries] of a sequence whose query i is key past + i."""
    t, keys = np.arange(past, past + queries), past + queries
    begin, end = np.zeros_like(t), t + 1
    if mask.startswith("window "):
        width = 48 if mask == "window spans" else int(mask.split()[1])
        begin = np.maximum(0, t - width + 1)
    if mask in ("spans", "window spans"):
        for first in range(3, keys, 40):  # spans of 29 tokens, text between
            inside = (t >= first) & (t < first + 29)
            end[inside] = min(first + 29, keys)
    elif mask == "two-sided window":
        begin, end = np.maximum(0, t - 20), np.minimum(keys, t + 21)
    elif mask == "all":
        end = np.full_like(t, keys)
    elif mask == "any":  # rising ends, some rows with no key at all
        begin, end = (np.sort(rng.integers(0, keys + 1, queries)) for _ in range(2))
    return begin.astype(np.int32), end.astype(np.int32)


@dataclass
class Problem:
    """Arguments of one attention, in the dtype of the kernel."""

    q: Array
    k: Array
    v: Array
    bias: Array | None
    masks: dict[str, Any]  # key_begin, key_end, cu_seqlens
    scale: float
    softcap: float | None
    dtype: str

    def run(self, device: Device, *, lse: Array | None = None, **options: Any) -> Array:
        """What the kernel makes of it, with NaN in every slot that no query may see and around the arrays."""
        q, k, v = (amid_nan(a, device) for a in (self.q, *(hidden_as_nan(a, self.masks) for a in (self.k, self.v))))
        bias = None if self.bias is None else amid_nan(self.bias, device, gap=9)
        placed = None if lse is None else device.from_host(lse)
        arguments = dict(scale=self.scale, softcap=self.softcap, bias=bias, lse=placed, device=device, **self.masks)
        o: Array = device.to_host(attention(q, k, v, **arguments, **options))
        if lse is not None:
            lse[...] = device.to_host(placed)
        return o

    def part(self, sequence: int, start: int = 0, stop: int | None = None) -> tuple[slice, Problem]:
        """The queries start : stop of one sequence: their rows, and the problem of them alone. Without a bias."""
        first, last = (int(n) for n in self.masks["cu_seqlens"][sequence : sequence + 2])
        rows, cache = slice(first + start, last if stop is None else first + stop), slice(sequence, sequence + 1)
        masks = {name: self.masks[name][rows] for name in ("key_begin", "key_end")}
        masks["cu_seqlens"] = np.array([0, rows.stop - rows.start], np.int32)
        alone = replace(self, q=self.q[rows], k=self.k[cache], v=self.v[cache], bias=None, masks=masks)
        return rows, alone

    def reference(self, precision: Precision, *, lse: Array | None = None) -> Array:
        """What the reference makes of it."""
        q, k, v = (array.astype(precision.compute) for array in (self.q, self.k, self.v))
        bias = None if self.bias is None else self.bias.astype(precision.compute)
        arguments = dict(scale=self.scale, softcap=self.softcap, bias=bias, precision=precision, lse=lse, **self.masks)
        return reference(q, k, v, **arguments)

    def assert_right(self, o: Array, what: str) -> None:
        """Fails unless o obeys the tolerance rule."""
        r, b = self.reference(FLOAT64), self.reference(ROUNDING[self.dtype])
        assert_within_rule(o, r, b, dtype=self.dtype, softcap=self.softcap is not None, what=what)


def problem(case: Case, seed: int) -> Problem:
    """Random arguments of a case; with several sequences and no bias, their lengths and pasts differ."""
    rng = np.random.default_rng(seed)
    (group, kv_heads), has_bias = case.heads, "bias" in case.logit
    queries, pasts = [case.queries], [case.past]
    for _ in range(case.sequences - 1):
        queries.append(case.queries if has_bias else int(rng.integers(1, 90)))
        pasts.append(case.past if has_bias else int(rng.integers(0, 90)))
    parts = [ranges(case.mask, s, past, rng) for s, past in zip(queries, pasts, strict=True)]
    cu_seqlens = np.concatenate(([0], np.cumsum(queries))).astype(np.int32)
    keys, tokens = max(s + past for s, past in zip(queries, pasts, strict=True)), int(cu_seqlens[-1])
    dtype, heads = DTYPES[case.dtype], group * kv_heads
    bias = None
    if has_bias:
        shape = (int(rng.choice([1, case.sequences])), int(rng.choice([1, heads])), case.queries, keys)
        bias = rng.standard_normal(shape)
        bias[rng.random(shape) < 0.3] = -np.inf
        bias[:, :, case.queries // 2] = -np.inf  # a row that sees nothing
        bias[:, :, :, : TILE + 1] = (
            -np.inf if keys > 2 * TILE else bias[:, :, :, : TILE + 1]
        )  # nor anybody a whole tile
        bias = bias.astype(DTYPES[case.logit.split()[-1]])
    return Problem(
        q=(2 * rng.standard_normal((tokens, heads, case.head_dim))).astype(dtype),
        k=rng.standard_normal((case.sequences, keys, kv_heads, case.head_dim)).astype(dtype),
        v=rng.standard_normal((case.sequences, keys, kv_heads, case.head_dim)).astype(dtype),
        bias=bias,
        masks={
            "key_begin": np.concatenate([begin for begin, _ in parts]),
            "key_end": np.concatenate([end for _, end in parts]),
            "cu_seqlens": cu_seqlens,
        },
        scale=case.head_dim**-0.5,
        softcap=float(case.logit.split()[1]) if case.logit.startswith("cap") else None,
        dtype=case.dtype,
    )


def causal_problem(
    queries: list[int],
    keys: int,
    *,
    group: int = 2,
    kv_heads: int = 1,
    head_dim: int = 64,
    window: int | None = None,
    dtype: Any = ml_dtypes.bfloat16,
    seed: int = 0,
) -> Problem:
    """Sequences whose last query is their last key; window: of key_begin."""
    rng = np.random.default_rng(seed)
    last = [np.arange(keys - s, keys) for s in queries]
    begin = [np.zeros_like(t) if window is None else np.maximum(0, t - window + 1) for t in last]
    shape = (len(queries), keys, kv_heads, head_dim)
    return Problem(
        q=(2 * rng.standard_normal((sum(queries), group * kv_heads, head_dim))).astype(dtype),
        k=rng.standard_normal(shape).astype(dtype),
        v=rng.standard_normal(shape).astype(dtype),
        bias=None,
        masks={
            "key_begin": np.concatenate(begin).astype(np.int32),
            "key_end": np.concatenate(last).astype(np.int32) + np.int32(1),
            "cu_seqlens": np.concatenate(([0], np.cumsum(queries))).astype(np.int32),
        },
        scale=head_dim**-0.5,
        softcap=None,
        dtype=np.dtype(dtype).name,
    )


def hidden_as_nan(cache: Array, masks: dict[str, Any]) -> Array:
    """Copy of k or v with NaN in the slots before the first and after the last that a sequence sees."""
    out, cu_seqlens = cache.copy(), masks["cu_seqlens"]
    for b in range(len(cache)):
        rows = slice(int(cu_seqlens[b]), int(cu_seqlens[b + 1]))
        first, last = int(masks["key_begin"][rows].min(initial=0x7FFFFFFF)), int(masks["key_end"][rows].max(initial=0))
        out[b, : min(first, len(out[b]))] = np.nan
        out[b, max(first, last) :] = np.nan
    return out
