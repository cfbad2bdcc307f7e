"""KV caches to and from Transformers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import Cache, DynamicCache, PretrainedConfig

from ..arguments import shown
from ..config import ModelConfig
from ..errors import CacheError, InputError
from .kv_storage import KVStorage, LayerKV

_TORCH = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def to_dynamic_cache(cache: KVStorage, config: Any = None) -> DynamicCache:
    """A DynamicCache of the same tokens.

    With HuggingFace's text `config` its sliding layers keep w - 1 positions, without it all.
    Rows must end at the same slot (pad left, or give equal lengths): transformers keeps one length for all rows.
    """
    if not bool(np.all(cache.ends == cache.seq_length)):
        raise CacheError("to_transformers: rows end at different positions; transformers needs them padded on the left")
    if any(stored is not None and stored.first_slot for stored in cache.layers):
        raise CacheError("to_transformers: the cache was trimmed to its sliding windows; export it untrimmed")
    if config is not None and not isinstance(config, PretrainedConfig):
        raise InputError(f"to_transformers: config is {shown(config)}, expected a configuration of transformers")
    out = DynamicCache() if config is None else DynamicCache(config=config.get_text_config())
    for i, pair in enumerate(cache):
        if pair is not None:
            k, v = (
                torch.from_numpy(np.ascontiguousarray(cache.memory.to_host(x))).to(_TORCH[cache.dtype]) for x in pair
            )
            out.update(k, v, i)
    return out


def from_dynamic_cache(cache: Any, gemma: Any) -> KVStorage:
    """A copy of `cache`, a DynamicCache filled by the same model of unpadded rows, that `gemma.prefill` continues.

    Its model cannot be told from the cache: geometry is checked, the weights are the caller's word.
    """
    if not isinstance(getattr(gemma, "config", None), ModelConfig):
        raise InputError(f"from_transformers: gemma is {shown(gemma)}, expected a Gemma")
    if not isinstance(cache, Cache):
        raise CacheError(f"from_transformers: cache is {shown(cache)}, expected a cache of transformers")
    filled: Any = cache  # its layers are of several classes, of which those of attention have keys
    own = [i for i, layer in enumerate(gemma.config.layers) if layer.kv_source is None]
    if len(filled.layers) <= own[-1] or not all(filled.layers[i].is_initialized for i in own):
        raise CacheError(f"from_transformers: expected a filled cache of {gemma.config.num_hidden_layers} layers")
    length = int(cache.get_seq_length())
    layers: list[LayerKV | None] = [None] * gemma.config.num_hidden_layers
    for i in own:
        k, v = (_numpy(x) for x in (filled.layers[i].keys, filled.layers[i].values))
        first_slot = length - k.shape[1]
        window = gemma.config.layers[i].sliding_window
        if first_slot and (window is None or k.shape[1] < window - 1):
            raise CacheError(f"from_transformers: layer {i} holds {k.shape[1]} of {length} positions, too few to go on")
        layers[i] = LayerKV(k, v, first_slot)
    batch_size = next(s.k.shape[0] for s in layers if s is not None)
    out = KVStorage(
        layers=layers,
        starts=np.zeros(batch_size, np.int32),
        ends=np.full(batch_size, length, np.int32),
        fingerprint=gemma.fingerprint,
        dtype=gemma.dtype,
        sliding_windows=tuple(layer.sliding_window for layer in gemma.config.layers),
        spans=[[] for _ in range(batch_size)],
    )
    compute = np.float64 if gemma.dtype == "float64" else np.float32
    for stored in out.layers:
        if stored is not None:
            stored.k, stored.v = stored.k.astype(compute), stored.v.astype(compute)
    return out


def _numpy(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """[B, T, KH, D] of a tensor [B, KH, T, D]."""
    moved = x.detach().cpu().transpose(1, 2).contiguous()
    if moved.dtype is torch.bfloat16:
        return np.array(moved.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.array(moved.numpy())
