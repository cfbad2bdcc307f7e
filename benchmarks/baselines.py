"""Peers, as functions of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_cuda.formats.hub import resolve


def transformers_prefills(model: str, threads: int) -> dict[str, Callable[[Any], Any]]:
    """{"eager", "sdpa"}: ids [S] -> last logits [V], float32, on `threads` threads, filling a KV cache, as ours do."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(resolve(model))
    source: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    directory = path.parent if path.is_file() else path
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **source).eval()

    def prefill(attention: str) -> Callable[[Any], Any]:
        def run(ids: Any) -> Any:
            loaded.set_attn_implementation(attention)
            with torch.no_grad():
                return loaded(torch.as_tensor(ids)[None], logits_to_keep=1, use_cache=True).logits[0, -1].numpy()

        return run

    return {name: prefill(name) for name in ("eager", "sdpa")}
