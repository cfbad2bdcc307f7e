"""The launches that docs/generated/costs.md looks at: the kernels at shapes of published Gemmas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from gemma_cuda.device.protocol import Array, Device
from gemma_cuda.formats.gemma_config import GemmaConfig
from gemma_cuda.ops import attention, embed, geglu, instances, linear, logits, qk_norm_rope, rms_norm
from tests.support import compulsory
from tests.support.compulsory import Compulsory

MODELS = ("gemma-3-270m", "gemma-3-1b", "gemma-2-2b", "gemma-3-4b")
TOKENS = 256
PROMPT = 2048
WINDOW = 512
TABLE_ROWS = 8192  # of the vocabulary: ids are drawn from these, and other rows cost nothing
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Case:
    """One call of an op.

    row_bytes: of the rows that are read or written whole. run: calls it on a device and returns its compulsory cost.
    """

    kernel: str
    model: str
    shape: str
    row_bytes: int
    run: Callable[[Device], Compulsory]


def cases() -> Iterator[Case]:
    """Every case, by kernel."""
    configs = {name: instances.published()[name] for name in MODELS}
    for make in (_rms_norm, _add_norm, _qk_norm_rope, _geglu, _embed):
        for name, config in configs.items():
            yield make(name, config)
    yield from _logits(configs)
    yield from _linears(configs)
    yield from attention_cases()


def zeros(device: Device, *shape: int, dtype: Any = BF16) -> Array:
    """An input: its values change no count, but it must be initialised."""
    return device.from_host(np.zeros(shape, dtype))


def _rms_norm(name: str, config: GemmaConfig) -> Case:
    def run(device: Device) -> Compulsory:
        x, weight = zeros(device, TOKENS, config.hidden_size), zeros(device, config.hidden_size)
        y = rms_norm.rms_norm(x, weight, eps=1e-6, plus_one=True, device=device)
        return compulsory.moved([x, weight], [y])

    return Case("rms_norm", name, f"[{TOKENS}, {config.hidden_size}]", 2 * config.hidden_size, run)


def _add_norm(name: str, config: GemmaConfig) -> Case:
    def run(device: Device) -> Compulsory:
        residual, branch = (zeros(device, TOKENS, config.hidden_size) for _ in range(2))
        post, pre = (zeros(device, config.hidden_size) for _ in range(2))
        options: dict[str, Any] = {"eps": 1e-6, "plus_one": True, "device": device}
        _, normed = rms_norm.add_norm(residual, branch, post_weight=post, pre_weight=pre, **options)
        return compulsory.moved([residual, branch, post, pre], [residual, normed])

    return Case("rms_norm (add_norm)", name, f"[{TOKENS}, {config.hidden_size}]", 2 * config.hidden_size, run)


def _qk_norm_rope(name: str, config: GemmaConfig) -> Case:
    layer, heads = config.layers[0], config.num_attention_heads
    kv_heads, head_dim = layer.num_key_value_heads, layer.head_dim

    def run(device: Device) -> Compulsory:
        x = zeros(device, TOKENS, (heads + 2 * kv_heads) * head_dim)
        cos, sin = (zeros(device, TOKENS, head_dim // 2, dtype=np.float32) for _ in range(2))
        weights = [zeros(device, head_dim) for _ in range(2)] if config.has_qk_norm else []
        k, v = (device.empty((TOKENS, kv_heads, head_dim), BF16) for _ in range(2))
        q_weight, k_weight = weights or (None, None)
        q = qk_norm_rope.qk_norm_rope(
            x, heads=heads, cos=cos, sin=sin, eps=1e-6, device=device, q_weight=q_weight, k_weight=k_weight,
            plus_one=True, k_cache=k, v_cache=v,
        )  # fmt: skip
        return compulsory.moved([x, cos, sin, *weights], [q, k, v])

    shape = f"{TOKENS} tokens, H {heads}, KH {kv_heads}, D {head_dim}"
    return Case("qk_norm_rope", name, shape, 2 * head_dim, run)


def _geglu(name: str, config: GemmaConfig) -> Case:
    width = config.layers[0].intermediate_size

    def run(device: Device) -> Compulsory:
        packed = zeros(device, TOKENS, 2 * width)
        y = geglu.geglu(packed[:, :width], packed[:, width:], device=device)
        return compulsory.moved([packed], [y])

    return Case("geglu", name, f"[{TOKENS}, {width}]", 2 * width, run)


def _embed(name: str, config: GemmaConfig) -> Case:
    def run(device: Device) -> Compulsory:
        ids = np.random.default_rng(0).integers(0, TABLE_ROWS, TOKENS).astype(np.int32)
        table = zeros(device, TABLE_ROWS, config.hidden_size)
        return compulsory.embed(embed.embed(device.from_host(ids), table, scale=1.0, device=device), ids, table)

    return Case("embed", name, f"{TOKENS} tokens, E {config.hidden_size}", 2 * config.hidden_size, run)


def _logits(configs: dict[str, GemmaConfig]) -> Iterator[Case]:
    def cap(device: Device) -> Compulsory:
        z = zeros(device, 1, configs["gemma-2-2b"].vocab_size, dtype=np.float32)
        return compulsory.moved([z], [logits.softcap(z, 30.0, device=device)])

    def top(device: Device) -> Compulsory:
        values = np.random.default_rng(0).standard_normal((1, configs["gemma-3-1b"].vocab_size))
        z = device.from_host(values.astype(np.float32))
        return compulsory.moved([z], logits.top_k(z, 64, device=device))

    for kernel, name, run in (("logits (softcap)", "gemma-2-2b", cap), ("logits (top_k 64)", "gemma-3-1b", top)):
        width = configs[name].vocab_size
        yield Case(kernel, name, f"[1, {width}]", 4 * width, run)


def _linears(configs: dict[str, GemmaConfig]) -> Iterator[Case]:
    for name, config in configs.items():
        layer = config.layers[0]
        heads = config.num_attention_heads + 2 * layer.num_key_value_heads
        for rows in (16, TOKENS):
            yield _linear(name, "q, k, v", rows, heads * layer.head_dim, config.hidden_size)
        if config.hidden_size < 2048:  # those of larger models take minutes, and tell nothing else
            yield _linear(name, "gate, up", TOKENS, 2 * layer.intermediate_size, config.hidden_size)


def _linear(name: str, product: str, rows: int, columns: int, depth: int) -> Case:
    def run(device: Device) -> Compulsory:
        x, weight = zeros(device, rows, depth), zeros(device, columns, depth)
        return compulsory.linear(linear.linear(x, weight, device=device), x, weight)

    return Case("linear", name, f"{product}: [{rows}, {depth}] · [{columns}, {depth}]ᵀ", 2 * depth, run)


def attention_cases() -> Iterator[Case]:
    """One head at each head_dim and mask, whose tiles hold the most queries; then layers of models."""
    for head_dim in (64, 128, 256):
        for window in (None, WINDOW):
            yield attention_case("", head_dim, 1, 1, PROMPT, window)
    yield attention_case("gemma-3-1b", 256, 4, 1, PROMPT, WINDOW)
    yield attention_case("gemma-2-2b", 256, 8, 4, WINDOW, None, softcap=50.0)


def attention_case(
    name: str, head_dim: int, heads: int, kv_heads: int, tokens: int, window: int | None, softcap: float | None = None
) -> Case:
    """A prompt alone; window: keys that a query sees at most."""
    end = np.arange(1, tokens + 1, dtype=np.int32)
    begin = np.zeros_like(end) if window is None else np.maximum(0, end - np.int32(window))
    masks: dict[str, Any] = {"key_begin": begin, "key_end": end, "cu_seqlens": np.array([0, tokens], np.int32)}

    def run(device: Device) -> Compulsory:
        q = zeros(device, tokens, heads, head_dim)
        k, v = (zeros(device, 1, tokens, kv_heads, head_dim) for _ in range(2))
        options: dict[str, Any] = {"scale": head_dim**-0.5, "softcap": softcap, "bias": None, "device": device}
        return compulsory.attention(attention.attention(q, k, v, **options, **masks), q, k, v, **masks)

    mask = "causal" if window is None else f"window {window}"
    cap = "" if softcap is None else ", softcap"
    shape = f"S {tokens}, H {heads}, KH {kv_heads}, D {head_dim}, {mask}{cap}"
    return Case("attention", name, shape, 2 * heads * head_dim, run)
