"""Shared by the parity tests and the parity table: both models, the same inputs for both, and the comparison."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers.cache_utils import DynamicCache

import gemma_cuda
from tests.support import hf_forward, hf_models
from tests.support.compare import assert_within_rule
from tests.support.hf_forward import Array, Outputs
from tests.support.hf_models import TINY, RandomModel, Size, build


@functools.cache
def ours(name: str, dtype: str = "float32", size: Size = TINY) -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(build(name, size).path, device="numpy", dtype=dtype)


@functools.cache
def replaced(name: str, dtype: str = "float32", size: Size = TINY, implementation: str = "gemma_cuda") -> Any:
    """The eager model with our attention in its place."""
    model = copy.deepcopy(getattr(build(name, size), dtype))
    model.set_attn_implementation(implementation)
    return model


def is_capped(model: RandomModel) -> bool:
    return any(getattr(model.text_config, f"{place}_logit_softcapping", None) for place in ("attn", "final"))


def position_ids(real: Array, offset: int = 0) -> Array:
    """What generate() gives forward() for a left-padded batch: [B, S] of a 0/1 mask."""
    return np.maximum(np.cumsum(real, axis=1) - 1, 0) + offset


def assert_outputs(out: Any, r: Outputs, b: Outputs, model: RandomModel, dtype: str, real: Array | None = None) -> None:
    """Logits, hidden states and K, V of `out`, all rows kept, obey the rule where `real` [B, S] (None: everywhere)."""
    rule = functools.partial(assert_within_rule, dtype=dtype, softcap=is_capped(model))
    at = np.ones(r.last_hidden_state.shape[:2], bool) if real is None else real.astype(bool)
    pairs = [("last_hidden_state", out.last_hidden_state, r.last_hidden_state, b.last_hidden_state)]
    if r.logits is not None:
        pairs.append(("logits", out.logits, r.logits, b.logits))
    if out.hidden_states is not None:
        assert len(out.hidden_states) == len(r.hidden_states)
        named = enumerate(zip(out.hidden_states, r.hidden_states, b.hidden_states, strict=True))
        pairs += [(f"hidden_states[{i}]", *states) for i, states in named]
    for what, y, exact, rounded in pairs:
        assert y.shape == exact.shape, f"{what}: {y.shape}, expected {exact.shape}"
        rule(y[at], exact[at], rounded[at], what=what)
    assert_key_values(out.past_key_values, r, b, rule, at)


def assert_key_values(cache: Any, r: Outputs, b: Outputs, rule: Any, at: Array) -> None:
    own = [pair for pair in cache if pair is not None]
    assert len(own) == len(r.key_values)
    for i, (pair, exact, rounded) in enumerate(zip(own, r.key_values, b.key_values, strict=True)):
        for what, y, e, f in zip("kv", pair, exact, rounded, strict=True):
            assert y.shape == e.shape, f"cache[{i}].{what}: {y.shape}, expected {e.shape}"
            row, slot = np.nonzero(at)
            rule(y[row, :, slot], e[row, :, slot], f[row, :, slot], what=f"cache[{i}].{what}")


@functools.cache
def plain(name: str, kind: str) -> Outputs:
    """The Transformers model's outputs on its plain prompt: kind float64, float32, bfloat16 or float64_bf16_scale."""
    model = build(name)
    return hf_forward.forward(getattr(model, kind), model.ids())


def padded(model: RandomModel, lengths: Sequence[int], *, left: bool = True) -> tuple[Array, Array]:
    """(ids [B, S], mask [B, S]) of rows of those lengths, padded on one side."""
    ids = model.ids(max(lengths), batch=len(lengths), seed=5)
    mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, hf_models.PAD), mask.astype(np.int64)


@functools.cache
def one_shot(name: str, dtype: str) -> Any:
    return ours(name, dtype).prefill(build(name).ids(), logits_to_keep=0, output_hidden_states=True)


def run_in_chunks(gemma: gemma_cuda.Gemma, ids: Array, cuts: Sequence[int], **arguments: Any) -> tuple[Any, Array]:
    """(cache, logits [B, S, V]) of the prompt split at `cuts`."""
    edges = [0, *cuts, ids.shape[1]]
    cache, logits = None, []
    for begin, end in itertools.pairwise(edges):
        own = {key: value[:, begin:end] for key, value in arguments.items()}
        out = gemma.prefill(ids[:, begin:end], past_key_values=cache, logits_to_keep=0, **own)
        cache = out.past_key_values
        logits.append(out.logits)
    return cache, np.concatenate(logits, axis=1)


def token_types(model: RandomModel, spans: Sequence[tuple[int, int]], *, kind: int = 1, batch: int = 1) -> Array:
    types = np.zeros((batch, model.size.prompt), np.int64)
    for begin, end in spans:
        types[:, begin:end] = kind
    return types


def multimodal_forward(model: RandomModel, kind: str, types: Array, **arguments: Any) -> Outputs:
    """Transformers' outputs for those token types.

    gemma4_unified's forward() builds another mask than its create_masks_for_generate(); we follow the latter, which is
    the rule of the other Gemma 4 models.
    """
    hf = getattr(model, kind)
    assert model.recipe.token_types is not None
    if model.name != "gemma4_unified":
        return hf_forward.forward(hf, **{model.recipe.token_types: types}, **arguments)
    embeds = torch.zeros((*types.shape, model.size.hidden_size), dtype=hf.dtype)
    padding = arguments.pop("attention_mask", None)
    masks = hf.create_masks_for_generate(
        hf.config,
        embeds,
        None if padding is None else torch.from_numpy(padding),
        DynamicCache(),
        None,
        mm_token_type_ids=torch.from_numpy(types),
    )
    return hf_forward.forward(hf, attention_mask=masks, **arguments)


@dataclass(frozen=True)
class EncoderOutput:
    """What get_image_features() of a Transformers model returns, as far as its forward() reads it."""

    pooler_output: Any


def placeholder_ids(model: RandomModel, types: Array) -> Array:
    """Ids [B, S] of the model's plain prompt, with the placeholders of images (type 1) and videos (type 2)."""
    text = model.ids(types.shape[1], batch=types.shape[0])
    return np.select([types == 1, types == 2], [hf_models.IMAGE, hf_models.VIDEO], text)


def random_features(model: RandomModel, count: int, seed: int = 4) -> Array:
    """[count, E] float32, of bfloat16 numbers."""
    features = np.random.default_rng(seed).standard_normal((count, model.size.hidden_size))
    return features.astype(ml_dtypes.bfloat16).astype(np.float32)


def encoder_outputs(model: RandomModel, **features: Array) -> dict[str, EncoderOutput]:
    """The mm_encoder_outputs that make Transformers put those features [n, E] (image=, video=) at the placeholders."""
    rows = {kind: torch.from_numpy(values) for kind, values in features.items()}
    whole = model.name == "gemma3"  # one tensor of all images; the others take one per image
    return {kind: EncoderOutput(values[None] if whole else (values,)) for kind, values in rows.items()}
