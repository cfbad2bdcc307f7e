"""Cases in which every pair of values of two factors occurs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

Values = dict[str, Any]
Pair = tuple[str, str, str, str]


def pairs_of(values: Values) -> set[Pair]:
    """Every pair (factor, value, factor, value) of a case, values as their repr."""
    return {(a, repr(x), b, repr(y)) for (a, x), (b, y) in itertools.combinations(values.items(), 2)}


def all_pairs(factors: dict[str, tuple[Any, ...]]) -> set[Pair]:
    """Every pair of values of two factors."""
    return {
        (a, repr(x), b, repr(y))
        for (a, first), (b, second) in itertools.combinations(factors.items(), 2)
        for x, y in itertools.product(first, second)
    }


def pairwise(
    factors: dict[str, tuple[Any, ...]], possible: Callable[[Values], Values] = lambda values: values, seed: int = 0
) -> list[Values]:
    """Cases that hold every pair that `possible` leaves: it makes any choice of values one that can be run.

    Greedy: the best of some candidates around a pair that is still missing.
    """
    rng, missing, cases = np.random.default_rng(seed), sorted(all_pairs(factors)), []
    while missing:
        a, x, b, y = missing[0]
        candidates = []
        for _ in range(60):
            values = {name: choices[int(rng.integers(len(choices)))] for name, choices in factors.items()}
            for name, wanted in ((a, x), (b, y)):
                values[name] = next(value for value in factors[name] if repr(value) == wanted)
            candidates.append(possible(values))
        holding = [values for values in candidates if missing[0] in pairs_of(values)]
        if not holding:  # no case can have both values
            del missing[0]
            continue
        left = set(missing)
        best = max(holding, key=lambda values: len(pairs_of(values) & left))
        found = pairs_of(best)
        missing = [pair for pair in missing if pair not in found]
        cases.append(best)
    return cases
