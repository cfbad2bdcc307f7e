"""Cases of the ops that work row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..device.protocol import Array, Device
from ..ops import embed, geglu, logits, qk_norm_rope, rms_norm
from ..precision import Precision
from ..reference.embed import embed as reference_embed
from ..reference.geglu import geglu as reference_geglu
from ..reference.qk_norm_rope import qk_norm_rope as reference_qk_norm_rope
from ..reference.rms_norm import add_norm as reference_add_norm
from ..reference.rms_norm import rms_norm as reference_rms_norm
from .case import Case, Inputs, checked_rows, judge, on_host
from .measure import BF16, noise

_EPS, _TOP_K = 1e-6, 64


def rms_norm_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    width = config.hidden_size

    def make(device: Device, seed: int) -> Inputs:
        return {"x": noise(device, seed, (tokens, width)), "weight": noise(device, seed + 1, (width,))}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        x, weight = on_host(device, given["x"], checked_rows(tokens)), device.to_host(given["weight"])
        return judge(
            on_host(device, y, checked_rows(tokens)),
            lambda p: reference_rms_norm(x.astype(p.compute), weight.astype(p.compute) + 1, eps=_EPS, precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "rms_norm", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, size + 2 * width, size, 0, make,
        lambda device, given: rms_norm.rms_norm(given["x"], given["weight"], eps=_EPS, plus_one=True, device=device),
        check,
    )  # fmt: skip


def add_norm_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    width = config.hidden_size

    def make(device: Device, seed: int) -> Inputs:
        rows = {name: noise(device, seed + i, (tokens, width)) for i, name in enumerate(("residual", "branch"))}
        weights = {name: noise(device, seed + i, (width,)) for i, name in enumerate(("post_weight", "pre_weight"), 2)}
        return {**rows, **weights, "before": on_host(device, rows["residual"], checked_rows(tokens))}

    def run(device: Device, given: Inputs) -> Array:
        arguments = {name: given[name] for name in ("residual", "branch", "post_weight", "pre_weight")}
        return rms_norm.add_norm(**arguments, eps=_EPS, plus_one=True, device=device)[1]

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        branch = on_host(device, given["branch"], checked_rows(tokens))
        post, pre = (device.to_host(given[name]) for name in ("post_weight", "pre_weight"))

        def reference(p: Precision) -> Any:
            return reference_add_norm(
                given["before"].astype(p.compute), branch.astype(p.compute), post_weight=post.astype(p.compute) + 1,
                pre_weight=pre.astype(p.compute) + 1, eps=_EPS, precision=p,
            )[1]  # fmt: skip

        return judge(on_host(device, y, checked_rows(tokens)), reference)

    size = 2 * tokens * width
    yield Case(
        "add_norm", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, 2 * size + 4 * width, 2 * size,
        0, make, run, check, in_place=True,
    )  # fmt: skip


def qk_norm_rope_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    layer, heads = config.layers[0], config.num_attention_heads
    kv_heads, dim = layer.num_key_value_heads, layer.head_dim
    columns = (heads + 2 * kv_heads) * dim

    def make(device: Device, seed: int) -> Inputs:
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, (tokens, dim // 2))
        tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
        weights = {f"{name}_weight": noise(device, seed, (dim,)) if config.has_qk_norm else None for name in "qk"}
        caches = {f"{name}_cache": device.empty((tokens, kv_heads, dim), BF16) for name in "kv"}
        placed = {name: device.from_host(table) for name, table in tables.items()}
        return {"x": noise(device, seed, (tokens, columns)), **placed, **weights, **caches}

    def run(device: Device, given: Inputs) -> Array:
        return qk_norm_rope.qk_norm_rope(**given, heads=heads, eps=_EPS, plus_one=True, device=device)

    def check(device: Device, given: Inputs, q: Array) -> str | None:
        rows = checked_rows(tokens)
        x, cos, sin = (on_host(device, given[name], rows) for name in ("x", "cos", "sin"))
        weights = {
            name: None if given[name] is None else device.to_host(given[name]) for name in ("q_weight", "k_weight")
        }

        def reference(p: Precision) -> Any:
            caches = [np.empty((len(rows), kv_heads, dim), p.compute) for _ in range(2)]
            return reference_qk_norm_rope(
                x.astype(p.compute), heads=heads, cos=cos.astype(p.compute), sin=sin.astype(p.compute), eps=_EPS,
                plus_one=True, v_norm=False, k_eq_v=False, precision=p, k_cache=caches[0], v_cache=caches[1],
                slots=np.arange(len(rows)),
                **{name: None if w is None else w.astype(p.compute) for name, w in weights.items()},
            )  # fmt: skip

        return judge(on_host(device, q, rows), reference)

    shape = f"{tokens} tokens, H {heads}, KH {kv_heads}, D {dim}"
    size = 2 * tokens * columns
    yield Case(
        "qk_norm_rope", model, shape, {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": dim},
        size + 4 * tokens * dim, size, 0, make, run, check,
    )  # fmt: skip


def geglu_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    width = config.layers[0].intermediate_size

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        rows = on_host(device, given["x"], checked_rows(tokens))
        gate, up = rows[:, :width], rows[:, width:]
        return judge(
            on_host(device, y, checked_rows(tokens)),
            lambda p: reference_geglu(gate.astype(p.compute), up.astype(p.compute), precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "geglu", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, 2 * size, size, 0,
        lambda device, seed: {"x": noise(device, seed, (tokens, 2 * width))},
        lambda device, given: geglu.geglu(given["x"][:, :width], given["x"][:, width:], device=device), check,
    )  # fmt: skip


def embed_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    width, scale = config.hidden_size, config.hidden_size**0.5

    def make(device: Device, seed: int) -> Inputs:
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, tokens).astype(np.int32)
        return {"ids": device.from_host(ids), "table": noise(device, seed, (config.vocab_size, width)), "on_host": ids}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        rows = checked_rows(tokens)
        used = on_host(device, given["table"], given["on_host"][rows])
        ids = np.arange(len(rows))
        return judge(
            on_host(device, y, rows),
            lambda p: reference_embed(ids, used.astype(p.compute), scale=scale, precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "embed", model, f"{tokens} tokens, E {width}", {"tokens": tokens, "width": width}, size + 4 * tokens, size, 0,
        make, lambda device, given: embed.embed(given["ids"], given["table"], scale=scale, device=device), check,
    )  # fmt: skip


def softcap_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    cap, width = config.final_logit_softcapping, config.vocab_size
    if cap is None or tokens > 1:
        return

    def make(device: Device, seed: int) -> Inputs:
        z = noise(device, seed, (1, width), dtype=np.float32, scale=20.0)
        return {"z": z, "before": device.to_host(z).copy()}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        def reference(p: Precision) -> Any:
            return cap * np.tanh(given["before"].astype(p.compute) / p.compute.type(cap))

        return judge(device.to_host(y), reference, softcap=True, dtype="float32")

    yield Case(
        "softcap", model, f"[1, {width}]", {"width": width}, 4 * width, 4 * width, 0, make,
        lambda device, given: logits.softcap(given["z"], cap, device=device), check, in_place=True,
    )  # fmt: skip


def top_k_cases(model: str, config: ModelConfig, tokens: int) -> Iterator[Case]:
    width = config.vocab_size
    if tokens > 1:
        return

    def check(device: Device, given: Inputs, values: Array) -> str | None:
        expected = np.sort(device.to_host(given["z"]))[:, ::-1][:, :_TOP_K]
        return None if np.array_equal(device.to_host(values), expected) else "not the largest"

    yield Case(
        "top_k", model, f"{_TOP_K} of [1, {width}]", {"width": width, "k": _TOP_K}, 4 * width, 8 * _TOP_K, 0,
        lambda device, seed: {"z": noise(device, seed, (1, width), dtype=np.float32)},
        lambda device, given: logits.top_k(given["z"], _TOP_K, device=device)[0], check,
    )  # fmt: skip
