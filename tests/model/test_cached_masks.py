"""Masks over cached tokens, gaps in positions, where kept logits stand: what Transformers computes, or a refusal."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.engine.sampling import Sampler
from gemma_cuda.errors import CheckpointError, InputError
from tests.support import hf_forward
from tests.support.compare import assert_within_rule
from tests.support.fake_cuda import Machine
from tests.support.hf_models import VOCAB, build
from tests.support.kernel_models import load
from tests.support.parity import is_capped, ours, padded, position_ids

NAMES = ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b"]


@pytest.mark.parametrize("hidden", [(2, 2), (0, 14), (13, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_masked_cached_tokens_are_not_seen(name: str, hidden: tuple[int, int]) -> None:
    """Transformers' model over its own cache, with the same mask; 14: all that is cached."""
    model, gemma = build(name), ours(name)
    ids = model.ids(19, batch=2)
    mask = (np.arange(19) >= np.array(hidden)[:, None]).astype(np.int64)
    cached = [hf_forward.forward(m, ids[:, :14]).cache for m in (model.float64, model.float32)]
    r, b = (
        hf_forward.forward(m, ids[:, 14:], attention_mask=mask, cache=cache)
        for m, cache in zip((model.float64, model.float32), cached, strict=True)
    )
    cache = gemma.prefill(ids[:, :14]).past_key_values
    whole = gemma.prefill(ids[:, 14:], past_key_values=cache.copy(), logits_to_keep=0).logits
    out = gemma.prefill(ids[:, 14:], attention_mask=mask, past_key_values=cache, logits_to_keep=0)
    assert_within_rule(out.logits, r.logits, b.logits, dtype="float32", softcap=is_capped(model))
    assert np.abs(out.logits - whole)[np.array(hidden) > 0].max() > 1e-2
    ones = np.ones((2, 20), int)
    again, shown = (
        gemma.prefill([[5], [6]], past_key_values=cache.copy(), attention_mask=seen).logits for seen in (None, ones)
    )
    assert np.array_equal(again, shown)


def test_masked_cached_tokens_of_a_left_padded_batch() -> None:
    model, gemma = build("gemma3_text"), ours("gemma3_text")
    ids, mask = padded(model, (14, 6))
    more = model.ids(3, batch=2, seed=9)
    grown = np.concatenate([mask, np.ones_like(more)], axis=1)
    positions = position_ids(grown)
    shown = grown * (np.arange(17) >= [[5], [10]])
    outputs = []
    for m in (model.float64, model.float32):
        past = hf_forward.forward(m, ids, attention_mask=mask, position_ids=positions[:, :14]).cache
        outputs.append(
            hf_forward.forward(m, more, attention_mask=shown, position_ids=positions[:, 14:], cache=past).logits
        )
    cache = gemma.prefill(ids, attention_mask=mask).past_key_values
    out = gemma.prefill(more, attention_mask=shown, past_key_values=cache, logits_to_keep=0)
    assert_within_rule(out.logits, *outputs, dtype="float32", softcap=True)


def test_kernels_and_graphs_do_not_see_masked_cached_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a bias that hides them."""
    Machine(Emulator()).install(monkeypatch)
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), load("gemma3_text", Emulator(), gemm="kernel")
    gpu.warmup(lengths=(16,), kv_capacity=32)
    ids = build("gemma3_text").ids(13)[0].tolist()
    mask = [[0] * 4 + [1] * 9]
    logits = []
    for model, options in ((gpu, {"attention_mask": mask}), (emulator, {"attention_mask": mask}), (emulator, {})):
        cache = model.prefill(ids[:10]).past_key_values
        if not options:  # a window of 24: the same mask for all layers
            visible = (np.arange(13) >= 4) & (np.arange(13) <= np.arange(10, 13)[:, None])
            options["attn_bias"] = np.where(visible, 0, -np.inf)[None, None]
        logits.append(model.to_host(model.prefill(ids[10:], past_key_values=cache, **options).logits))  # type: ignore[arg-type]
    assert np.array_equal(logits[0], logits[1])
    assert np.abs(logits[1] - logits[2]).max() < 0.05 * np.abs(logits[2]).max()
    assert np.abs(logits[1] - emulator.to_host(emulator.prefill(ids).logits)).max() > 0.2


REFUSED = {
    "a hole": ([[1, 0, 1, 1, 1, 1], [1] * 6], "row 0 hides cached tokens behind some that it shows.*attn_bias"),
    "the last": ([[1, 1, 1, 0, 1, 1], [1] * 6], "row 0 hides cached tokens behind"),
    "padding for the last": ([[1] * 6, [1, 1, 1, 0, 1, 1]], "row 1 shows cached column 0, where"),
    "padding": ([[1] * 6, [1, 0, 0, 1, 1, 1]], "row 1 shows cached column 0, where the cache has padding"),
}


@pytest.mark.parametrize(("mask", "message"), REFUSED.values(), ids=REFUSED)
def test_masks_that_cannot_be_honoured_are_refused(mask: Any, message: str) -> None:
    gemma = ours("gemma3_text")
    cache = gemma.prefill([[3, 4, 5, 6], [0, 3, 4, 5]], attention_mask=[[1] * 4, [0, 1, 1, 1]]).past_key_values
    with pytest.raises(InputError, match=message):
        gemma.prefill([[7, 8]] * 2, attention_mask=mask, past_key_values=cache)


def test_a_mask_over_right_padding_hides_nothing_or_all() -> None:
    """The caller's columns are no slots then: a row of as many ones as it has tokens shows all of them."""
    gemma = ours("gemma3_text")
    cache = gemma.prefill([[3, 4, 5, 6], [3, 4]]).past_key_values
    prefill = functools.partial(gemma.prefill, [[7], [8]])
    for columns in ([1, 1, 0, 0], [1, 0, 0, 1]):
        out = prefill(attention_mask=[[1] * 5, [*columns, 1]], past_key_values=cache.copy())
        assert np.array_equal(out.logits, prefill(past_key_values=cache.copy()).logits)
    with pytest.raises(InputError, match="row 1 shows 1 of 2 cached tokens, but was padded on the right"):
        prefill(attention_mask=[[1] * 5, [0, 1, 0, 0, 1]], past_key_values=cache)
    alone = prefill(attention_mask=[[1] * 5, [0, 0, 0, 0, 1]], past_key_values=cache.copy()).logits
    assert not np.array_equal(alone[1], prefill(past_key_values=cache.copy()).logits[1])


