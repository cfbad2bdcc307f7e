"""Gemma.prefill equals Transformers' eager models of every generation: plain, padded, ragged, at any position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemma_cuda.model.rope import inverse_frequencies
from gemma_cuda.precision import Array
from tests.support import hf_forward, hf_models
from tests.support.compare import assert_within_rule, error
from tests.support.hf_models import BIDIRECTIONAL_TEXT, CAUSAL, CAUSAL_TEXT, REAL, RECIPES, TINY, Size, build
from tests.support.parity import assert_outputs, is_capped, one_shot, ours, padded, plain, position_ids


@pytest.mark.parametrize("name", RECIPES)
def test_float32_equals_transformers(name: str) -> None:
    model = build(name)
    out = ours(name).prefill(model.ids(), logits_to_keep=0, output_hidden_states=True)
    assert out.last_hidden_state.dtype == np.float32
    assert_outputs(out, plain(name, "float64"), plain(name, "float32"), model, "float32")


@pytest.mark.parametrize("name", RECIPES)
def test_float64_is_an_oracle(name: str) -> None:
    """In float64 the two implementations differ by the accumulated rounding of float64, and nothing else."""
    model, r = build(name), plain(name, "float64")
    out = ours(name, "float64").prefill(model.ids(), logits_to_keep=0, output_hidden_states=True)
    assert out.last_hidden_state.dtype == np.float64
    # Rounding errors are proportional to the unit roundoff: shrink HuggingFace's float32 error to float64's.
    ratio = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
    for what, y, exact, rounded in zip(
        [f"hidden_states[{i}]" for i in range(len(r.hidden_states))] + ["logits"],
        [*out.hidden_states, out.logits],
        [*r.hidden_states, r.logits],
        [*plain(name, "float32").hidden_states, plain(name, "float32").logits],
        strict=True,
    ):
        if exact is not None:
            assert_within_rule(y, exact, exact + ratio * (rounded - exact), dtype="float64", what=what)


@pytest.mark.parametrize("name", RECIPES)
def test_bfloat16_is_no_worse_than_transformers(name: str) -> None:
    """With the same bfloat16 weights our error stays within the rule, and its RMS within 1.5 of the eager model's."""
    model, r, b = build(name), plain(name, "float64_bf16_scale"), plain(name, "bfloat16")
    out = ours(name, "bfloat16").prefill(model.ids(), logits_to_keep=0, output_hidden_states=True)
    assert np.array_equal(np.float64(out.hidden_states[0]), b.hidden_states[0])
    assert_outputs(out, r, b, model, "bfloat16")
    for what, y, exact, eager in (
        ("last_hidden_state", out.last_hidden_state, r.last_hidden_state, b.last_hidden_state),
        ("logits", out.logits, r.logits, b.logits),
    ):
        if exact is not None:
            mine, theirs = (_rms(name, x, exact) for x in (y, eager))
            assert mine <= 1.5 * theirs, f"{what}: RMS error {mine:.3g}, the eager model's is {theirs:.3g}"


