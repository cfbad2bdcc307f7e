"""The timed cases: ops at the sizes of published Gemmas, or at those of FlashAttention-3's plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..config import ModelConfig
from ..errors import InputError
from ..ops.attention_plan import HEAD_DIMS
from ..ops.instances import published
from .case import Case
from .matrix_cases import FA3, attention_cases, fa3_cases, linear_cases, linear_geglu_cases
from .row_cases import (
    add_norm_cases,
    embed_cases,
    geglu_cases,
    qk_norm_rope_cases,
    rms_norm_cases,
    softcap_cases,
    top_k_cases,
)

TOKENS = (1, 16, 128, 512, 2048, 8192, 16384)
DEFAULT_MODELS = ("gemma-3-270m", "gemma-2-2b", "gemma-3-4b", "gemma-3-27b")


def default() -> list[Case]:
    """The most telling shapes first: whole layers of a small and a large model, then FlashAttention-3's."""
    ops = ("attention", "linear", "linear_geglu", "rms_norm", "add_norm", "qk_norm_rope", "geglu", "embed", "softcap",
           "top_k")  # fmt: skip
    first = chosen(ops, ("gemma-2-2b",), (1, 128, 2048))
    found = [*first, *chosen(["attention"], [FA3], TOKENS), *chosen(ops, DEFAULT_MODELS, TOKENS)]
    return list({(case.op, case.model, case.shape): case for case in found}.values())


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
                found += fa3_cases() if op == "attention" else []
                continue
            for count in tokens:
                found += _MAKERS[op](model, known[model], count)
    return found


def without_kernels(ops: Sequence[str], models: Sequence[str]) -> list[str]:
    """What these models have and `chosen` leaves out, since there is no kernel for it: a line for each model."""
    wide = {
        name: sorted({layer.head_dim for layer in config.layers} - set(HEAD_DIMS))
        for name, config in published().items()
        if name in models and "attention" in ops
    }
    return [f"{name}: attention has no kernel for head_dim {', '.join(map(str, d))}" for name, d in wide.items() if d]


_MAKERS: dict[str, Callable[[str, ModelConfig, int], Iterator[Case]]] = {
    "rms_norm": rms_norm_cases,
    "add_norm": add_norm_cases,
    "qk_norm_rope": qk_norm_rope_cases,
    "geglu": geglu_cases,
    "embed": embed_cases,
    "linear": linear_cases,
    "linear_geglu": linear_geglu_cases,
    "attention": attention_cases,
    "softcap": softcap_cases,
    "top_k": top_k_cases,
}
