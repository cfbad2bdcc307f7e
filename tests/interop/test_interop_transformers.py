"""`attn_implementation="gemma_cuda"` against eager Transformers: every random Gemma, caches, padding, spans."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionMaskInterface, DynamicCache, StaticCache
from transformers.masking_utils import and_masks, causal_mask_function, or_masks, sdpa_mask, sliding_window_overlay

from gemma_cuda.errors import InputError
from gemma_cuda.interop.transformers import register
from gemma_cuda.interop.transformers_attention import attention_forward, key_range_mask
from tests.support import hf_forward
from tests.support.compare import assert_within_rule
from tests.support.hf_forward import rounded_powers
from tests.support.hf_models import CAUSAL, CAUSAL_TEXT, MULTIMODAL, RECIPES, TINY, Size, build
from tests.support.parity import is_capped, padded, replaced, token_types

pytestmark = pytest.mark.usefixtures("one_thread")
register()
register("gemma_cuda_emulator", device="emulator")
SPANS = [(3, 13), (13, 14), (20, 37)]  # longer than a window, one that touches it, one that ends near the end


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What our mask function returned."""
    made: list[Any] = []
    recorded = lambda *args, **options: made.append(key_range_mask(*args, **options)) or made[-1]  # noqa: E731
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "gemma_cuda", recorded)
    yield made


def assert_same(name: str, arguments: dict[str, Any], *, real: Any = ..., dtype: str = "float32") -> None:
    """Our logits (or last hidden states) obey the rule against eager float64 and eager `dtype`."""
    model = build(name)
    own = replaced(name, dtype)
    exact = model.float64 if dtype == "float32" else model.float64_bf16_scale
    y, r, b = (hf_forward.forward(m, **arguments) for m in (own, exact, getattr(model, dtype)))
    pairs = [(x.last_hidden_state if x.logits is None else x.logits)[real] for x in (y, r, b)]
    assert_within_rule(*pairs, dtype=dtype, softcap=is_capped(model), what=name)


@pytest.mark.parametrize("name", RECIPES)
def test_equals_eager_without_a_dense_mask(name: str, masks: list[Any]) -> None:
    assert_same(name, {"input_ids": build(name).ids()})
    assert masks and all(mask.dtype == torch.int32 and mask.shape == (1, 1, 40, 2) for mask in masks)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_image_spans_equal_eager(name: str, masks: list[Any]) -> None:
    model = build(name)
    types = token_types(model, SPANS) if "pali" not in name else token_types(model, [(25, 40)])
    assert model.recipe.token_types is not None
    assert_same(name, {"input_ids": model.ids(), model.recipe.token_types: types})
    assert masks and all(mask.dtype == torch.int32 for mask in masks)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_31b"])
def test_bfloat16(name: str) -> None:
    assert_same(name, {"input_ids": build(name).ids()}, dtype="bfloat16")


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3", "gemma4_e2b", "embedding_gemma"])
def test_padded_batches(name: str, left: bool) -> None:
    ids, mask = padded(build(name), [40, 23, 1], left=left)
    assert_same(name, {"input_ids": ids, "attention_mask": mask}, real=mask.astype(bool))


def test_a_mask_with_holes_is_served(masks: list[Any]) -> None:
    mask = np.ones((1, 40), np.int64)
    mask[0, [5, 6, 20]] = 0
    assert_same(
        "gemma3_text", {"input_ids": build("gemma3_text").ids(), "attention_mask": mask}, real=mask.astype(bool)
    )
    assert {made.dtype for made in masks} == {torch.bool}


def test_a_ready_4d_mask_is_served() -> None:
    bias = np.where(np.random.default_rng(0).random((1, 1, 40, 40)) < 0.8, 0.0, -1e9)
    bias[..., np.arange(40), np.arange(40)] = 0
    assert_same("gemma2", {"input_ids": build("gemma2").ids(), "attention_mask": bias.astype(np.float32)})


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_e2b"])
def test_chunks_equal_one_pass(name: str) -> None:
    """With sliding layers that keep w - 1 positions, and with a static cache."""
    model, own = build(name), replaced(name)
    ids = model.ids()
    r, b = (hf_forward.forward(m, ids).logits for m in (model.float64, model.float32))
    config = own.config.get_text_config()
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=64)):
        parts = []
        for start, stop in ((0, 11), (11, 30), (30, 31), (31, 40)):
            with torch.no_grad():
                parts.append(own(torch.from_numpy(ids[:, start:stop]), past_key_values=cache).logits)
        y = torch.cat(parts, 1)
        assert_within_rule(y, r, b, dtype="float32", softcap=is_capped(model), what=type(cache).__name__)


@pytest.mark.parametrize(
    ("name", "cache"),
    [(name, "dynamic") for name in CAUSAL]
    + [(name, "static") for name in ("gemma_mqa", "gemma2", "gemma3", "gemma4_e2b", "gemma4_vision")],
)
def test_greedy_generation_equals_eager(name: str, cache: str) -> None:
    """Of a left-padded batch, further than a window."""
    model = build(name)
    ids, mask = padded(model, [14, 9])
    options = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": cache, "eos_token_id": -1}
    arguments = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if model.recipe.token_types is not None:
        types = np.zeros_like(ids)
        types[:, 8:12] = 1
        arguments[model.recipe.token_types] = torch.from_numpy(types)
    expected, got = (m.generate(**arguments, **options) for m in (model.float32, replaced(name)))
    assert torch.equal(got, expected)
    assert len(set(got[0, ids.shape[1] :].tolist())) > 2