def _rms(name: str, y: Array, exact: Array) -> float:
    """RMS error; with experts the median of the tokens' own, since rounding sends a few tokens to other experts.

    Which tokens those are, torch's products on this CPU decide: with AMX they are others than without.
    """
    if name != "gemma4_moe":
        return error(y, exact).rms
    return float(np.median([error(a, b).rms for a, b in zip(y[0], exact[0], strict=True)]))


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("name", RECIPES)
def test_padded_batch_takes_positions_from_the_mask(name: str, left: bool) -> None:
    model = build(name)
    ids, mask = padded(model, (24, 9, 1), left=left)
    positions = position_ids(mask, offset=1 if name.startswith("pali") else 0)
    r, b = (
        hf_forward.forward(m, ids, attention_mask=mask, position_ids=positions) for m in (model.float64, model.float32)
    )
    out = ours(name).prefill(ids, attention_mask=mask, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32", real=mask)


@pytest.mark.parametrize("name", CAUSAL_TEXT)
def test_ragged_rows_equal_each_alone(name: str) -> None:
    model = build(name)
    rows = [model.ids(n, seed=n)[0].tolist() for n in (13, 1, 21)]
    out = ours(name).prefill(rows, logits_to_keep=1)
    assert out.logits.shape[:2] == (3, 1)
    exact, alone = (
        np.concatenate([ours(name, dtype).prefill(row).logits for row in rows]) for dtype in ("float64", "float32")
    )
    assert_within_rule(out.logits, exact, alone, dtype="float32", softcap=is_capped(model), what="logits")


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b", "paligemma"])
def test_left_padded_batch_continues(name: str) -> None:
    """Decoding after a left-padded prompt: the mask grows by a column of ones, as in generate()."""
    model = build(name)
    ids, mask = padded(model, (14, 5))
    more = model.ids(3, batch=2, seed=9)
    grown = np.concatenate([mask, np.ones_like(more)], axis=1)
    offset = 1 if name.startswith("pali") else 0
    r, b = (
        hf_forward.forward(
            m, np.concatenate([ids, more], axis=1), attention_mask=grown, position_ids=position_ids(grown, offset)
        )
        for m in (model.float64, model.float32)
    )
    cache = ours(name).prefill(ids, attention_mask=mask).past_key_values
    for step in range(3):
        out = ours(name).prefill(
            more[:, step : step + 1], attention_mask=grown[:, : 15 + step], past_key_values=cache, logits_to_keep=1
        )
        cache = out.past_key_values
        assert_within_rule(
            out.logits[:, 0],
            r.logits,
            b.logits,
            at=np.s_[:, 14 + step],
            dtype="float32",
            softcap=is_capped(model),
            what=f"step {step}",
        )


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b", "gemma4_31b"])
def test_position_ids_are_obeyed(name: str) -> None:
    model = build(name)
    ids = model.ids(20)
    positions = np.arange(20)[None] + 1000
    r, b = (hf_forward.forward(m, ids, position_ids=positions) for m in (model.float64, model.float32))
    out = ours(name).prefill(ids, position_ids=positions, logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")


@pytest.mark.parametrize("size", [TINY, REAL], ids=["tiny", "real"])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_text", "gemma4_dense"])
def test_rope_frequencies(name: str, size: Size) -> None:
    """Bit for bit the float32 frequencies that Transformers' formulas give with a correctly rounded power.

    Those of Transformers on this processor are at most two units in the last place away.
    """
    model = build(name, size)
    own = type(model.float32).from_pretrained(model.path)
    compared = 0
    for layer in {layer.layer_type: layer for layer in ours(name, size=size).config.layers}.values():
        mine = inverse_frequencies(layer.rope, layer.head_dim)
        for source, most in ((model.float32, 0), (own, 2)):
            buffers = dict(source.named_buffers())
            theirs = buffers.get(
                f"model.rotary_emb.{layer.layer_type}_inv_freq", buffers.get("model.rotary_emb.inv_freq")
            )
            steps = np.abs(mine.view(np.int32) - theirs.numpy().view(np.int32))
            assert mine.dtype == np.float32 and steps.max() <= most
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_moe"])
def test_positions_that_start_again_are_packed_sequences(name: str) -> None:
    """As in Transformers without a cache: sequences packed into one row do not see one another."""
    model = build(name)
    ids = model.ids(30)
    positions = np.concatenate([np.arange(11), np.arange(19)])[None]
    out = ours(name).prefill(ids, position_ids=positions, logits_to_keep=0)
    with torch.no_grad():
        tensors = {"input_ids": torch.from_numpy(ids), "position_ids": torch.from_numpy(positions)}
        b = model.float32(**tensors, use_cache=False).logits
        with hf_forward.exact():
            r = model.float64(**tensors, use_cache=False).logits
    assert_within_rule(out.logits, r, b, dtype="float32", softcap=is_capped(model), what="logits")


@pytest.mark.parametrize("name", CAUSAL)
def test_later_tokens_change_nothing_before_them(name: str) -> None:
    """Causality leak test: the logits before a changed token keep their bits, the logits at it move."""
    gemma, ids = ours(name), build(name).ids()
    changed = ids.copy()
    changed[0, 23] = hf_models.FIRST_TEXT_ID if ids[0, 23] != hf_models.FIRST_TEXT_ID else hf_models.FIRST_TEXT_ID + 1
    one, two = (gemma.prefill(x, logits_to_keep=0).logits[0] for x in (ids, changed))
    if name == "gemma4_moe":  # another number of tokens per expert is another matrix product
        r, b = one_shot(name, "float64").logits[0], one_shot(name, "float32").logits[0]
        assert_within_rule(two[:23], r, b, at=np.s_[:23], dtype="float32")
    else:
        assert np.array_equal(one[:23], two[:23])
    assert np.abs(one[23] - two[23]).max() > 0.1


@pytest.mark.parametrize("name", BIDIRECTIONAL_TEXT)
def test_bidirectional_models_see_later_tokens(name: str) -> None:
    gemma, ids = ours(name), build(name).ids()
    changed = ids.copy()
    changed[0, 39] = hf_models.FIRST_TEXT_ID if ids[0, 39] != hf_models.FIRST_TEXT_ID else hf_models.FIRST_TEXT_ID + 1
    one, two = (gemma.prefill(x, logits_to_keep=0).last_hidden_state[0] for x in (ids, changed))
    assert np.abs(one[0] - two[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b", "gemma4_31b", "gemma4_moe"])
def test_real_head_dims(name: str) -> None:
    model = build(name, REAL)
    r, b = (hf_forward.forward(m, model.ids()) for m in (model.float64, model.float32))
    out = ours(name, size=REAL).prefill(model.ids(), logits_to_keep=0, output_hidden_states=True)
    assert_outputs(out, r, b, model, "float32")
