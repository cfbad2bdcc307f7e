"""Cases of the ops for tensor cores: products and attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..device.protocol import Array, Device
from ..model.masks import Int32
from ..ops import attention, linear
from ..ops.attention_plan import HEAD_DIMS, plan_attention
from ..precision import Precision
from ..reference.attention import attention as reference_attention
from ..reference.linear import linear as reference_linear
from ..reference.linear import linear_geglu as reference_linear_geglu
from .case import Case, Inputs, checked_rows, judge, on_host
from .measure import noise

FA3 = "fa3"
_FA3_TOKENS, _FA3_LENGTHS, _FA3_WIDTH = 16384, (512, 1024, 2048, 4096, 8192, 16384), 2048
_CHECKED_COLUMNS = 256


def _products(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name -> [N, K] of a layer's weights."""
    layer, heads = config.layers[0], config.num_attention_heads
    width, inner = config.hidden_size, heads * layer.head_dim
    return {
        "q, k, v": ((heads + 2 * layer.num_key_value_heads) * layer.head_dim, width),
        "o": (width, inner),
        "gate, up": (2 * layer.intermediate_size, width),
        "down": (width, layer.intermediate_size),
    }


def linear_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    for name, (columns, depth) in _products(config).items():
        yield _product(model, name, tokens, columns, depth)


def _product(model: str, name: str, tokens: int, columns: int, depth: int) -> Case:
    def check(device: Device, given: Inputs, y: Array) -> str | None:
        first = max(columns - _CHECKED_COLUMNS, 0)
        x, weight = on_host(device, given["x"], checked_rows(tokens)), device.to_host(given["weight"][first:])
        rows = on_host(device, y, checked_rows(tokens))
        if np.isnan(rows.astype(np.float32)).any():
            return "NaN"
        return judge(
            rows[:, first:],
            lambda p: reference_linear(x.astype(p.compute), weight.astype(p.compute), precision=p),
        )

    def run(device: Device, given: Inputs) -> Array:
        return linear.linear(given["x"], given["weight"], counters=given["counters"], device=device)

    return Case(
        "linear", model, f"{name}: [{tokens}, {depth}] · [{columns}, {depth}]ᵀ",
        {"tokens": tokens, "columns": columns, "depth": depth}, 2 * depth * (tokens + columns), 2 * tokens * columns,
        2.0 * tokens * columns * depth, _product_inputs(tokens, columns, depth), run, check, by_tensor_cores=True,
    )  # fmt: skip


def _product_inputs(tokens: int, columns: int, depth: int) -> Callable[[Device, int], Inputs]:
    def make(device: Device, seed: int) -> Inputs:
        return {
            "x": noise(device, seed, (tokens, depth)),
            "weight": noise(device, seed + 1, (columns, depth), scale=depth**-0.5),
            "counters": linear.split_counters(device),
        }

    return make


def linear_geglu_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    columns, depth = _products(config)["gate, up"]
    half = columns // 2

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        first = max(half - _CHECKED_COLUMNS, 0)
        x, rows = (on_host(device, array, checked_rows(tokens)) for array in (given["x"], y))
        parts = [device.to_host(given["weight"][start + first : start + half]) for start in (0, half)]
        weight = np.concatenate(parts)
        if np.isnan(rows.astype(np.float32)).any():
            return "NaN"
        return judge(
            rows[:, first:],
            lambda p: reference_linear_geglu(x.astype(p.compute), weight.astype(p.compute), precision=p),
        )

    def run(device: Device, given: Inputs) -> Array:
        return linear.linear_geglu(given["x"], given["weight"], counters=given["counters"], device=device)

    yield Case(
        "linear_geglu", model, f"[{tokens}, {depth}] · [{columns}, {depth}]ᵀ",
        {"tokens": tokens, "columns": columns, "depth": depth}, 2 * depth * (tokens + columns), 2 * tokens * half,
        2.0 * tokens * columns * depth, _product_inputs(tokens, columns, depth), run, check, by_tensor_cores=True,
    )  # fmt: skip


