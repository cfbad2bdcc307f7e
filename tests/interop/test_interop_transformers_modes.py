"""`attn_implementation="gemma_cuda"` in the ways that models are run: autocast, traces, weights, other masks."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.bias import causal_lower_right
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from gemma_cuda.errors import InputError
from gemma_cuda.interop.transformers import register
from gemma_cuda.interop.transformers_attention import attention_forward, key_range_mask
from tests.support.hf_models import build
from tests.support.parity import padded

pytestmark = pytest.mark.usefixtures("one_thread")
register()
GENERATIONS = ["gemma_mqa", "gemma2", "gemma3_text", "gemma3", "gemma4_e2b", "gemma4_31b"]


@functools.cache
def model_of(name: str, implementation: str) -> Any:
    model = copy.deepcopy(build(name).float32)
    model.set_attn_implementation(implementation)
    return model


def peer(name: str) -> str:
    """What Transformers has in our place; its SDPA takes no softcap."""
    config = build(name).float32.config.get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def logits(model: Any, *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        x = model(*args, **options)
    return x.logits if "logits" in x else x.last_hidden_state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GENERATIONS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """As near to exact logits as Transformers' own attention in the same autocast."""
    given, mask = padded(build(name), [40, 23])
    ids, seen = torch.from_numpy(given), torch.from_numpy(mask)
    exact = logits(model_of(name, "eager"), ids, attention_mask=seen)
    for options in ({"use_cache": False}, {"use_cache": True}):
        with torch.autocast("cpu", dtype=dtype):
            got, expected = (
                logits(model_of(name, x), ids, attention_mask=seen, **options) for x in ("gemma_cuda", peer(name))
            )
        errors = [(x.float() - exact)[seen.bool()].abs().mean() for x in (got, expected)]
        assert got.dtype == expected.dtype and errors[0] <= 1.2 * errors[1] + 1e-6


