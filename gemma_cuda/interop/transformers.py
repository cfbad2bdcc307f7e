"""KV caches to and from transformers, and `register()` for `attn_implementation="gemma_cuda"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model.kv_cache import KVCache
from .transformers_attention import register

if TYPE_CHECKING:
    from transformers import DynamicCache

    from ..gemma import Gemma

__all__ = ["cache_from_transformers", "cache_to_transformers", "register"]


def cache_to_transformers(cache: KVCache, config: Any = None) -> DynamicCache:
    """`KVCache.to_transformers`."""
    return cache.to_transformers(config)


def cache_from_transformers(cache: Any, gemma: Gemma) -> KVCache:
    """`KVCache.from_transformers`."""
    return KVCache.from_transformers(cache, gemma)