def attention_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    """A local and a global layer, where a model has both, and attention has their head_dim."""
    for layer in {layer.layer_type: layer for layer in config.layers}.values():
        if layer.head_dim not in HEAD_DIMS:
            continue
        params = {
            "batch": 1, "tokens": tokens, "heads": config.num_attention_heads, "kv_heads": layer.num_key_value_heads,
            "head_dim": layer.head_dim, "window": layer.sliding_window, "causal": True,
            "softcap": config.attn_logit_softcapping, "scale": config.scale,
        }  # fmt: skip
        yield _attention_case(model, params)


def fa3_cases() -> list[Case]:
    found = []
    for head_dim in (128, 256):
        for causal in (False, True):
            for length in _FA3_LENGTHS:
                heads, batch = _FA3_WIDTH // head_dim, _FA3_TOKENS // length
                params = {
                    "batch": batch, "tokens": length, "heads": heads, "kv_heads": heads, "head_dim": head_dim,
                    "window": None, "causal": causal, "softcap": None, "scale": head_dim**-0.5,
                }  # fmt: skip
                found.append(_attention_case(FA3, params))
    return found


def ranges(params: dict[str, Any]) -> tuple[Int32, Int32]:
    """(key_begin, key_end) [tokens] of each sequence of an attention case."""
    position = np.arange(params["tokens"], dtype=np.int32)
    end = position + np.int32(1) if params["causal"] else np.full_like(position, params["tokens"])
    begin = np.zeros_like(end) if params["window"] is None else np.maximum(0, end - np.int32(params["window"]))
    return begin, end


def _attention_case(model: str, params: dict[str, Any]) -> Case:
    batch, tokens, heads, kv_heads, dim = (params[n] for n in ("batch", "tokens", "heads", "kv_heads", "head_dim"))
    begin, end = ranges(params)
    lengths = np.arange(batch + 1, dtype=np.int32) * np.int32(tokens)
    options = {"scale": params["scale"], "softcap": params["softcap"], "bias": None}

    def make(device: Device, seed: int) -> Inputs:
        q = noise(device, seed, (batch * tokens, heads, dim))
        k, v = (noise(device, seed + i, (batch, tokens, kv_heads, dim)) for i in (1, 2))
        plan = plan_attention(
            np.tile(begin, batch), np.tile(end, batch), lengths, group=heads // kv_heads, head_dim=dim,
            is_plain=params["softcap"] is None, device=device,
        )  # fmt: skip
        return {"q": q, "k": k, "v": v, "plan": plan}

    def run(device: Device, given: Inputs) -> Array:
        return attention.attend(given["plan"], given["q"], given["k"], given["v"], device=device, **options)

    def check(device: Device, given: Inputs, o: Array) -> str | None:
        rows = checked_rows(tokens)
        last = (batch - 1) * tokens  # of the last sequence
        q, y = (on_host(device, array, [last + i for i in rows]) for array in (given["q"], o))
        k, v = (device.to_host(given[name][batch - 1 :]) for name in "kv")

        def reference(p: Precision) -> Any:
            return reference_attention(
                *(array.astype(p.compute) for array in (q, k, v)), key_begin=begin[rows], key_end=end[rows],
                cu_seqlens=np.array([0, len(rows)], np.int32), precision=p, **options,
            )  # fmt: skip

        return judge(y, reference, softcap=params["softcap"] is not None)

    pairs = batch * int((end - begin).astype(np.int64).sum())
    mask = "causal" if params["causal"] else "full"
    mask = mask if params["window"] is None else f"window {params['window']}"
    shape = f"B {batch}, S {tokens}, H {heads}, KH {kv_heads}, D {dim}, {mask}"
    return Case(
        "attention", model, shape + ("" if params["softcap"] is None else ", softcap"), params,
        2 * batch * tokens * dim * (heads + 2 * kv_heads), 2 * batch * tokens * dim * heads,
        4.0 * dim * heads * pairs, make, run, check, by_tensor_cores=True,
    )  # fmt: skip
