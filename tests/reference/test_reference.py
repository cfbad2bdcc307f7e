"""The NumPy ops against formulas written out in float64, and the masks' leak and needle tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.precision import BFLOAT16, FLOAT32, FLOAT64, Precision
from gemma_cuda.reference import ReferenceOps
from gemma_cuda.reference.linear import linear, linear_geglu
from tests.support.compare import assert_within_rule

Array = np.ndarray[Any, np.dtype[Any]]
PRECISIONS = [FLOAT32, BFLOAT16]
F64 = ReferenceOps(FLOAT64)


def draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    """float64 values that bfloat16 holds exactly, so that every precision gets the same input."""
    return (rng.standard_normal(shape) * scale).astype(ml_dtypes.bfloat16).astype(np.float64)


def at(precision: Precision, *arrays: Array | None) -> list[Any]:
    return [None if a is None else a.astype(precision.compute) for a in arrays]


def check(precision: Precision, y: Array, formula: Callable[..., Array], *inputs: Array, softcap: bool = False) -> None:
    """y within the rule of formula(*inputs) in float64; b is the formula in float32, or rounded once to bfloat16."""
    r = formula(*inputs)
    b = formula(*at(FLOAT32, *inputs)) if precision is FLOAT32 else BFLOAT16.round(r)
    assert_within_rule(y, r, b, dtype=precision.name, softcap=softcap)


def normed(x: Array, weight: Array | None = None) -> Array:
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + x.dtype.type(1e-6))
    return y if weight is None else y * weight


def gelu(z: Array) -> Array:
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("width", [1, 64, 640])
def test_rms_norm(precision: Precision, rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + width)
    x, w = draw(rng, rows, width, scale=4), 1 + draw(rng, width, scale=0.3)
    y = ReferenceOps(precision).rms_norm(*at(precision, x, w), eps=1e-6)
    check(precision, y, normed, x, w)
    if precision is BFLOAT16:
        np.testing.assert_array_equal(y, y.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("post", [True, False])
@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("scalar", [1.0, 0.25])
def test_add_norm_is_norm_add_norm(post: bool, pre: bool, scalar: float) -> None:
    rng = np.random.default_rng(0)
    x, branch = draw(rng, 700, 96, scale=3), draw(rng, 700, 96)
    post_weight, pre_weight = draw(rng, 96) if post else None, draw(rng, 96) if pre else None

    def sum_of(x: Array, branch: Array) -> Array:
        return (x + (branch if post_weight is None else normed(branch, post_weight.astype(x.dtype)))) * x.dtype.type(
            scalar
        )

    for precision in PRECISIONS:
        weights = {"post_weight": at(precision, post_weight)[0], "pre_weight": at(precision, pre_weight)[0]}
        residual, h = ReferenceOps(precision).add_norm(
            *at(precision, x, branch), **weights, eps=1e-6, layer_scalar=scalar
        )
        check(precision, residual, sum_of, x, branch)
        if pre_weight is not None:  # the second norm reads the rounded residual
            check(precision, h, normed, residual.astype(np.float64), pre_weight)
        else:
            assert h is residual


def test_geglu_is_exact_at_both_ends() -> None:
    z = np.array([[-1e4, -60.0, -5.0, -1.0, 0.0, 1.0, 5.0, 60.0, 1e4]])
    np.testing.assert_allclose(F64.geglu(z, np.ones_like(z)), gelu(z), rtol=1e-12, atol=1e-14)
    assert np.isfinite(ReferenceOps(FLOAT32).geglu(*at(FLOAT32, z, np.ones_like(z)))).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_geglu_of_packed_halves(precision: Precision) -> None:
    rng = np.random.default_rng(1)
    packed = draw(rng, 300, 512, scale=2)
    (p,) = at(precision, packed)
    y = ReferenceOps(precision).geglu(p[:, :256], p[:, 256:])
    check(precision, y, lambda x: gelu(x[:, :256]) * x[:, 256:], packed)


def test_logits_are_capped_with_an_accurate_tanh() -> None:
    rng = np.random.default_rng(2)
    h, w = draw(rng, 3, 32, scale=8), draw(rng, 100, 32)
    y = ReferenceOps(FLOAT32).logits(*at(FLOAT32, h, w), softcap=30.0)
    assert np.abs(y).max() > 29
    check(FLOAT32, y, lambda h, w: 30 * np.tanh(h @ w.T / 30), h, w, softcap=True)


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_what_follows_a_product(precision: Precision) -> None:
    rng = np.random.default_rng(4)
    x, w, residual = draw(rng, 5, 32), draw(rng, 24, 32), draw(rng, 5, 24, scale=4)
    p, q, r = at(precision, x, w, residual)
    added = linear(p, q, residual=r, precision=precision)
    check(precision, added, lambda x, w, residual: residual + x @ w.T, x, w, residual)
    gated = linear_geglu(p, q, precision=precision)
    check(precision, gated, lambda x, w: gelu(x @ w[:12].T) * (x @ w[12:].T), x, w)
    capped = linear(p, q, softcap=5.0, precision=precision)
    check(precision, capped, lambda x, w: 5 * np.tanh(x @ w.T / 5), x, w, softcap=True)
    assert np.array_equal(precision.round(capped), capped) == (precision.working is None)


@pytest.mark.parametrize("slots", ["neighbours", "scattered"])
def test_qk_norm_rope_writes_its_slots_and_no_other(slots: str) -> None:
    rng = np.random.default_rng(3)
    n, heads, d = 37, 2, 8
    k, v = draw(rng, n, heads * d), draw(rng, n, heads * d)
    angle = rng.uniform(0, 6, (n, d // 2))
    where = np.arange(5, 5 + n) if slots == "neighbours" else rng.permutation(60)[:n]
    k_cache, v_cache = np.full((60, heads, d), np.nan), np.full((60, heads, d), np.nan)
    weight = draw(rng, d)
    F64.qk_norm_rope(
        np.concatenate((k, v), axis=1), heads=0, k_weight=weight, v_norm=True, cos=np.cos(angle), sin=np.sin(angle),
        eps=1e-6, k_cache=k_cache, v_cache=v_cache, slots=where,
    )  # fmt: skip
    k3, v3 = k.reshape(n, heads, d), v.reshape(n, heads, d)
    k_normed = normed(k3, weight)
    pairs = (k_normed[..., : d // 2] + 1j * k_normed[..., d // 2 :]) * np.exp(1j * angle)[:, None]
    np.testing.assert_allclose(k_cache[where], np.concatenate((pairs.real, pairs.imag), -1), atol=1e-12)
    np.testing.assert_allclose(v_cache[where], normed(v3), atol=1e-12)
    others = np.setdiff1d(np.arange(60), where)
    assert np.isnan(k_cache[others]).all() and np.isnan(v_cache[others]).all()


def dense_attention(
    q: Array, k: Array, v: Array, visible: Array, scale: float, softcap: float | None, bias: Array | None
) -> Array:
    """o [S, H, D] by the definition, for one sequence; visible bool [S, T], bias [H or 1, S, T]."""
    h, kh = q.shape[1], k.shape[1]
    s = np.einsum("shd,thd->hst", q, np.repeat(k, h // kh, axis=1)) * scale
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    if bias is not None:
        s = s + bias
    s = np.where(visible, s, -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.exp(s - s.max(-1, keepdims=True))
        p = np.nan_to_num(p / p.sum(-1, keepdims=True))
    return np.einsum("hst,thd->shd", p, np.repeat(v, h // kh, axis=1))


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias_heads", [None, 1, 6])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize(("s", "t"), [(1, 1), (1, 90), (70, 70), (33, 300), (300, 311)])
def test_attention(
    precision: Precision, softcap: float | None, bias_heads: int | None, kv_heads: int, s: int, t: int
) -> None:
    rng = np.random.default_rng(s * t + kv_heads)
    heads, d = 6, 32
    q, k, v = draw(rng, s, heads, d, scale=2), draw(rng, t, kv_heads, d), draw(rng, t, kv_heads, d)
    end = np.arange(t - s, t) + 1
    begin = np.maximum(0, end - 57)
    end[s // 2] = begin[s // 2]  # a row that sees nothing
    bias = None
    if bias_heads is not None:
        bias = draw(rng, 1, bias_heads, s, t)
        bias[0, :, :, t // 3] = -np.inf
    columns = np.arange(t)
    visible = (columns >= begin[:, None]) & (columns < end[:, None])
    r = dense_attention(q, k, v, visible, 0.25, softcap, None if bias is None else bias[0])

    def run(p: Precision) -> Array:
        a, b, c, e = at(p, q, k[None], v[None], bias)
        return ReferenceOps(p).attention(
            a, b, c, key_begin=begin, key_end=end, cu_seqlens=np.array([0, s]), scale=0.25, softcap=softcap, bias=e
        )

    np.testing.assert_allclose(run(FLOAT64), r, atol=1e-12)
    if precision is BFLOAT16:  # b: probabilities and output rounded, everything else exact
        b = run(Precision("b", np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)))
    else:  # b: the formula, every operation in float32
        b = dense_attention(
            *at(precision, q, k, v), visible, 0.25, softcap, None if bias is None else at(precision, bias[0])[0]
        )
    assert_within_rule(run(precision), r, b, dtype=precision.name, softcap=softcap is not None, what="attention")
    np.testing.assert_array_equal(run(precision)[s // 2], 0)


@pytest.mark.parametrize("window", [512, 1024, 4096])
@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_window_leaks_nothing_and_reaches_its_last_key(precision: Precision, window: int) -> None:
    """Invisible V is 1e4 and visible V 0, so any leak shows; then only the boundary key weighs, so missing it shows."""
    rng = np.random.default_rng(window)
    t = window + 300
    queries = np.array([0, 1, window - 1, window, window + 255, window + 256, t - 1])
    begin, end = np.maximum(0, queries - window + 1).astype(np.int32), (queries + 1).astype(np.int32)
    q, k = draw(rng, len(queries), 2, 16), draw(rng, t, 1, 16)
    ops = ReferenceOps(precision)
    for i, (lo, hi) in enumerate(zip(begin, end, strict=True)):
        v = np.full((t, 1, 16), 1e4)
        v[lo:hi] = 0
        qi, ki, vi = at(precision, q[i : i + 1], k[None], v[None])
        options: dict[str, Any] = {"cu_seqlens": np.array([0, 1]), "softcap": None, "bias": None}
        leak = ops.attention(qi, ki, vi, key_begin=begin[i : i + 1], key_end=end[i : i + 1], scale=0.25, **options)
        np.testing.assert_array_equal(leak, 0)
        for needle in {int(lo), int(hi) - 1}:
            keys = np.zeros((1, t, 1, 16))
            keys[0, needle] = 100
            values = draw(rng, 1, t, 1, 16)
            ones = np.ones((1, 2, 16))
            a, b, c = at(precision, ones, keys, values)
            found = ops.attention(a, b, c, key_begin=begin[i : i + 1], key_end=end[i : i + 1], scale=1.0, **options)
            np.testing.assert_array_equal(found, np.broadcast_to(values[0, needle], found.shape[1:])[None])


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(5)
    lengths, t = [40, 7, 1], 40
    n = sum(lengths)
    q, k, v = (draw(rng, *shape).astype(np.float32) for shape in [(n, 4, 32), (3, t, 2, 32), (3, t, 2, 32)])
    cu = np.concatenate(([0], np.cumsum(lengths)))
    end = np.concatenate([np.arange(m) + 1 for m in lengths])
    ops = ReferenceOps(FLOAT32)

    def run(rows: slice, b: slice, cu_seqlens: Array) -> Array:
        return ops.attention(
            q[rows], k[b], v[b], key_begin=np.zeros_like(end[rows]), key_end=end[rows], cu_seqlens=cu_seqlens,
            scale=1.0, softcap=None, bias=None,
        )  # fmt: skip

    together = run(slice(0, n), slice(0, 3), cu)
    for b, m in enumerate(lengths):
        alone = run(slice(cu[b], cu[b + 1]), slice(b, b + 1), np.array([0, m]))
        np.testing.assert_array_equal(together[cu[b] : cu[b + 1]], alone)


def test_route_and_moe() -> None:
    rng = np.random.default_rng(6)
    n, e, f, x = 50, 16, 12, 8
    h, z = draw(rng, n, e), draw(rng, n, e)
    scale, proj, per_expert = 1 + draw(rng, e, scale=0.2), draw(rng, x, e, scale=2), 1 + draw(rng, x, scale=0.3)
    gate_up, down = draw(rng, x, 2 * f, e), draw(rng, x, e, f)
    experts, weights = F64.route(h, scale=scale, proj=proj, per_expert_scale=per_expert, top_k=3, eps=1e-6)
    y = F64.moe(z, experts, weights, gate_up=gate_up, down=down)
    for i in range(n):
        p = np.exp(proj @ (normed(h[i]) * scale / math.sqrt(e)))
        p /= p.sum()
        top = np.argsort(-p)[:3]
        want = np.zeros(e)
        for j in top:
            g, u = np.split(gate_up[j] @ z[i], 2)
            want += p[j] / p[top].sum() * per_expert[j] * (down[j] @ (gelu(g) * u))
        np.testing.assert_allclose(y[i], want, atol=1e-10)
