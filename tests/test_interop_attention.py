"""`gemma_cuda.attention` over NumPy and torch: against a dense computation in torch, over every pair of factors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from tests.compare import as_float64, assert_within_rule
from tests.interop_cases import FACTORS, Call, impossible, runnable, to_torch
from tests.pairwise import all_pairs, pairs_of, pairwise

Array = np.ndarray[Any, Any]
CASES = pairwise(FACTORS, runnable)


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
