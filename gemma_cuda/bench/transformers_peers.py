"""HuggingFace Transformers as a peer of whole prefills: the same model eager, by SDPA, and compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .peers import torch_on_gpu, why

NAMES = ("transformers eager", "transformers sdpa", "transformers compiled")
COMPILED = NAMES[-1]
"""By torch.compile, with SDPA where the model has it, as Gemma 2 has not. It takes minutes before its first time."""
Prefill = Callable[[Any], Any]


@dataclass(frozen=True)
class Peers:
    """prefills: name -> ids [S] to the last logits [V], float32 on the host. absent: name -> why it was not made."""

    prefills: dict[str, Prefill]
    absent: dict[str, str]


def of_fields(fields: dict[str, Any], wanted: Sequence[str] = NAMES, *, device: str = "cuda:0") -> Peers:
    """Those of NAMES that are wanted, for a random bfloat16 model with these fields of a config.json."""

    def load(torch: Any, transformers: Any) -> Any:
        config = transformers.AutoConfig.for_model(**fields)
        with torch.device(device):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)

    return _made(load, wanted, device)


def of_checkpoint(path: Path, wanted: Sequence[str] = NAMES, *, device: str = "cuda:0") -> Peers:
    """The same for the bfloat16 model of a directory of safetensors or a .gguf file."""

    def load(torch: Any, transformers: Any) -> Any:
        where = {} if path.is_dir() else {"gguf_file": path.name}
        directory = path if path.is_dir() else path.parent
        auto = transformers.AutoModelForCausalLM
        return auto.from_pretrained(directory, **where, dtype=torch.bfloat16, local_files_only=True).to(device)

    return _made(load, wanted, device)


def _made(load: Callable[[Any, Any], Any], wanted: Sequence[str], device: str) -> Peers:
    try:
        torch: Any = importlib.import_module("torch")
        _, _, index = device.partition("cuda:")
        if index and torch_on_gpu(int(index)) is None:
            return Peers({}, dict.fromkeys(wanted, "torch sees no GPU"))
        model = load(torch, importlib.import_module("transformers")).eval()
    except Exception as error:  # any error of two libraries and their dependencies
        return Peers({}, dict.fromkeys(wanted, why(error)))
    chosen: str | None = None

    def prefill(attention: str, forward: Any) -> Prefill:
        def run(ids: Any) -> Any:
            nonlocal chosen
            if chosen != attention:  # to choose takes time, and is no part of a prefill
                model.set_attn_implementation(attention)
                chosen = attention
            with torch.no_grad():
                inputs = torch.as_tensor(ids, device=device)[None]
                return forward(inputs, logits_to_keep=1, use_cache=True).logits[0, -1].float().cpu()

        return run

    made = dict(zip(NAMES[:2], (prefill("eager", model), prefill("sdpa", model)), strict=True))
    if COMPILED in wanted:
        made[COMPILED] = prefill(_best_attention(model), torch.compile(model))
    return Peers({name: made[name] for name in wanted}, {})


def _best_attention(model: Any) -> str:
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        return "eager"
    return "sdpa"
