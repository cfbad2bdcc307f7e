"""gemma-cuda: low-latency prefill of Gemma 1-4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.outputs import PrefillOutput
    from .formats.checkpoint import open_checkpoint
    from .formats.gemma_config import GemmaConfig
    from .gemma import Gemma
    from .interop.api import attention, geglu, qk_norm_rope, rms_norm
    from .model.kv_cache import KVCache
    from .text.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "Gemma", "GemmaConfig", "KVCache", "PrefillOutput", "Tokenizer", "attention", "geglu", "open_checkpoint",
    "qk_norm_rope", "rms_norm",
]  # fmt: skip

_HOME = {
    "Gemma": "gemma", "GemmaConfig": "formats.gemma_config", "KVCache": "model.kv_cache",
    "PrefillOutput": "engine.outputs", "Tokenizer": "text.tokenizer", "attention": "interop.api",
    "geglu": "interop.api", "open_checkpoint": "formats.checkpoint", "qk_norm_rope": "interop.api",
    "rms_norm": "interop.api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads a public name's module when it is first used.

    Importing the package touches neither NumPy's peers nor the disk.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'gemma_cuda' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
