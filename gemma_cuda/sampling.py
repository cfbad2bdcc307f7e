"""Choosing the next token from logits."""

from __future__ import annotations

import math

import numpy as np

from .errors import InputError
from .reference.precision import Array


class Sampler:
    """Draws tokens; the same seed draws the same tokens.

    temperature 0: the likeliest token. top_p in (0, 1]: draw from the fewest tokens whose probabilities reach it.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature is {temperature}, expected a number of at least 0")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}, expected 0 < top_p <= 1")
        if seed is not None and seed < 0:
            raise InputError(f"seed is {seed}, expected an integer of at least 0")
        self.temperature, self.top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    def sample(self, logits: Array) -> int:
        """The id drawn from logits [V]."""
        if self.temperature == 0:
            return int(logits.argmax())
        below = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # a temperature near 0 leaves the likeliest tokens alone
            p = np.exp(below / self.temperature)
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        cumulative = np.cumsum(p[order])
        # A token stays if those before it do not yet reach top_p; so one always stays.
        kept = order[: int(np.searchsorted(cumulative, self.top_p, side="left")) + 1]
        return int(self._random.choice(kept, p=p[kept] / p[kept].sum()))
