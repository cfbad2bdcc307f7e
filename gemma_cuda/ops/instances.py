"""Which kernel instances a model needs: what its ops launch, asked of the ops themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..config import LayerConfig, ModelConfig
from ..device.dry_run import DryRunDevice, Launch
from ..formats.gemma_config import GemmaConfig
from . import attention, attention_plan, checks, embed, geglu, linear, logits, qk_norm_rope, rms_norm

DTYPES = tuple(checks.CPP_TYPES)
_ROWS = (1, 32, 64, 256, 4096)  # tokens of a launch, one number for each choice that an op makes by them
_QUERIES_AND_KEYS = (*((rows, rows) for rows in _ROWS), (1, 4096))  # the last: a decoding step, split along its keys


def launches(
    configs: Iterable[ModelConfig],
    dtypes: Iterable[str] = DTYPES,
    *,
    shared_bytes: int,
    attn_bias: Iterable[str] = (),
) -> list[Launch]:
    """Every distinct launch of a prefill of these models on a GPU whose blocks have that much shared memory, sorted.

    attn_bias: dtypes of an attention bias that will be given; attention without one is always among the launches.
    Of launches that differ in shared memory only, the largest. Arrays lie as the package allocates them. In float32
    there are kernels for the norms only. Not among them: experts.
    """
    recorder = DryRunDevice(shared_bytes)
    wanted, biases = [_dtype(name) for name in dtypes], [None, *map(_dtype, attn_bias)]
    for config in configs:
        for dtype in wanted:
            _norms(config, dtype, recorder)
            if dtype.itemsize == 2:
                _ends(config, dtype, recorder)
                for layer in set(config.layers):
                    _layer(config, layer, dtype, recorder)
                    for bias in biases:
                        _attention(config, layer, dtype, bias, recorder)
    largest: dict[str, Launch] = {}
    for launch in recorder.launches:
        known = largest.get(launch.instance)
        if known is None or known.shared_bytes < launch.shared_bytes:
            largest[launch.instance] = launch
    return [largest[instance] for instance in sorted(largest)]


def published() -> dict[str, GemmaConfig]:
    """Name -> configuration of each size of each published Gemma."""
    return {name: GemmaConfig.from_dict(fields, source=name) for name, fields in _PUBLISHED.items()}


def text_fields(name: str) -> dict[str, Any]:
    """What config.json says of a published size's text model, as HuggingFace's class of its model_type takes it."""
    fields = _PUBLISHED[name]
    text: dict[str, Any] = fields.get("text_config", fields)
    return text


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)

    return np.dtype(name)


def _norms(config: ModelConfig, dtype: np.dtype[Any], device: DryRunDevice) -> None:
    eps, width = config.rms_norm_eps, config.hidden_size
    rows, weight = device.empty((1, width), dtype), device.empty((width,), dtype)
    for plus_one in {False, config.norm_plus_one}:  # GGUF files hold 1 + w, of every model
        options: dict[str, Any] = {"eps": eps, "device": device, "plus_one": plus_one}
        rms_norm.rms_norm(rows, weight, **options)
        for pre_weight in (weight, None):
            post_weight = weight if config.post_norms else None
            rms_norm.add_norm(rows, rows, post_weight=post_weight, pre_weight=pre_weight, **options)
        if config.hidden_size_per_layer_input:
            narrow = config.hidden_size_per_layer_input
            rms_norm.rms_norm(device.empty((1, narrow), dtype), device.empty((narrow,), dtype), **options)
    if config.vision_hidden_size is not None:  # the projector: with a weight in Gemma 3, without one in Gemma 4
        vision = config.vision_hidden_size
        norm = device.empty((vision,), dtype) if config.generation == 3 else None
        plus_one = config.norm_plus_one
        rms_norm.rms_norm(device.empty((1, vision), dtype), norm, eps=eps, device=device, plus_one=plus_one)


def _ends(config: ModelConfig, dtype: np.dtype[Any], device: DryRunDevice) -> None:
    """Embedding and logits."""
    table = device.empty((config.vocab_size, config.hidden_size), dtype)
    embed.embed(np.zeros(1, np.int32), table, scale=1.0, device=device)
    for rows in _ROWS:
        hidden, cap = device.empty((rows, config.hidden_size), dtype), config.final_logit_softcapping
        z = linear.linear(hidden, table, device=device, out_dtype=np.dtype(np.float32))
        if cap is not None:
            logits.softcap(z, cap, device=device)
            linear.linear(hidden, table, device=device, out_dtype=np.dtype(np.float32), softcap=cap)
        logits.argmax(z, device=device)


def _layer(config: ModelConfig, layer: LayerConfig, dtype: np.dtype[Any], device: DryRunDevice) -> None:
    heads, kv_heads, head_dim = config.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    kv_parts = 0 if layer.kv_source is not None else 1 if layer.attention_k_eq_v else 2
    width, mlp, per_layer = config.hidden_size, layer.intermediate_size, config.hidden_size_per_layer_input
    products = [
        ((heads + kv_parts * kv_heads) * head_dim, width), (width, heads * head_dim), (2 * mlp, width), (width, mlp)
    ]  # fmt: skip
    if kv_parts:
        products += [(heads * head_dim, width), (kv_parts * kv_heads * head_dim, width)]
    if per_layer:
        products += [(per_layer, width), (width, per_layer)]
    for rows in _ROWS:
        for columns, depth in products:
            linear.linear(device.empty((rows, depth), dtype), device.empty((columns, depth), dtype), device=device)
        hidden = device.empty((rows, width), dtype)
        linear.linear_geglu(hidden, device.empty((2 * mlp, width), dtype), device=device)
        if not config.post_norms:
            for depth in (heads * head_dim, mlp):
                x = device.empty((rows, depth), dtype)
                linear.linear(x, device.empty((width, depth), dtype), device=device, residual=hidden)
        gate_up = device.empty((rows, 2 * mlp), dtype)
        geglu.geglu(gate_up[:, :mlp], gate_up[:, mlp:], device=device)
        if per_layer:
            inputs = device.empty((rows, len(config.layers), per_layer), dtype)
            geglu.geglu(device.empty((rows, per_layer), dtype), inputs[:, 0], device=device)
    _heads(config, layer, kv_parts, dtype, device)


def _attention(
    config: ModelConfig, layer: LayerConfig, dtype: np.dtype[Any], bias: np.dtype[Any] | None, device: DryRunDevice
) -> None:
    if layer.head_dim not in attention_plan.HEAD_DIMS:
        return
    for queries, keys in _QUERIES_AND_KEYS:
        cache = device.empty((1, keys, layer.num_key_value_heads, layer.head_dim), dtype)
        attention.attention(
            device.empty((queries, config.num_attention_heads, layer.head_dim), dtype), cache, cache,
            key_begin=np.zeros(queries, np.int32), key_end=np.arange(keys - queries + 1, keys + 1, dtype=np.int32),
            cu_seqlens=np.array([0, queries], np.int32), scale=config.scale, softcap=config.attn_logit_softcapping,
            bias=None if bias is None else device.empty((1, 1, queries, keys), bias), device=device,
        )  # fmt: skip


def _heads(config: ModelConfig, layer: LayerConfig, kv_parts: int, dtype: np.dtype[Any], device: DryRunDevice) -> None:
    """Norms and rotation of q, k and v."""
    heads, head_dim = config.num_attention_heads, layer.head_dim
    weight = device.empty((head_dim,), dtype) if config.has_qk_norm else None
    table = device.empty((1, head_dim // 2), np.float32)
    cache = device.empty((1, layer.num_key_value_heads, head_dim), dtype) if kv_parts else None
    columns = (heads + kv_parts * layer.num_key_value_heads) * head_dim
    for plus_one in {False, config.norm_plus_one}:
        qk_norm_rope.qk_norm_rope(
            device.empty((1, columns), dtype), heads=heads, cos=table, sin=table, eps=config.rms_norm_eps,
            device=device, q_weight=weight, k_weight=weight if kv_parts else None, plus_one=plus_one,
            v_norm=config.generation == 4, k_cache=cache, v_cache=cache, k_eq_v=kv_parts == 1,
        )  # fmt: skip


def _fields(
    model_type: str, layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    text = {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return text | more


def _with_vision(model_type: str, text: dict[str, Any], vision_hidden_size: int) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": text, "vision_config": {"hidden_size": vision_hidden_size}}


# What decides an instance or a time: sizes, heads, windows. The rest is what ModelConfig takes for granted.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma-2b": _fields("gemma", 18, 2048, 16384, 8, 1),
    "gemma-7b": _fields("gemma", 28, 3072, 24576, 16, 16),
    "gemma-2-2b": _fields("gemma2", 26, 2304, 9216, 8, 4),
    "gemma-2-9b": _fields("gemma2", 42, 3584, 14336, 16, 8),
    "gemma-2-27b": _fields("gemma2", 46, 4608, 36864, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    "gemma-3-270m": _fields("gemma3_text", 18, 640, 2048, 4, 1, sliding_window=512),
    "gemma-3-1b": _fields("gemma3_text", 26, 1152, 6912, 4, 1, sliding_window=512),
    "embeddinggemma-300m": _fields("gemma3_text", 24, 768, 1152, 3, 1, sliding_window=512),
    "gemma-3-4b": _with_vision("gemma3", _fields("gemma3_text", 34, 2560, 10240, 8, 4, sliding_window=1024), 1152),
    "gemma-3-12b": _with_vision("gemma3", _fields("gemma3_text", 48, 3840, 15360, 16, 8, sliding_window=1024), 1152),
    "gemma-3-27b": _with_vision(
        "gemma3", _fields("gemma3_text", 62, 5376, 21504, 32, 16, head_dim=128, sliding_window=1024), 1152
    ),
    "gemma-4-e2b": _with_vision("gemma4", _fields("gemma4_text", 35, 1536, 6144, 8, 1), 768),
    "gemma-4-e4b": _with_vision("gemma4", _fields("gemma4_text", 42, 2560, 10240, 8, 2), 768),
    "gemma-4-12b": _with_vision("gemma4_unified", _fields("gemma4_unified_text", 48, 3840, 15360, 16, 8), 1152),
    "gemma-4-26b-a4b": _with_vision(
        "gemma4", _fields("gemma4_text", 30, 2816, 2112, 16, 8, hidden_size_per_layer_input=0), 1152
    ),
    "gemma-4-31b": _with_vision(
        "gemma4", _fields("gemma4_text", 60, 5376, 21504, 32, 16, hidden_size_per_layer_input=0), 1152
    ),
}
