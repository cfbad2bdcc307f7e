"""`gemma_cuda.attention` over NumPy and torch: against a dense computation in torch, over every pair of factors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.device.emulator.device import Emulator
from tests.support.compare import as_float64, assert_within_rule
from tests.support.interop_cases import FACTORS, Call, impossible, runnable, to_torch
from tests.support.pairwise import all_pairs, pairs_of, pairwise

Array = np.ndarray[Any, Any]
CASES = [case for seed in range(3) for case in pairwise(FACTORS, runnable, seed)]
CHECKED = Emulator(checked=True)


class Foreign:
    """An array of a library that nobody knows, which speaks DLPack."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape = array, array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_arrays_that_speak_dlpack() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 64)).astype(np.float32)
    o = gemma_cuda.attention(Foreign(x), Foreign(x), Foreign(x), causal=True)
    assert isinstance(o, np.ndarray) and np.array_equal(o, gemma_cuda.attention(x, x, x, causal=True))


def test_inputs_are_not_changed_and_sequences_do_not_see_each_other() -> None:
    """Not even a NaN of one packed sequence reaches another, on the reference and in a kernel."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((12, 1, 64)).astype(np.float16) for _ in range(3))
    k[5:] = v[5:] = np.nan
    before = [x.copy() for x in (q, k, v)]
    for device in (None, "emulator"):
        o = gemma_cuda.attention(q, k, v, layout="SHD", cu_seqlens_q=[0, 5, 12], device=device)
        assert np.isfinite(o[:5]).all() and np.isnan(o[5:]).all()
        alone = gemma_cuda.attention(q[:5], k[:5], v[:5], layout="SHD", device=device)
        assert np.array_equal(o[:5], alone)
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip((q, k, v), before, strict=True))


def test_queries_before_the_first_key_see_no_block() -> None:
    q, k = np.ones((1, 5, 1, 64), np.float32), np.ones((1, 3, 1, 64), np.float32)
    o, lse = gemma_cuda.attention(q, k, k, causal=True, block_ids=[0, 0, 0], return_lse=True)
    assert np.isneginf(lse[0, 0]).tolist() == [True, True, False, False, False]
    assert o[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]


def test_every_pair_of_factors_meets_in_some_case() -> None:
    missing = all_pairs(FACTORS) - set(itertools.chain.from_iterable(map(pairs_of, CASES)))
    value = {name: {repr(x): x for x in choices} for name, choices in FACTORS.items()}
    unexplained = [
        pair for pair in missing if not impossible(pair[0], value[pair[0]][pair[1]], pair[2], value[pair[2]][pair[3]])
    ]
    assert not unexplained


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_a_dense_computation(number: int) -> None:
    values = CASES[number]
    call = Call(values, number)
    arguments = call.arguments()
    if values["device"] == "emulator":
        arguments["device"] = CHECKED
    o, b, lse = call.expected()
    if values["library"] == "torch":
        arguments = {name: to_torch(x) for name, x in arguments.items()}
    if values["out"] is not None:
        fresh = np.zeros(arguments["q"].shape, call.dtype)
        fresh = to_torch(fresh) if values["library"] == "torch" else fresh
        arguments["out"] = fresh if values["out"] == "fresh" else arguments[values["out"]]
    got, got_lse = gemma_cuda.attention(**arguments, return_lse=True)

    what = " ".join(f"{name}={value}" for name, value in values.items())
    assert type(got) is type(arguments["q"]) and got.dtype == arguments["q"].dtype, what
    assert values["out"] is None or got is arguments["out"]
    assert got.shape == o.shape and got_lse.shape == lse.shape, what
    if o.size:
        capped = call.softcap is not None
        assert_within_rule(as_float64(got), o, b, dtype=values["dtype"], softcap=capped, what=what)
        seen = np.isfinite(lse)
        assert np.array_equal(np.isneginf(as_float64(got_lse)), ~seen), what
        assert np.all(np.abs(as_float64(got_lse)[seen] - lse[seen]) <= 2e-3 * np.maximum(1, np.abs(lse[seen]))), what
