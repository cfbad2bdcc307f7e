"""The functions over JAX's arrays on the CPU: eagerly, under jit and vmap; and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.errors import DeviceError, InputError
from tests.support.compare import assert_within_rule
from tests.support.interop_cases import FACTORS, Call, impossible, runnable
from tests.support.pairwise import all_pairs, pairs_of, pairwise

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
TRANSFORMS: dict[str, Transform] = {"none": lambda f: f, "jit": jax.jit}
SMALL = FACTORS | {
    "queries": (0, 5), "keys": (0, 5, 67), "head_dim": (64,), "memory": ("contiguous",), "library": ("jax",),
    "out": (None,), "sliding_window": (None, 7), "transform": tuple(TRANSFORMS),
}  # fmt: skip
CASES = pairwise(SMALL, runnable)
Q, K = jnp.zeros((1, 3, 2, 64)), jnp.zeros((1, 4, 1, 64))


def test_every_pair_of_factors_meets_in_some_case() -> None:
    missing = all_pairs(SMALL) - set().union(*map(pairs_of, CASES))
    value = {name: {repr(x): x for x in choices} for name, choices in SMALL.items()}
    assert all(impossible(a, value[a][x], b, value[b][y]) for a, x, b, y in missing)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_a_dense_computation(number: int) -> None:
    values = CASES[number]
    call = Call(values, number)
    arguments = call.arguments()
    o, b, expected_lse = call.expected()
    arrays = ("q", "k", "v", "attn_bias", "block_ids", "cu_seqlens_q", "cu_seqlens_k")
    traced = [name for name in arrays if name in arguments]
    given = [None if arguments[name] is None else jnp.asarray(arguments.pop(name)) for name in traced]
    rest = {name: value for name, value in arguments.items() if name not in traced}

    def function(*arrays: Any) -> Any:
        return gemma_cuda.attention(**dict(zip(traced, arrays, strict=True)), **rest, return_lse=True)

    got, lse = TRANSFORMS[values["transform"]](function)(*given)
    assert isinstance(got, jax.Array) and got.dtype == given[0].dtype
    assert got.shape == o.shape and lse.shape == expected_lse.shape and lse.dtype == jnp.float32
    if o.size:
        capped = call.softcap is not None
        assert_within_rule(np.asarray(got), o, b, dtype=values["dtype"], softcap=capped, what=str(values))


def test_layers_under_jit_and_vmap() -> None:
    rng = np.random.default_rng(0)
    x, up = (jnp.asarray(rng.standard_normal((4, 3, 96)), jnp.bfloat16) for _ in range(2))
    weight = jnp.asarray(rng.standard_normal(96), jnp.bfloat16)
    norm = lambda x: gemma_cuda.rms_norm(x, weight, plus_one=True)  # noqa: E731
    expected = gemma_cuda.rms_norm(np.asarray(x), np.asarray(weight), plus_one=True)
    for function in (norm, jax.jit(norm), jax.vmap(norm), jax.jit(jax.vmap(norm))):
        assert np.array_equal(np.asarray(function(x)), expected)
    gated = jax.jit(gemma_cuda.geglu)(x, up)
    assert np.array_equal(np.asarray(gated), gemma_cuda.geglu(np.asarray(x), np.asarray(up)))
    angles = rng.uniform(0, 6, (4, 32))
    tables = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
    rows = np.asarray(x.reshape(-1, 96)[:4, :64])
    turn = lambda x, c, s: gemma_cuda.qk_norm_rope(x, heads=1, cos=c, sin=s)  # noqa: E731
    turned = jax.jit(turn)(*map(jnp.asarray, (rows, *tables)))
    assert np.array_equal(np.asarray(turned), turn(rows, *tables))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "shape": (
        lambda: jax.jit(gemma_cuda.attention)(Q, K[0], K[0]),
        "attention: k is [4, 1, 64], expected [B, T, KH, D]",
    ),
    "two libraries": (
        lambda: gemma_cuda.attention(Q, np.asarray(K), K),
        "attention: k is a ndarray, the first array is of JAX; bring all arrays of one library",
    ),
    "out": (lambda: gemma_cuda.attention(Q, K, K, out=Q), "attention: out: JAX's arrays cannot be written"),
    "out of a layer": (lambda: gemma_cuda.rms_norm(Q, out=Q), "rms_norm: out: JAX's arrays cannot be written"),
    "softcap": (
        lambda: gemma_cuda.attention(Q, K, K, softcap=-1),
        "attention: softcap is -1, expected a positive number",
    ),
    "caches": (
        lambda: gemma_cuda.qk_norm_rope(Q[0, :, 0], heads=1, cos=Q, sin=Q, k_cache=K, v_cache=K),
        "qk_norm_rope: k_cache and v_cache are written in place, which JAX's arrays do not allow",
    ),
    "gradient": (
        lambda: jax.grad(lambda q: gemma_cuda.attention(q, K, K).sum())(Q),
        "attention: there is no backward pass; keep JAX's own function where you differentiate",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_gpus_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(DeviceError, match="it is traced for gpu, and only JAX on the CPU is served"):
        jax.jit(gemma_cuda.attention)(Q, K, K)
    monkeypatch.setattr("gemma_cuda.interop.jax.platforms_of", lambda x: {"gpu"})
    with pytest.raises(DeviceError, match=r"attention: JAX's arrays on a gpu are not served; move the arrays"):
        gemma_cuda.attention(Q, K, K)