def test_a_bias_and_a_mask_over_cached_tokens_do_not_mix() -> None:
    gemma = ours("gemma3_text")
    cache = gemma.prefill([3, 4, 5]).past_key_values
    bias = np.zeros((1, 1, 1, 4), np.float32)
    with pytest.raises(InputError, match="attn_bias: a row has padding, or hides cached tokens"):
        gemma.prefill([6], attn_bias=bias, attention_mask=[[0, 1, 1, 1]], past_key_values=cache)
    gemma.prefill([6], attn_bias=bias, attention_mask=[[1, 1, 1, 1]], past_key_values=cache)


@pytest.mark.parametrize("positions", [[0, 1, 7, 8], [3, 4, 2, 9], [0, 1, 1, 2], [5, 9, 60, 61]])
@pytest.mark.parametrize("name", NAMES)
def test_a_gap_in_positions_hides_nothing(name: str, positions: list[int]) -> None:
    model = build(name)
    r, b = (
        hf_forward.forward(m, model.ids(4), position_ids=np.array([positions])) for m in (model.float64, model.float32)
    )
    out = ours(name).prefill(model.ids(4), position_ids=positions, logits_to_keep=0)
    assert_within_rule(out.logits, r.logits, b.logits, dtype="float32", softcap=is_capped(model))


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("keep", [1, 2, 3, 4, 7])
def test_the_last_column_is_every_rows_last_token(keep: int, left: bool) -> None:
    gemma = ours("gemma3_text")
    lengths = (4, 1, 3)
    ids, mask = padded(build("gemma3_text"), lengths, left=left)
    everything = gemma.prefill(ids, attention_mask=mask, logits_to_keep=0)
    assert np.array_equal(np.isnan(everything.logits).all(axis=-1), mask == 0)
    out = gemma.prefill(ids, attention_mask=mask, logits_to_keep=keep)
    kept = min(keep, 4)
    assert out.logits.shape == (3, kept, VOCAB) and out.last_hidden_state.shape[:2] == (3, kept)
    for row, length in enumerate(lengths):
        shown = min(kept, length)
        tokens = np.flatnonzero(mask[row])[-shown:]
        assert np.abs(out.logits[row, kept - shown :] - everything.logits[row, tokens]).max() < 1e-4
        assert np.isnan(out.logits[row, : kept - shown]).all()
        assert not out.last_hidden_state[row, : kept - shown].any()


def test_columns_without_a_token_show_none() -> None:
    gemma = ours("gemma3_text")
    out = gemma.prefill([[3, 4, 5], [6]], logits_to_keep=[0, 2])
    assert np.isfinite(out.logits[0]).all() and np.isfinite(out.logits[1, 0]).all() and np.isnan(out.logits[1, 1]).all()


def test_a_graph_gives_as_many_columns_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(Emulator()).install(monkeypatch)
    gpu = load("gemma3_text", Cuda(), gemm="kernel")
    gpu.warmup(lengths=(16,))
    logits = gpu.to_host(gpu.prefill([3, 4], logits_to_keep=[1, -1]).logits)
    assert logits.shape[:2] == (1, 2) and np.array_equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("device", ["numpy", "emulator"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_one_error(device: str, value: float) -> None:
    model = load("gemma_mqa", device)
    weight = model.to_host(model._engine.weights.norm).copy()
    weight[3] = value
    object.__setattr__(model._engine.weights, "norm", model._engine.ops.memory.from_host(weight))
    for use in (
        lambda: list(model.generate_ids([3, 4], max_new_tokens=2)),
        lambda: list(model.generate_ids([3, 4], max_new_tokens=2, temperature=1.0, seed=0)),
        lambda: model.score([3, 4, 5]),
    ):
        with pytest.raises(CheckpointError, match=r"^the logits are not finite: the weights hold NaN or infinity"):
            use()


def test_one_logit_that_is_not_finite_is_enough() -> None:
    for sampler in (Sampler(), Sampler(temperature=0.7, seed=1)):
        for value in (np.nan, np.inf):
            with pytest.raises(CheckpointError, match="not finite"):
                sampler.sample(np.array([0.0, 3.0, value, 1.0], np.float32))
        assert sampler.sample(np.array([0.0, 90.0, -np.inf], np.float32)) == 1
