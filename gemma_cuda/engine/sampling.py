"""Choosing the next token from logits."""

from __future__ import annotations

import math

import numpy as np

from .. import arguments
from ..errors import CheckpointError
from ..precision import Array


def require_finite(*logits: float) -> None:
    """Raises CheckpointError unless these logits are finite; of many the largest tells, which NaN is, too."""
    if not all(map(math.isfinite, logits)):
        raise CheckpointError(
            "the logits are not finite: the weights hold NaN or infinity, or values too large for the dtype"
        )


class Sampler:
    """Draws tokens; the same seed draws the same tokens.

    temperature 0: the likeliest token. top_p in (0, 1]: draw from the fewest tokens whose probabilities reach it.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        self.temperature = arguments.number("temperature", temperature, least=0)
        self.top_p = arguments.number("top_p", top_p, above=0, most=1)
        self._random = np.random.default_rng(None if seed is None else arguments.integer("seed", seed, least=0))

    def sample(self, logits: Array) -> int:
        """The id drawn from logits [V]; CheckpointError if they are not finite."""
        best = int(logits.argmax())  # NaN before all others
        require_finite(float(logits[best]))
        if self.temperature == 0:
            return best
        scaled = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # the largest stays 0 however low the temperature
            scaled = (scaled - scaled.max()) / self.temperature
        p = np.exp(scaled)
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        cumulative = np.cumsum(p[order])
        # A token stays if those before it do not yet reach top_p; so one always stays.
        kept = order[: int(np.searchsorted(cumulative, self.top_p, side="left")) + 1]
        return int(self._random.choice(kept, p=p[kept] / p[kept].sum()))
