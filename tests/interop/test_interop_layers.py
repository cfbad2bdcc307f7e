"""`rms_norm`, `geglu` and `qk_norm_rope` over NumPy and torch, against torch in float64."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import gemma_cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import InputError
from gemma_cuda.ops.geglu import geglu as geglu_op
from gemma_cuda.ops.qk_norm_rope import qk_norm_rope as qk_norm_rope_op
from gemma_cuda.ops.rms_norm import rms_norm as rms_norm_op
from gemma_cuda.reference.geglu import geglu as reference_geglu
from gemma_cuda.reference.rms_norm import rms_norm as reference_rms_norm
from tests.support.compare import DTYPES, as_float64, assert_within_rule
from tests.support.interop_cases import ROUNDING, placed, to_torch
from tests.support.pairwise import all_pairs, pairs_of, pairwise

FACTORS: dict[str, tuple[Any, ...]] = {
    "shape": ((0, 64), (1, 96), (5, 7, 64), (64,), (3, 1280)),
    "dtype": ("float32", "bfloat16", "float16"),
    "memory": ("contiguous", "strided", "off by one", "last axis apart"),
    "library": ("numpy", "torch"),
    "weight": ("none", "times", "plus one"),
    "out": ("new", "fresh", "first", "shifted"),
    "device": (None, "emulator"),
}


def runnable(values: dict[str, Any]) -> dict[str, Any]:
    return values | ({"memory": "contiguous"} if values["out"] == "shifted" else {})


CASES = pairwise(FACTORS, runnable)


def arrays(values: dict[str, Any], seed: int, count: int) -> tuple[list[Any], Any, Any]:
    """(inputs, out or None, float64 copies of the inputs)."""
    rng, dtype = np.random.default_rng(seed), DTYPES[values["dtype"]]
    given = [placed(rng.standard_normal(values["shape"]).astype(dtype), values["memory"]) for _ in range(count)]
    out: Any = None
    if values["out"] == "shifted":  # result and first input overlap, one element apart
        room = np.zeros(given[0].size + 8, dtype)
        room[: given[0].size] = given[0].reshape(-1)
        given[0], out = (room[i : i + given[0].size].reshape(values["shape"]) for i in (0, 1))
    exact = [x.astype(np.float64) for x in given]
    if values["library"] == "torch":
        given, out = [to_torch(x) for x in given], to_torch(out)
    if values["out"] == "fresh":
        out = given[0].clone() if values["library"] == "torch" else given[0].copy()
    return given, given[0] if values["out"] == "first" else out, exact


def check(got: Any, out: Any, r: Any, b: Any, values: dict[str, Any]) -> None:
    assert out is None or got is out
    assert got.shape == r.shape and (got.dtype == torch.float32) == (
        values["dtype"] == "float32" and isinstance(got, torch.Tensor)
    )
    if r.size:
        assert_within_rule(as_float64(got), r, b, dtype=values["dtype"], what=str(values))


def test_every_pair_of_factors_meets_in_some_case() -> None:
    missing = all_pairs(FACTORS) - set().union(*map(pairs_of, CASES))
    assert all({a, b} == {"memory", "out"} and "'shifted'" in (x, y) for a, x, b, y in missing)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_rms_norm_equals_its_definition(number: int) -> None:
    values = CASES[number]
    (x,), out, (exact,) = arrays(values, number, 1)
    weight = None
    r = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-5)
    if values["weight"] != "none":
        w = np.random.default_rng(99).standard_normal(exact.shape[-1]).astype(DTYPES[values["dtype"]])
        r = r * (w.astype(np.float64) + (values["weight"] == "plus one"))
        weight = to_torch(w) if values["library"] == "torch" else w
    y = gemma_cuda.rms_norm(
        x, weight, eps=1e-5, plus_one=values["weight"] == "plus one", out=out, device=values["device"]
    )
    precision = ROUNDING[values["dtype"]]
    w = None if weight is None else as_float64(weight).astype(precision.compute)
    own = exact.astype(precision.compute)
    b = reference_rms_norm(own, w, eps=1e-5, precision=precision, plus_one=values["weight"] == "plus one")
    check(y, out, r, b, values)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_geglu_equals_torch(number: int) -> None:
    values = CASES[number]
    device = None if values["dtype"] == "float32" else values["device"]
    (gate, up), out, exact = arrays(values, number, 2)
    g, u = map(torch.from_numpy, exact)
    r = (torch.nn.functional.gelu(g, approximate="tanh") * u).numpy()
    y = gemma_cuda.geglu(gate, up, out=out, device=device)
    precision = ROUNDING[values["dtype"]]
    rows = [x.reshape(-1, x.shape[-1]).astype(precision.compute) for x in exact]
    check(y, out, r, reference_geglu(*rows, precision=precision).reshape(r.shape), values)


def test_the_ops_refuse_another_shape_of_out() -> None:
    x, out = np.zeros((2, 64), np.float16), np.zeros((2, 32), np.float16)
    table = np.zeros((2, 32), np.float32)
    device = Emulator()
    for name, shape, call in (
        ("rms_norm", "[S, E] = [2, 64]", lambda: rms_norm_op(x, None, eps=1e-6, device=device, out=out)),
        ("geglu", "[N, F] = [2, 64]", lambda: geglu_op(x, x, device=device, out=out)),
        (
            "qk_norm_rope",
            "[N, H, D] = [2, 1, 64]",
            lambda: qk_norm_rope_op(x, heads=1, cos=table, sin=table, eps=1e-6, device=device, out=out),
        ),
    ):
        with pytest.raises(InputError, match=re.escape(f"{name}: out is [2, 32], expected {shape}")):
            call()


@pytest.mark.parametrize("device", [None, "emulator"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("variant", ["plain", "norm", "partial", "k_eq_v", "q alone"])
def test_qk_norm_rope_equals_its_definition(variant: str, library: str, device: str | None) -> None:
    rng, n, heads, kv_heads, d = np.random.default_rng(5), 6, 4, 2, 64
    kv_parts = {"k_eq_v": 1, "q alone": 0}.get(variant, 2)
    width = (heads + kv_parts * kv_heads) * d
    x = rng.standard_normal((n, width)).astype(DTYPES["bfloat16"])
    angles = rng.uniform(0, 6, (9, d // 2))
    positions, slots = np.array([3, 0, 8, 1, 1, 5], np.int32), np.array([7, 2, 0, 9, 4, 5], np.int32)
    options: dict[str, Any] = {"heads": heads, "eps": 1e-5, "k_eq_v": variant == "k_eq_v"}
    options["v_norm"] = variant == "norm"
    given: dict[str, Any] = {
        "x": x, "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32),
        "positions": positions,
    }  # fmt: skip
    if variant == "norm":
        given |= {name: rng.standard_normal(d).astype(DTYPES["bfloat16"]) for name in ("q_weight", "k_weight")}
        options["plus_one"] = True
    if variant == "partial":
        options["pairs"] = 8
    if kv_parts:
        given |= {name: np.full((10, kv_heads, d), 7, DTYPES["bfloat16"]) for name in ("k_cache", "v_cache")}
        given["slots"] = slots
    if library == "torch":
        given = {name: to_torch(array) for name, array in given.items()}
    q = gemma_cuda.qk_norm_rope(**given, **options, device=device)

    def turned(part: Any, weight: Any) -> Any:
        part = as_float64(part).reshape(n, -1, d)
        if weight is not None:
            part = part / np.sqrt(np.mean(part**2, -1, keepdims=True) + 1e-5) * (1 + as_float64(weight))
        table = angles[positions].copy()
        table[:, options.get("pairs", d // 2) :] = 0
        z = (part[..., : d // 2] + 1j * part[..., d // 2 :]) * np.exp(1j * table)[:, None]
        return np.concatenate([z.real, z.imag], -1)

    def near(got: Any, expected: Any) -> None:
        assert_within_rule(as_float64(got), expected, expected.astype(DTYPES["bfloat16"]), dtype="bfloat16")

    near(q, turned(x[:, : heads * d], given.get("q_weight")))
    if kv_parts:
        k = x[:, heads * d : (heads + kv_heads) * d]
        v = as_float64(k if kv_parts == 1 else x[:, (heads + kv_heads) * d :]).reshape(n, kv_heads, d)
        if variant == "norm":
            v = v / np.sqrt(np.mean(v**2, -1, keepdims=True) + 1e-5)
        k_cache, v_cache = as_float64(given["k_cache"]), as_float64(given["v_cache"])
        near(k_cache[slots], turned(k, given.get("k_weight")))
        near(v_cache[slots], v)
        untouched = np.setdiff1d(np.arange(10), slots)
        assert (k_cache[untouched] == 7).all() and (v_cache[untouched] == 7).all()
