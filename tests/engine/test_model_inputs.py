"""Gemma.prefill equals Transformers for images, embeddings, ready-made masks and however many rows are kept."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from gemma_cuda.errors import InputError
from gemma_cuda.model import multimodal
from tests.support import hf_forward
from tests.support.compare import assert_within_rule
from tests.support.hf_models import CAUSAL_TEXT, MULTIMODAL, RECIPES, build
from tests.support.parity import (
    Array,
    assert_outputs,
    encoder_outputs,
    is_capped,
    multimodal_forward,
    one_shot,
    ours,
    padded,
    placeholder_ids,
    position_ids,
    random_features,
    token_types,
)

# Runs of image tokens that are longer than the window, that start and end the prompt, and that stand next to a video.
SPANS = {
    "inside": [(5, 9), (15, 31)],
    "at both ends": [(0, 4), (36, 40)],
    "longer than the window": [(3, 23)],
    "one token": [(10, 11), (12, 13)],
}


VISION = tuple(name for name in MULTIMODAL if not name.startswith("pali"))


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("name", [name for name in VISION if name != "gemma4_e2b_vision"])
def test_image_spans_equal_transformers(name: str, spans: list[tuple[int, int]]) -> None:
    model = build(name)
    types = token_types(model, spans)
    embeds = random_features(model, types.size).reshape(*types.shape, -1)
    r, b = (multimodal_forward(model, kind, types, inputs_embeds=embeds) for kind in ("float64", "float32"))
    out = ours(name).prefill(inputs_embeds=embeds, token_type_ids=types, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", ["gemma3", "gemma4_vision", "gemma4_unified"])
def test_image_spans_change_the_result(name: str) -> None:
    """The test above would pass on a model that ignores token types only if these made no difference."""
    model = build(name)
    types = token_types(model, SPANS["inside"])
    with_types = ours(name).prefill(model.ids(), token_type_ids=types, logits_to_keep=0)
    without = ours(name).prefill(model.ids(), logits_to_keep=0)
    assert np.abs(with_types.logits - without.logits)[:, 5:31].max() > 0.1


@pytest.mark.parametrize("name", ["gemma4_vision", "gemma4_unified"])
def test_video_joins_images_and_audio_does_not(name: str) -> None:
    model = build(name)
    types = (
        token_types(model, [(5, 9)]) + token_types(model, [(9, 14)], kind=2) + token_types(model, [(20, 30)], kind=3)
    )
    r, b = (multimodal_forward(model, kind, types, input_ids=model.ids()) for kind in ("float64", "float32"))
    out = ours(name).prefill(model.ids(), mm_token_type_ids=types, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", ["gemma3", "gemma4_vision"])
def test_image_spans_in_a_left_padded_batch(name: str) -> None:
    model = build(name)
    ids, mask = padded(model, (40, 25))
    types = token_types(model, [(20, 33)], batch=2)
    positions = position_ids(mask)
    r, b = (
        multimodal_forward(model, kind, types, input_ids=ids, attention_mask=mask, position_ids=positions)
        for kind in ("float64", "float32")
    )
    out = ours(name).prefill(
        ids, attention_mask=mask, token_type_ids=types, logits_to_keep=0, output_hidden_states=True
    )
    assert_outputs(out, r, b, model, "float32", real=mask)


@pytest.mark.parametrize("name", VISION)
def test_ids_with_placeholders_and_features(name: str) -> None:
    """embed, merge_features and prefill give what Transformers gives for ids and the vision encoder's output."""
    model, gemma = build(name), ours(name)
    types = token_types(model, [(4, 12), (20, 28)])
    ids, features = placeholder_ids(model, types), random_features(model, 16)
    assert np.array_equal(gemma.token_types(ids), types)
    r, b = (
        multimodal_forward(model, kind, types, input_ids=ids, mm_encoder_outputs=encoder_outputs(model, image=features))
        for kind in ("float64", "float32")
    )
    embeds = gemma.merge_features(gemma.embed(ids), features, ids)
    out = gemma.prefill(ids, inputs_embeds=embeds, token_type_ids=types, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", ["gemma4_vision", "gemma4_e2b_vision", "gemma4_unified"])
def test_image_and_video_features(name: str) -> None:
    model, gemma = build(name), ours(name)
    types = token_types(model, [(4, 12)]) + token_types(model, [(12, 17), (30, 33)], kind=2)
    ids = placeholder_ids(model, types)
    image, video = random_features(model, 8), random_features(model, 8, seed=5)
    encoded = encoder_outputs(model, image=image, video=video)
    r, b = (
        multimodal_forward(model, kind, types, input_ids=ids, mm_encoder_outputs=encoded)
        for kind in ("float64", "float32")
    )
    embeds = gemma.merge_features(gemma.embed(ids), image, ids)
    embeds = gemma.merge_features(embeds, video, ids, token_type=2)
    out = gemma.prefill(ids, inputs_embeds=embeds, token_type_ids=types, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", ["gemma3", "gemma4_vision", "gemma4_unified"])
def test_projected_image_features(name: str) -> None:
    model = build(name)
    rng = np.random.default_rng(8)
    hf64, hf32 = model.float64.model, model.float32.model
    if name == "gemma3":  # 8 x 8 patches, pooled to 4 x 4 tokens
        tower = rng.standard_normal((2, 64, 16)).astype(np.float32)
        modules = [hf64.multi_modal_projector, hf32.multi_modal_projector]
    else:
        tower = rng.standard_normal((2, 9, 16)).astype(np.float32)
        modules = [getattr(hf.embed_vision, "multimodal_embedder", hf.embed_vision) for hf in (hf64, hf32)]
    with torch.no_grad():
        with hf_forward.exact():
            r = modules[0](torch.from_numpy(tower).double())
        b = modules[1](torch.from_numpy(tower))
    assert_within_rule(ours(name).project_image_features(tower), r, b, dtype="float32", what="features")


def test_tokens_of_an_image_that_are_no_square_are_refused() -> None:
    assert multimodal._pool(np.zeros((1, 64, 4)), 16).shape == (1, 16, 4)
    with pytest.raises(InputError, match="a square that pools to 15 tokens"):
        multimodal._pool(np.zeros((1, 64, 4)), 15)


@pytest.mark.parametrize("prefix", [1, 17, 40])
@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_paligemma_prefix_is_bidirectional(name: str, prefix: int) -> None:
    model = build(name)
    types = (np.arange(40)[None] >= prefix).astype(np.int64)
    r, b = (hf_forward.forward(m, model.ids(), token_type_ids=types) for m in (model.float64, model.float32))
    out = ours(name).prefill(model.ids(), token_type_ids=types, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", RECIPES)
def test_inputs_embeds_equal_input_ids(name: str) -> None:
    model, gemma = build(name), ours(name)
    ids = model.ids(20)
    embeds = gemma.embed(ids)
    assert embeds.shape == (1, 20, model.size.hidden_size)
    given = {"input_ids": ids} if gemma.config.hidden_size_per_layer_input else {}
    by_ids = gemma.prefill(ids, logits_to_keep=0)
    by_embeds = gemma.prefill(**given, inputs_embeds=embeds, logits_to_keep=0)
    assert np.array_equal(by_ids.last_hidden_state, by_embeds.last_hidden_state)
    alias = gemma.prefill_hidden(embeds, **given, logits_to_keep=0)
    assert np.array_equal(by_ids.last_hidden_state, alias.last_hidden_state)


def ready_mask(shape: tuple[int, ...], seed: int) -> Array:
    """A float mask [B or 1, H or 1, S, T]: a random bias where visible, float32's lowest elsewhere; no row is empty."""
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(shape).astype(np.float32)
    hidden = rng.random(shape) < 0.5
    hidden[..., 0] = False
    return np.where(hidden, np.finfo(np.float32).min, bias)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b", "gemma4_31b", "embedding_gemma"])
def test_attn_bias_is_added_as_it_is(name: str, heads: int) -> None:
    model = build(name)
    ids = model.ids(20, batch=2)
    bias = ready_mask((2, heads, 20, 20), 1)
    r, b = (hf_forward.forward(m, ids, attention_mask=bias) for m in (model.float64, model.float32))
    out = ours(name).prefill(ids, attn_bias=bias, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_moe"])
def test_attn_bias_by_layer_type(name: str) -> None:
    model = build(name)
    ids = model.ids(20)
    biases = {"full_attention": ready_mask((1, 1, 20, 20), 1), "sliding_attention": ready_mask((1, 1, 20, 20), 2)}
    r, b = (hf_forward.forward(m, ids, attention_mask=biases) for m in (model.float64, model.float32))
    out = ours(name).prefill(ids, attn_bias=biases, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


def test_attn_bias_on_a_continued_prompt() -> None:
    """S < T: the bias spans the cached keys too."""
    model = build("gemma3_text")
    ids = model.ids(20)
    i = np.arange(20)
    bias = np.where((i[:, None] >= i) & ((i[:, None] + i) % 3 > 0) | (i == 0), 0.25, np.finfo(np.float32).min)
    bias = bias.astype(np.float32)[None, None]
    r, b = (hf_forward.forward(m, ids, attention_mask=bias) for m in (model.float64, model.float32))
    cache = ours("gemma3_text").prefill(ids[:, :12], attn_bias=bias[..., :12, :12]).past_key_values
    out = ours("gemma3_text").prefill(ids[:, 12:], attn_bias=bias[..., 12:, :], past_key_values=cache, logits_to_keep=0)
    assert_within_rule(out.logits, r.logits, b.logits, at=np.s_[:, 12:], dtype="float32", what="logits")


@pytest.mark.parametrize("keep", [1, 5, 40])
@pytest.mark.parametrize("name", CAUSAL_TEXT)
def test_kept_rows_equal_all_rows(name: str, keep: int) -> None:
    """Rows left out of the last layer (and of layers that share KV) change neither the kept rows nor the cache."""
    model, r, b = build(name), one_shot(name, "float64"), one_shot(name, "float32")
    out = ours(name).prefill(model.ids(), logits_to_keep=keep)
    assert out.hidden_states is None
    assert out.logits.shape[1] == out.last_hidden_state.shape[1] == keep
    rule = functools.partial(assert_within_rule, dtype="float32", softcap=is_capped(model))
    rule = functools.partial(rule, at=np.s_[:, -keep:])
    rule(out.logits, r.logits, b.logits, what="logits")
    rule(out.last_hidden_state, r.last_hidden_state, b.last_hidden_state, what="last_hidden_state")
    for pair, exact, rounded in zip(out.past_key_values, r.past_key_values, b.past_key_values, strict=True):
        for y, e, f in zip(pair or (), exact or (), rounded or (), strict=True):
            rule(y, e, f, at=..., what="cache")


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_e2b"])
def test_kept_rows_of_a_left_padded_batch(name: str) -> None:
    model = build(name)
    ids, mask = padded(model, (24, 9))
    everything = ours(name).prefill(ids, attention_mask=mask, logits_to_keep=0)
    exact = ours(name, "float64").prefill(ids, attention_mask=mask, logits_to_keep=0)
    out = ours(name).prefill(ids, attention_mask=mask, logits_to_keep=3)
    assert_within_rule(
        out.logits, exact.logits[:, -3:], everything.logits[:, -3:], dtype="float32", softcap=is_capped(model)
    )


def test_layer_hook_sees_every_layer() -> None:
    gemma, ids = ours("gemma3_text"), build("gemma3_text").ids(12)
    seen: list[tuple[int, Array]] = []
    out = gemma.prefill(
        ids,
        output_hidden_states=True,
        logits_to_keep=0,
        layer_hook=lambda layer, hidden, *_: seen.append((layer, np.array(hidden))),
    )
    assert [layer for layer, _ in seen] == list(range(7))
    for layer, hidden in seen[:-1]:
        assert np.array_equal(hidden.reshape(12, -1), out.hidden_states[layer + 1][0])
