"""What is timed: one call of an op at the sizes of a published Gemma, or at those of FlashAttention-3's plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import GemmaConfig
from ..device.protocol import Array, Device
from ..errors import InputError
from ..masks import Int32
from ..ops import attention, embed, geglu, linear, logits, qk_norm_rope, rms_norm
from ..ops.attention_plan import plan_attention
from ..ops.instances import published
from ..reference.attention import attention as reference_attention
from ..reference.embed import embed as reference_embed
from ..reference.geglu import geglu as reference_geglu
from ..reference.linear import linear as reference_linear
from ..reference.linear import linear_geglu as reference_linear_geglu
from ..reference.precision import BFLOAT16, FLOAT32, FLOAT64, Precision
from ..reference.qk_norm_rope import qk_norm_rope as reference_qk_norm_rope
from ..reference.rms_norm import add_norm as reference_add_norm
from ..reference.rms_norm import rms_norm as reference_rms_norm
from .measure import BF16, noise
from .rule import violation

OPS = ("rms_norm", "add_norm", "qk_norm_rope", "geglu", "embed", "linear", "linear_geglu", "attention", "softcap",
       "top_k")  # fmt: skip
TOKENS = (1, 16, 128, 512, 2048, 8192)
FA3 = "fa3"
DEFAULT_MODELS = ("gemma-3-270m", "gemma-2-2b", "gemma-3-4b", "gemma-3-27b")
_FA3_TOKENS, _FA3_LENGTHS, _FA3_WIDTH = 16384, (512, 1024, 2048, 4096, 8192, 16384), 2048
_EPS, _TOP_K, _CHECKED_ROWS, _CHECKED_COLUMNS = 1e-6, 64, 6, 256

Inputs = dict[str, Any]
Check = Callable[[Device, Inputs, Array], str | None]


@dataclass(frozen=True)
class Case:
    """One call. read_bytes, written_bytes: of each array once; flops: two for a multiplication and an addition.

    make: inputs on a device from a seed. run: the op. check: what is wrong with its output, in words. by_tensor_cores:
    the ceiling is the product's rate or, where bytes take longer, the copy's. in_place: an input is an output, too.
    params: sizes as peers need them.
    """

    op: str
    model: str
    shape: str
    params: dict[str, Any]
    read_bytes: int
    written_bytes: int
    flops: float
    make: Callable[[Device, int], Inputs]
    run: Callable[[Device, Inputs], Array]
    check: Check
    by_tensor_cores: bool = False
    in_place: bool = False

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def default() -> list[Case]:
    """The most telling shapes first: whole layers of a small and a large model, then FlashAttention-3's."""
    ops = ("attention", "linear", "linear_geglu", "rms_norm", "add_norm", "qk_norm_rope", "geglu", "embed", "softcap",
           "top_k")  # fmt: skip
    first = chosen(ops, ("gemma-2-2b",), (1, 128, 2048))
    return [*first, *chosen(["attention"], [FA3], TOKENS), *chosen(ops, DEFAULT_MODELS, TOKENS)]


def chosen(ops: Sequence[str], models: Sequence[str], tokens: Sequence[int]) -> list[Case]:
    """The cases of these ops, models (published sizes, or fa3) and token counts. Raises InputError for other names."""
    known = published()
    for name in models:
        if name != FA3 and name not in known:
            raise InputError(f"{name!r} is no published size; there are {', '.join(known)} and {FA3}")
    found: list[Case] = []
    for op in ops:
        for model in models:
            if model == FA3:
                found += _fa3() if op == "attention" else []
                continue
            for count in tokens:
                found += _MAKERS[op](model, known[model], count)
    return found


def _rows(count: int, seed: int = 0) -> list[int]:
    """Rows that are checked: the first, the last, some between."""
    drawn = np.random.default_rng(seed).integers(0, count, _CHECKED_ROWS - 2)
    return sorted({0, count - 1, *(int(i) for i in drawn)})


def _host(device: Device, array: Array, rows: Iterable[int]) -> Any:
    return np.concatenate([device.to_host(array[i : i + 1]) for i in rows])


def _judge(
    y: Any, reference: Callable[[Precision], Any], *, softcap: bool = False, dtype: str = "bfloat16"
) -> str | None:
    rounded = FLOAT32 if dtype == "float32" else BFLOAT16
    return violation(y, reference(FLOAT64), reference(rounded), dtype=dtype, softcap=softcap)