@functools.cache
def t5gemma2(implementation: str) -> Any:
    text = {
        "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 4,
    }  # fmt: skip
    config = transformers.T5Gemma2Config(
        encoder={"text_config": text, "vision_config": vision, "image_token_index": 155, "boi_token_index": 150,
                 "eoi_token_index": 151, "mm_tokens_per_image": 16},
        decoder=text, image_token_index=155, eoi_token_index=151, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("cache", [False, True])
def test_t5gemma2_forward(cache: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    ids, answer = (torch.randint(3, 140, (2, n), generator=generator) for n in (11, 7))
    seen = torch.ones_like(ids)
    seen[1, 8:] = 0
    answer_seen = torch.ones_like(answer)
    answer_seen[0, :2] = 0
    options = {"attention_mask": seen, "decoder_attention_mask": answer_seen, "use_cache": cache}
    got, expected = (logits(t5gemma2(x), ids, decoder_input_ids=answer, **options) for x in ("gemma_cuda", "sdpa"))
    assert torch.allclose(got[1], expected[1], atol=2e-4) and torch.allclose(got[0, 2:], expected[0, 2:], atol=2e-4)
    assert got.std() > 0.1


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_t5gemma2_generates(implementation: str) -> None:
    ids = torch.randint(3, 140, (2, 9), generator=torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "cache_implementation": implementation}
    if implementation == "static":
        options["disable_compile"] = True
    got, expected = (t5gemma2(x).generate(ids, **options) for x in ("gemma_cuda", "sdpa"))
    assert torch.equal(got, expected) and len(set(got[0].tolist())) > 2


MASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal": (causal_mask_function, {"allow_is_causal_skip": False}),
    "window": (sliding_window_causal_mask_function(3), {"allow_is_causal_skip": False, "local_size": 3}),
    "all": (bidirectional_mask_function, {"allow_is_bidirectional_skip": False}),
    "window of all": (
        sliding_window_bidirectional_mask_function(3), {"allow_is_bidirectional_skip": False, "local_size": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_may_not_be_skipped_is_dense(name: str) -> None:
    """As its caller goes on to compute with it."""
    function, options = MASKS[name]
    seen = torch.arange(8) >= torch.tensor([[0], [3]])
    given = {"mask_function": function, "attention_mask": seen}
    dense = key_range_mask(2, 5, 8, 3, **given, **options)
    expected = sdpa_mask(2, 5, 8, 3, **given, **(options | {"allow_is_causal_skip": False}))
    assert dense.dtype == torch.bool and torch.equal(dense, expected)
    ranges = key_range_mask(2, 5, 8, 3, **given)
    t = torch.arange(8)
    assert ranges.dtype == torch.int32 and torch.equal((t >= ranges[..., :1]) & (t < ranges[..., 1:]), expected)


def test_flipped_intervals_are_refused() -> None:
    """Gemma 4's assistant flips its mask of a window."""
    config = transformers.Gemma3TextConfig(sliding_window=3, attn_implementation="gemma_cuda")
    embeds, states = torch.zeros(1, 1, 8), torch.zeros(1, 6, 8)
    mask = transformers.masking_utils.create_bidirectional_sliding_window_mask(
        config, embeds, None, encoder_hidden_states=states
    )
    q, k = torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 6, 8)
    attention_forward(torch.nn.Module(), q, k, k, mask)
    with pytest.raises(InputError, match=r"query 0 of sequence 0 begins at key 4 and ends before key 0.*'sdpa'"):
        attention_forward(torch.nn.Module(), q, k, k, mask.flip(dims=(-1,)))


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3", "gemma4_e2b"])
@pytest.mark.parametrize("place", ["meta", "fake"])
def test_models_without_values(place: str, name: str) -> None:
    given, mask = padded(build(name), [40, 23])
    real = logits(model_of(name, "gemma_cuda"), torch.from_numpy(given), attention_mask=torch.from_numpy(mask))
    if place == "meta":
        model = copy.deepcopy(model_of(name, "gemma_cuda")).to("meta")
        ids, seen = (torch.from_numpy(x).to("meta") for x in (given, mask))
        got = [logits(model, ids), logits(model, ids, attention_mask=seen)]
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            ids, seen = (mode.from_tensor(torch.from_numpy(x)) for x in (given, mask))
            got = [
                logits(model_of(name, "gemma_cuda"), ids),
                logits(model_of(name, "gemma_cuda"), ids, attention_mask=seen),
            ]
    for x in got:
        assert (x.shape, x.dtype) == (real.shape, real.dtype)
        assert x.is_meta if place == "meta" else isinstance(x, torch._subclasses.FakeTensor)


WARNING = "'gemma_cuda' makes no attention weights; this call is computed by eager attention"


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3", "gemma4_e2b"])
def test_attention_weights_are_eagers(name: str) -> None:
    given, mask = padded(build(name), [40, 23])
    options = {"attention_mask": torch.from_numpy(mask), "output_attentions": True}
    with torch.no_grad():
        expected = model_of(name, "eager")(torch.from_numpy(given), **options)
        with pytest.warns(UserWarning, match=WARNING):
            got = model_of(name, "gemma_cuda")(torch.from_numpy(given), **options)
    assert len(got.attentions) == len(expected.attentions) > 0
    real = torch.from_numpy(mask).bool()
    for a, b in zip(got.attentions, expected.attentions, strict=True):
        assert (
            a.shape == b.shape
            and torch.allclose(a.transpose(1, 2)[real], b.transpose(1, 2)[real], atol=1e-5)
            and a.sum() > 0
        )
    assert torch.allclose(got.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)


def test_attention_weights_of_every_mask() -> None:
    q, k = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    k = k[:, :2]
    module = torch.nn.Module()
    seen = torch.ones(3, 5).tril(2).bool()
    masks = {
        "ranges": key_range_mask(2, 3, 5, 2), "bool": seen[None, None], "causal": None,
        "float": torch.zeros(3, 5).masked_fill(~seen, -torch.inf)[None, None], "CausalBias": causal_lower_right(3, 5),
    }  # fmt: skip
    for mask in masks.values():
        for options in ({}, {"softcap": 0.5, "scaling": 0.7}):
            plain, none = attention_forward(module, q, k, k, mask, **options)
            with pytest.warns(UserWarning, match=WARNING):
                o, weights = attention_forward(module, q, k, k, mask, output_attentions=True, **options)
            assert none is None and weights is not None and torch.allclose(o, plain, atol=1e-6)
            assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 3)) and not weights[..., ~seen].any()


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3", "gemma4_vision", "embedding_gemma"])
def test_switching_at_run_time(name: str) -> None:
    ids = torch.from_numpy(build(name).ids())
    model = copy.deepcopy(build(name).float32)
    expected = logits(model, ids)
    for implementation in ("gemma_cuda", peer(name), "gemma_cuda", "eager"):
        model.set_attn_implementation(implementation)
        assert model.config.get_text_config()._attn_implementation == implementation
        assert torch.allclose(logits(model, ids), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_switching_within_a_generation(cache: Any) -> None:
    """The cache is Transformers', so any attention goes on from it."""
    ids = torch.from_numpy(build("gemma3_text").ids())
    expected = logits(build("gemma3_text").float32, ids)
    model, parts = copy.deepcopy(build("gemma3_text").float32), []
    config = model.config.get_text_config()
    past = cache(config=config) if cache is DynamicCache else cache(config=config, max_cache_len=48)
    for start, stop, implementation in (
        (0, 20, "gemma_cuda"),
        (20, 29, "eager"),
        (29, 30, "gemma_cuda"),
        (30, 40, "gemma_cuda"),
    ):
        model.set_attn_implementation(implementation)
        parts.append(logits(model, ids[:, start:stop], past_key_values=past))
    assert torch.allclose(torch.cat(parts, 1), expected, rtol=1e-3, atol=1e-3)


def test_switching_one_part_of_a_model() -> None:
    model = copy.deepcopy(build("gemma3").float32)
    model.set_attn_implementation({"text_config": "gemma_cuda", "vision_config": "sdpa"})
    assert model.config.text_config._attn_implementation == "gemma_cuda"
    ids = torch.from_numpy(build("gemma3").ids())
    assert torch.allclose(logits(model, ids), logits(build("gemma3").float32, ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_text"])
def test_a_traced_model_is_right_for_other_masks(name: str) -> None:
    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, seen: Tensor) -> Any:
            return self.model(ids, attention_mask=seen, use_cache=False).logits

    ids = torch.from_numpy(build(name).ids())[:, :20].repeat(2, 1)
    own, eager = (Logits(model_of(name, x)).eval() for x in ("gemma_cuda", "eager"))
    masks = [torch.ones_like(ids) for _ in range(3)]
    masks[1][0, :7] = 0
    masks[2][1, [3, 4, 11]] = 0
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(own, (ids, masks[0]), check_trace=False)
        for seen in masks:
            got, expected = traced(ids.flip(1), seen), eager(ids.flip(1), seen)
            assert torch.allclose(got[seen.bool()], expected[seen.bool()], rtol=1e-3, atol=1e-3)


def test_vmap_over_a_model() -> None:
    ids = torch.from_numpy(np.stack([build("gemma_mqa").ids()[:, :9], build("gemma_mqa").ids()[:, 9:18]]))
    model = model_of("gemma_mqa", "gemma_cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.vmap(lambda x: logits(model, x, use_cache=False))(ids)
    assert torch.allclose(got[:, 0], logits(model, ids[:, 0]), rtol=1e-4, atol=1e-4)