def test_loaded_with_our_attention() -> None:
    model = build("gemma3")
    with rounded_powers():
        own = transformers.Gemma3ForConditionalGeneration.from_pretrained(
            model.path, dtype="float32", attn_implementation="gemma_cuda"
        ).eval()
    assert own.config.text_config._attn_implementation == own.config.vision_config._attn_implementation == "gemma_cuda"
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [m.model.get_image_features(pixels).pooler_output for m in (own, model.float32)]
    assert torch.allclose(*features, rtol=1e-4, atol=1e-5)


SIXTY_FOUR = Size(head_dim=64, global_head_dim=64, hidden_size=96, intermediate_size=128, sliding_window=8, prompt=40)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_kernels_in_a_model(name: str) -> None:
    model = build(name, SIXTY_FOUR)
    own = replaced(name, "bfloat16", SIXTY_FOUR, "gemma_cuda_emulator")
    ids, mask = padded(model, [40, 23])
    y, r, b = (
        hf_forward.forward(m, ids, attention_mask=mask).logits[mask.astype(bool)]
        for m in (own, model.float64_bf16_scale, model.bfloat16)
    )
    assert_within_rule(y, r, b, dtype="bfloat16", softcap=is_capped(model), what=name)


def test_a_model_compiles_as_one_graph() -> None:
    own = replaced("gemma2")
    ids = torch.from_numpy(build("gemma2").ids())
    with torch.no_grad():
        compiled = torch.compile(own.forward, fullgraph=True, backend="aot_eager")
        got, expected = (f(ids, use_cache=False).logits for f in (compiled, own))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def window_and_block(ids: Any) -> Callable[..., Any]:
    block = lambda b, h, q, k: (ids[q] == ids[k]) & (ids[q] >= 0)  # noqa: E731
    return and_masks(sliding_window_overlay(6), or_masks(causal_mask_function, block))


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_ranges_are_the_mask(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.interop.transformers_attention._MASK_ELEMENTS", rows_at_once * 2 * 30)
    ids = torch.tensor([-1] * 4 + [0] * 9 + [-1, 1, 1] + [-1] * 14)
    padding = torch.arange(30) >= torch.tensor([[0], [11]])
    options = {"q_offset": 8, "mask_function": window_and_block(ids), "attention_mask": padding}
    ranges = key_range_mask(2, 20, 30, use_vmap=True, **options)
    dense = sdpa_mask(2, 20, 30, use_vmap=True, allow_is_causal_skip=False, **options)
    t = torch.arange(30)
    assert ranges.dtype == torch.int32
    assert torch.equal((t >= ranges[..., :1]) & (t < ranges[..., 1:]), dense)


def test_rows_that_see_nothing_keep_the_ranges_rising() -> None:
    window = and_masks(sliding_window_overlay(4), causal_mask_function)
    ranges = key_range_mask(1, 20, 20, mask_function=window, attention_mask=torch.arange(20)[None] < 8)
    assert ranges.dtype == torch.int32
    assert (ranges[0, 0, :, 1] - ranges[0, 0, :, 0]).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 3, 2, 1, *[0] * 9]


def test_ranges_that_fall_become_a_mask() -> None:
    later_sees_less = lambda b, h, q, k: k < 8 - q  # noqa: E731
    mask = key_range_mask(1, 4, 8, mask_function=later_sees_less)
    assert mask.dtype == torch.bool and mask.sum(-1).flatten().tolist() == [8, 7, 6, 5]


class Module(torch.nn.Module):
    is_causal = True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "dropout is for training; call model.eval()"),
        ({"s_aux": torch.zeros(2)}, "s_aux is not supported: attention sinks are not Gemma's"),
        ({"cache": object()}, "cache is not supported: continuous batching is not served; use generate()"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    q = torch.zeros(1, 2, 3, 8)
    with pytest.raises(InputError, match=re.escape(f"attn_implementation 'gemma_cuda': {message}")):
        attention_forward(Module(), q, q, q, None, **options)


def test_training_is_refused() -> None:
    with pytest.raises(InputError, match=r"requires gradients and there is no backward pass.*torch.no_grad"):
        replaced("gemma2")(torch.from_numpy(build("gemma2").ids()))


def test_without_a_mask_the_module_decides() -> None:
    q, k = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    t = torch.arange(5)
    p = torch.arange(3)[:, None] + 2
    for options, seen in (
        ({}, t <= p),
        ({"sliding_window": 2}, (t <= p) & (t > p - 2)),
        ({"is_causal": False, "sliding_window": 2}, torch.ones(3, 5).bool()),
    ):
        o, weights = attention_forward(Module(), q, k, k, None, **options)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, seen)
        assert weights is None and torch.allclose(o.transpose(1, 2), expected, atol=1e-6)


assert CAUSAL_TEXT and all(RECIPES[name].config(TINY).get_text_config().num_hidden_layers >= 7 for name in CAUSAL)