def _rms_norm(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    width = config.hidden_size

    def make(device: Device, seed: int) -> Inputs:
        return {"x": noise(device, seed, (tokens, width)), "weight": noise(device, seed + 1, (width,))}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        x, weight = _host(device, given["x"], _rows(tokens)), device.to_host(given["weight"])
        return _judge(
            _host(device, y, _rows(tokens)),
            lambda p: reference_rms_norm(x.astype(p.compute), weight.astype(p.compute) + 1, eps=_EPS, precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "rms_norm", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, size + 2 * width, size, 0, make,
        lambda device, given: rms_norm.rms_norm(given["x"], given["weight"], eps=_EPS, plus_one=True, device=device),
        check,
    )  # fmt: skip


def _add_norm(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    width = config.hidden_size

    def make(device: Device, seed: int) -> Inputs:
        rows = {name: noise(device, seed + i, (tokens, width)) for i, name in enumerate(("residual", "branch"))}
        weights = {name: noise(device, seed + i, (width,)) for i, name in enumerate(("post_weight", "pre_weight"), 2)}
        return {**rows, **weights, "before": _host(device, rows["residual"], _rows(tokens))}

    def run(device: Device, given: Inputs) -> Array:
        arguments = {name: given[name] for name in ("residual", "branch", "post_weight", "pre_weight")}
        return rms_norm.add_norm(**arguments, eps=_EPS, plus_one=True, device=device)[1]

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        branch = _host(device, given["branch"], _rows(tokens))
        post, pre = (device.to_host(given[name]) for name in ("post_weight", "pre_weight"))

        def reference(p: Precision) -> Any:
            return reference_add_norm(
                given["before"].astype(p.compute), branch.astype(p.compute), post_weight=post.astype(p.compute) + 1,
                pre_weight=pre.astype(p.compute) + 1, eps=_EPS, precision=p,
            )[1]  # fmt: skip

        return _judge(_host(device, y, _rows(tokens)), reference)

    size = 2 * tokens * width
    yield Case(
        "add_norm", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, 2 * size + 4 * width, 2 * size,
        0, make, run, check, in_place=True,
    )  # fmt: skip


def _qk_norm_rope(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
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
        rows = _rows(tokens)
        x, cos, sin = (_host(device, given[name], rows) for name in ("x", "cos", "sin"))
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

        return _judge(_host(device, q, rows), reference)

    shape = f"{tokens} tokens, H {heads}, KH {kv_heads}, D {dim}"
    size = 2 * tokens * columns
    yield Case(
        "qk_norm_rope", model, shape, {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": dim},
        size + 4 * tokens * dim, size, 0, make, run, check,
    )  # fmt: skip


def _geglu(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    width = config.layers[0].intermediate_size

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        rows = _host(device, given["x"], _rows(tokens))
        gate, up = rows[:, :width], rows[:, width:]
        return _judge(
            _host(device, y, _rows(tokens)),
            lambda p: reference_geglu(gate.astype(p.compute), up.astype(p.compute), precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "geglu", model, f"[{tokens}, {width}]", {"tokens": tokens, "width": width}, 2 * size, size, 0,
        lambda device, seed: {"x": noise(device, seed, (tokens, 2 * width))},
        lambda device, given: geglu.geglu(given["x"][:, :width], given["x"][:, width:], device=device), check,
    )  # fmt: skip


def _embed(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    width, scale = config.hidden_size, config.hidden_size**0.5

    def make(device: Device, seed: int) -> Inputs:
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, tokens).astype(np.int32)
        return {"ids": device.from_host(ids), "table": noise(device, seed, (config.vocab_size, width)), "on_host": ids}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        rows = _rows(tokens)
        used = _host(device, given["table"], given["on_host"][rows])
        ids = np.arange(len(rows))
        return _judge(
            _host(device, y, rows),
            lambda p: reference_embed(ids, used.astype(p.compute), scale=scale, precision=p),
        )

    size = 2 * tokens * width
    yield Case(
        "embed", model, f"{tokens} tokens, E {width}", {"tokens": tokens, "width": width}, size + 4 * tokens, size, 0,
        make, lambda device, given: embed.embed(given["ids"], given["table"], scale=scale, device=device), check,
    )  # fmt: skip


def _products(config: GemmaConfig) -> dict[str, tuple[int, int]]:
    """Name -> [N, K] of a layer's weights."""
    layer, heads = config.layers[0], config.num_attention_heads
    width, inner = config.hidden_size, heads * layer.head_dim
    return {
        "q, k, v": ((heads + 2 * layer.num_key_value_heads) * layer.head_dim, width),
        "o": (width, inner),
        "gate, up": (2 * layer.intermediate_size, width),
        "down": (width, layer.intermediate_size),
    }


def _linear(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    for name, (columns, depth) in _products(config).items():
        yield _product(model, name, tokens, columns, depth)


def _product(model: str, name: str, tokens: int, columns: int, depth: int) -> Case:
    def check(device: Device, given: Inputs, y: Array) -> str | None:
        first = max(columns - _CHECKED_COLUMNS, 0)
        x, weight = _host(device, given["x"], _rows(tokens)), device.to_host(given["weight"][first:])
        rows = _host(device, y, _rows(tokens))
        if np.isnan(rows.astype(np.float32)).any():
            return "NaN"
        return _judge(
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


def _linear_geglu(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    columns, depth = _products(config)["gate, up"]
    half = columns // 2

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        first = max(half - _CHECKED_COLUMNS, 0)
        x, rows = (_host(device, array, _rows(tokens)) for array in (given["x"], y))
        parts = [device.to_host(given["weight"][start + first : start + half]) for start in (0, half)]
        weight = np.concatenate(parts)
        if np.isnan(rows.astype(np.float32)).any():
            return "NaN"
        return _judge(
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


def _attention(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    """A local and a global layer, where a model has both."""
    for layer in {layer.layer_type: layer for layer in config.layers}.values():
        params = {
            "batch": 1, "tokens": tokens, "heads": config.num_attention_heads, "kv_heads": layer.num_key_value_heads,
            "head_dim": layer.head_dim, "window": layer.sliding_window, "causal": True,
            "softcap": config.attn_logit_softcapping, "scale": config.scale,
        }  # fmt: skip
        yield _attention_case(model, params)


def _fa3() -> list[Case]:
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
        rows = _rows(tokens)
        last = (batch - 1) * tokens  # of the last sequence
        q, y = (_host(device, array, [last + i for i in rows]) for array in (given["q"], o))
        k, v = (device.to_host(given[name][batch - 1 :]) for name in "kv")

        def reference(p: Precision) -> Any:
            return reference_attention(
                *(array.astype(p.compute) for array in (q, k, v)), key_begin=begin[rows], key_end=end[rows],
                cu_seqlens=np.array([0, len(rows)], np.int32), precision=p, **options,
            )  # fmt: skip

        return _judge(y, reference, softcap=params["softcap"] is not None)

    pairs = batch * int((end - begin).astype(np.int64).sum())
    mask = "causal" if params["causal"] else "full"
    mask = mask if params["window"] is None else f"window {params['window']}"
    shape = f"B {batch}, S {tokens}, H {heads}, KH {kv_heads}, D {dim}, {mask}"
    return Case(
        "attention", model, shape + ("" if params["softcap"] is None else ", softcap"), params,
        2 * batch * tokens * dim * (heads + 2 * kv_heads), 2 * batch * tokens * dim * heads,
        4.0 * dim * heads * pairs, make, run, check, by_tensor_cores=True,
    )  # fmt: skip


def _softcap(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
    cap, width = config.final_logit_softcapping, config.vocab_size
    if cap is None or tokens > 1:
        return

    def make(device: Device, seed: int) -> Inputs:
        z = noise(device, seed, (1, width), dtype=np.float32, scale=20.0)
        return {"z": z, "before": device.to_host(z).copy()}

    def check(device: Device, given: Inputs, y: Array) -> str | None:
        def reference(p: Precision) -> Any:
            return cap * np.tanh(given["before"].astype(p.compute) / p.compute.type(cap))

        return _judge(device.to_host(y), reference, softcap=True, dtype="float32")

    yield Case(
        "softcap", model, f"[1, {width}]", {"width": width}, 4 * width, 4 * width, 0, make,
        lambda device, given: logits.softcap(given["z"], cap, device=device), check, in_place=True,
    )  # fmt: skip


def _top_k(model: str, config: GemmaConfig, tokens: int) -> Iterator[Case]:
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


_MAKERS: dict[str, Callable[[str, GemmaConfig, int], Iterator[Case]]] = {
    "rms_norm": _rms_norm, "add_norm": _add_norm, "qk_norm_rope": _qk_norm_rope, "geglu": _geglu, "embed": _embed,
    "linear": _linear, "linear_geglu": _linear_geglu, "attention": _attention, "softcap": _softcap, "top_k": _top_k,
}  # fmt: skip
