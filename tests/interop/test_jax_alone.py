"""Attention over JAX's arrays where torch is not installed, at whichever version of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma_cuda


def _causal(q: Any, k: Any, v: Any) -> Any:
    return gemma_cuda.attention(q, k, v, causal=True)


def _of_rows(q: Any, k: Any, v: Any) -> Any:
    return jax.vmap(lambda *row: _causal(*(x[None] for x in row))[0])(q, k, v)


@pytest.mark.parametrize("function", [_causal, jax.jit(_causal), _of_rows], ids=["eager", "jit", "vmap"])
def test_equals_numpy(function: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 5, 4, 64), (2, 7, 2, 64), (2, 7, 2, 64)))
    np.testing.assert_array_equal(np.asarray(function(*map(jnp.asarray, (q, k, v)))), _causal(q, k, v))
