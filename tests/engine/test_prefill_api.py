"""What Gemma.prefill and its companions refuse, in which words, and that a refusal changes nothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.errors import CacheError, DeviceError, InputError
from tests.support import hf_models
from tests.support.hf_models import VOCAB, build

Array = np.ndarray[Any, Any]
HIDDEN = hf_models.TINY.hidden_size
S = 12


@functools.cache
def model(name: str = "gemma3_text", dtype: str = "float32") -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(build(name).path, device="numpy", dtype=dtype)


def ids(length: int = S, batch: int = 1) -> Array:
    return build("gemma3_text").ids(length, batch=batch)


def embeds(*shape: int) -> Array:
    return np.ones(shape, np.float32)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing given": ({}, r"input_ids or inputs_embeds"),
    "an id above the vocabulary": ({"input_ids": [1, 2, VOCAB]}, rf"input_ids.*{VOCAB}.*vocabulary"),
    "a negative id": ({"input_ids": [[1, -1]]}, r"input_ids.*-1.*vocabulary"),
    "an empty prompt": ({"input_ids": []}, r"input_ids.*empty"),
    "an empty batch": ({"input_ids": np.zeros((0, 4), int)}, r"input_ids.*empty"),
    "an empty row": ({"input_ids": [[1, 2], []]}, r"input_ids.*empty"),
    "rows of no columns": ({"input_ids": np.zeros((2, 0), int)}, r"input_ids.*empty"),
    "float ids": ({"input_ids": [1.0, 2.0]}, r"input_ids.*float64.*integers"),
    "boolean ids": ({"input_ids": [True, False]}, r"input_ids.*bool.*integers"),
    "a scalar id": ({"input_ids": 5}, r"input_ids.*\[S\] or \[B, S\]"),
    "3-D ids": ({"input_ids": np.zeros((1, 2, 3), int)}, r"input_ids"),
    "lists of lists of lists": ({"input_ids": [[[1, 2]], [[3]]]}, r"input_ids"),
    "ids that are names": ({"input_ids": [["a", "b"]]}, r"input_ids.*array of numbers"),
    "1-D embeddings": ({"inputs_embeds": embeds(HIDDEN)}, rf"inputs_embeds is \[{HIDDEN}\], expected \[B, S, E\]"),
    "embeddings of another width": ({"inputs_embeds": embeds(1, S, HIDDEN + 1)}, rf"inputs_embeds.*E = {HIDDEN}"),
    "integer embeddings": ({"inputs_embeds": np.ones((1, S, HIDDEN), int)}, r"inputs_embeds is int64"),
    "no embeddings": ({"inputs_embeds": embeds(1, 0, HIDDEN)}, r"inputs_embeds.*empty"),
    "ids and embeddings that differ": (
        {"input_ids": ids(), "inputs_embeds": embeds(1, S + 1, HIDDEN)},
        r"inputs_embeds.*input_ids.*differ",
    ),
    "NaN among the embeddings": ({"inputs_embeds": np.full((1, S, HIDDEN), np.nan, np.float32)}, r"inputs_embeds.*NaN"),
    "infinity among the embeddings": (
        {"inputs_embeds": np.full((1, S, HIDDEN), np.inf, np.float32)},
        r"inputs_embeds.*inf",
    ),
    "a mask of another length": (
        {"attention_mask": np.ones((1, S + 1), int)},
        r"attention_mask is \[1, 13\], expected",
    ),
    "a mask of another batch": ({"attention_mask": np.ones((2, S), int)}, r"attention_mask is \[2, 12\], expected"),
    "a mask of halves": ({"attention_mask": np.full((1, S), 0.5)}, r"attention_mask.*0.*1"),
    "a mask of twos": ({"attention_mask": np.full((1, S), 2)}, r"attention_mask.*0.*1"),
    "a mask that hides a row": ({"attention_mask": np.zeros((1, S), int)}, r"attention_mask.*row 0"),
    "a mask with a hole": ({"attention_mask": [[1] * 5 + [0] + [1] * 6]}, r"attention_mask.*row 0.*between"),
    "a 4-D mask": ({"attention_mask": np.zeros((1, 1, S, S))}, r"attention_mask.*attn_bias"),
    "a mask of ragged rows": (
        {"input_ids": [[1, 2, 3], [4]], "attention_mask": [[1, 1, 1], [1, 0, 0]]},
        r"attention_mask",
    ),
    "positions of another length": ({"position_ids": np.arange(S + 1)}, r"position_ids is \[13\], expected"),
    "negative positions": ({"position_ids": np.arange(S) - 1}, r"position_ids.*-1.*negative"),
    "float positions": ({"position_ids": np.arange(S) / 2}, r"position_ids.*integers"),
    "token types of another length": ({"token_type_ids": np.zeros(S - 1, int)}, r"token_type_ids is \[11\], expected"),
    "unknown token types": ({"token_type_ids": np.full(S, 4)}, r"token_type_ids"),
    "token types under both names": (
        {"token_type_ids": np.zeros(S, int), "mm_token_type_ids": np.zeros(S, int)},
        r"token_type_ids and mm_token_type_ids",
    ),
    "a boolean bias": ({"attn_bias": np.ones((1, 1, S, S), bool)}, r"attn_bias is bool"),
    "an integer bias": ({"attn_bias": np.zeros((1, 1, S, S), int)}, r"attn_bias is int64"),
    "a 2-D bias": ({"attn_bias": embeds(S, S)}, r"attn_bias is \[12, 12\], expected \[B or 1, H or 1, S, T\]"),
    "a bias of too few keys": ({"attn_bias": embeds(1, 1, S, S - 1)}, r"attn_bias is \[1, 1, 12, 11\], expected"),
    "a bias of two heads": ({"attn_bias": embeds(1, 2, S, S)}, r"attn_bias is \[1, 2, 12, 12\], expected.*4, 12, 12"),
    "a bias of another batch": ({"attn_bias": embeds(3, 1, S, S)}, r"attn_bias is \[3, 1, 12, 12\], expected"),
    "a bias for an unknown layer type": ({"attn_bias": {"chunked": embeds(1, 1, S, S)}}, r"attn_bias.*chunked"),
    "NaN in a bias": ({"attn_bias": np.full((1, 1, S, S), np.nan, np.float32)}, r"attn_bias.*NaN"),
    "infinity in a bias": ({"attn_bias": np.full((1, 1, S, S), np.inf, np.float32)}, r"attn_bias.*\+inf"),
    "a bias with padding": (
        {"attn_bias": embeds(1, 1, S, S), "attention_mask": [[0] + [1] * (S - 1)]},
        r"attn_bias.*padding",
    ),
    "negative rows to keep": ({"logits_to_keep": -1}, r"logits_to_keep is -1"),
    "half a row to keep": ({"logits_to_keep": 1.5}, r"logits_to_keep is 1.5"),
    "a flag for rows to keep": ({"logits_to_keep": True}, r"logits_to_keep is True"),
    "a column outside the prompt": ({"logits_to_keep": [S]}, r"logits_to_keep"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_prefill_refuses(arguments: dict[str, Any], message: str) -> None:
    if arguments and not {"input_ids", "inputs_embeds"} & set(arguments):
        arguments = {"input_ids": ids(), **arguments}
    with pytest.raises(InputError, match=message):
        model().prefill(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [arguments for arguments, _ in REFUSED.values() if arguments],
    ids=[name for name, (arguments, _) in REFUSED.items() if arguments],
)
def test_a_refusal_leaves_the_cache_as_it_was(arguments: dict[str, Any]) -> None:
    cache = model().prefill(ids(9)).past_key_values
    before = cache.copy()
    if not {"input_ids", "inputs_embeds"} & set(arguments):
        arguments = {"input_ids": ids(), **arguments}
    if "attn_bias" in arguments and not isinstance(arguments["attn_bias"], dict) and arguments["attn_bias"].ndim == 4:
        arguments = arguments | {"attn_bias": np.pad(arguments["attn_bias"], [(0, 0), (0, 0), (0, 0), (9, 0)])}
    with pytest.raises(InputError):
        model().prefill(**arguments, past_key_values=cache)
    assert_same_cache(cache, before)


def assert_same_cache(cache: Any, before: Any) -> None:
    assert cache.seq_length == before.seq_length
    for mine, old in zip(cache, before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, old, strict=True))


def test_per_layer_embeddings_need_ids() -> None:
    with pytest.raises(InputError, match=r"inputs_embeds.*input_ids"):
        model("gemma4_e2b").prefill(inputs_embeds=embeds(1, S, HIDDEN))


def test_caches_of_other_models_are_refused() -> None:
    cache = model().prefill(ids(9)).past_key_values
    for other in (model("gemma3_text_capped"), model("gemma2"), model("gemma4_e2b"), model(dtype="bfloat16")):
        before = cache.copy()
        with pytest.raises(CacheError, match="past_key_values"):
            other.prefill(ids(), past_key_values=cache)
        assert_same_cache(cache, before)


def test_a_cache_of_the_same_shapes_but_other_weights_is_refused() -> None:
    same_shapes = model("gemma3").prefill(ids(9)).past_key_values
    with pytest.raises(CacheError, match="another model"):
        model().prefill(ids(), past_key_values=same_shapes)


def test_a_cache_of_another_batch_is_refused() -> None:
    cache = model().prefill(ids(9, batch=2)).past_key_values
    with pytest.raises(CacheError, match=r"past_key_values has 2 rows, the prompt has 1"):
        model().prefill(ids(), past_key_values=cache)


def test_what_is_not_a_cache_is_refused() -> None:
    with pytest.raises(InputError, match="past_key_values"):
        model().prefill(ids(), past_key_values=((np.zeros(1), np.zeros(1)),) * 7)  # type: ignore[arg-type]


def test_bidirectional_text_cannot_be_continued() -> None:
    gemma = model("embedding_gemma")
    cache = gemma.prefill(ids(9)).past_key_values
    with pytest.raises(CacheError, match="bidirectional"):
        gemma.prefill(ids(), past_key_values=cache)


def test_a_cut_inside_an_image_is_refused_and_the_cache_kept() -> None:
    gemma = model("gemma3")
    types = np.zeros((1, S), int)
    types[:, 3:9] = 1
    cache = gemma.prefill(ids()[:, :6], token_type_ids=types[:, :6]).past_key_values
    before = cache.copy()
    with pytest.raises(InputError, match="span"):
        gemma.prefill(ids()[:, 6:], token_type_ids=types[:, 6:], past_key_values=cache)
    assert_same_cache(cache, before)


def test_crop_refuses_what_it_cannot_do() -> None:
    gemma = model("gemma3")
    types = np.zeros((1, S), int)
    types[:, 3:9] = 1
    cache = gemma.prefill(ids(), token_type_ids=types).past_key_values
    for length in (S + 1, -S - 1):
        with pytest.raises(CacheError, match=f"crop: length {length}"):
            cache.crop(length)
    with pytest.raises(CacheError, match=r"crop.*span 3:9"):
        cache.crop(5)
    cache.crop(9)
    assert cache.seq_length == 9
    cache.crop(-6)
    assert cache.seq_length == 3
    cache.crop(0)
    assert cache.seq_length == 0


def test_a_paligemma_prefix_after_its_suffix_is_refused() -> None:
    types = np.array([[0, 0, 1, 1, 0, 1] + [1] * 6])
    with pytest.raises(InputError, match=r"token_type_ids.*prefix"):
        model("paligemma").prefill(ids(), token_type_ids=types)


def test_features_must_match_their_placeholders() -> None:
    gemma = model("gemma3")
    prompt = ids().copy()
    prompt[0, 2:6] = hf_models.IMAGE
    x = gemma.embed(prompt)
    with pytest.raises(InputError, match=r"features has 3 rows, input_ids 4 placeholders"):
        gemma.merge_features(x, embeds(3, HIDDEN), prompt)
    with pytest.raises(InputError, match=rf"features is \[4, {HIDDEN - 1}\], expected \[..., E\]"):
        gemma.merge_features(x, embeds(4, HIDDEN - 1), prompt)
    with pytest.raises(InputError, match=r"input_ids is \[1, 11\], inputs_embeds"):
        gemma.merge_features(x, embeds(4, HIDDEN), prompt[:, 1:])
    with pytest.raises(InputError, match=r"placeholder"):
        model().merge_features(x, embeds(4, HIDDEN), prompt)
    merged = gemma.merge_features(x, embeds(1, 4, HIDDEN), prompt)
    assert np.array_equal(merged[0, 2:6], embeds(4, HIDDEN)) and np.array_equal(merged[0, 6:], x[0, 6:])
    assert not np.array_equal(x[0, 2:6], merged[0, 2:6]), "the caller's array is left alone"


def test_nan_at_padding_is_not_looked_at() -> None:
    """Padding may hold anything; it neither refuses the prompt nor reaches a token."""
    x = model().embed(ids(batch=2))
    mask = np.ones((2, S), int)
    mask[1, :5] = 0
    poisoned = np.where(mask[..., None] == 1, x, np.nan)
    out = model().prefill(inputs_embeds=poisoned, attention_mask=mask, logits_to_keep=0, output_hidden_states=True)
    clean = model().prefill(inputs_embeds=x, attention_mask=mask, logits_to_keep=0)
    assert np.array_equal(out.logits, clean.logits, equal_nan=True)
    assert np.isfinite(out.logits[mask == 1]).all()
    assert all(np.isfinite(state).all() for state in out.hidden_states)
    assert all(np.isfinite(k).all() and np.isfinite(v).all() for k, v in out.past_key_values)


def test_projector_refuses_other_shapes() -> None:
    gemma = model("gemma3")
    with pytest.raises(InputError, match=r"tower_output is \[1, 64, 15\]"):
        gemma.project_image_features(embeds(1, 64, 15))
    with pytest.raises(InputError, match=r"tower_output has 63 patches"):
        gemma.project_image_features(embeds(1, 63, 16))
    with pytest.raises(InputError, match="projector"):
        model().project_image_features(embeds(1, 64, 16))


def test_image_markers_expand() -> None:
    assert model("gemma4_vision").expand_image_tokens([2, 7, hf_models.IMAGE, 8], 3) == [
        2, 7, hf_models.BOI, *[hf_models.IMAGE] * 3, hf_models.EOI, 8,
    ]  # fmt: skip
    assert model("gemma3").expand_image_tokens([2, hf_models.BOI, 8], [2]) == [
        2, 108, hf_models.BOI, *[hf_models.IMAGE] * 2, hf_models.EOI, 108, 8,
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"1 image markers.*2 counts"):
        model("gemma4_vision").expand_image_tokens([hf_models.IMAGE], [3, 4])
    with pytest.raises(InputError, match="at least one"):
        model("gemma4_vision").expand_image_tokens([hf_models.IMAGE], [0])
    with pytest.raises(InputError, match="no images"):
        model().expand_image_tokens([2], [1])


def test_score_is_the_log_probability_of_each_next_token() -> None:
    prompt = ids(20)
    logits = model(dtype="float64").prefill(prompt, logits_to_keep=0).logits[0]
    shifted = logits - logits.max(axis=-1, keepdims=True)
    expected = (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))[np.arange(19), prompt[0, 1:]]
    scores = model().score(prompt[0].tolist())
    assert scores.shape == (19,)
    # Measured against float64: the logits differ by about 1e-5 (test_model), and so do the scores.
    assert np.abs(scores - expected).max() < 1e-4
    for wrong in ([], [5], [[1, 2], [3, 4]], [1, VOCAB]):
        with pytest.raises(InputError):
            model().score(wrong)


def test_logits_to_keep_takes_columns() -> None:
    everything = model().prefill(ids(), logits_to_keep=0)
    some = model().prefill(ids(), logits_to_keep=[0, -1, 4])
    assert some.logits.shape == (1, 3, VOCAB)
    assert np.abs(some.logits[0] - everything.logits[0][[0, -1, 4]]).max() < 1e-4


def test_more_rows_than_the_prompt_has_keeps_all() -> None:
    assert model().prefill(ids(), logits_to_keep=100).logits.shape[1] == S


def test_one_dimension_is_a_batch_of_one() -> None:
    out = model().prefill(ids()[0].tolist())
    assert out.logits.shape == (1, 1, VOCAB) and out.last_hidden_state.shape == (1, 1, HIDDEN)
    assert out.hidden_states is None
    k, v = out.past_key_values[0]
    assert k.shape == v.shape == (1, 2, S, 32)


def test_arguments_are_not_written_to() -> None:
    x = model().embed(ids())
    prompt, mask, kept = ids(), np.ones((1, S), int), x.copy()
    model().prefill(prompt, attention_mask=mask)
    model().prefill(inputs_embeds=x, output_hidden_states=True)
    assert np.array_equal(prompt, ids()) and mask.all() and np.array_equal(x, kept)


def test_outputs_do_not_share_memory_with_the_model() -> None:
    first = model().prefill(ids(), logits_to_keep=0, output_hidden_states=True)
    before = first.logits.copy()
    for array in (*first.hidden_states, first.last_hidden_state, first.logits):
        array[...] = 0
    assert np.array_equal(model().prefill(ids(), logits_to_keep=0).logits, before)


def test_layer_hook_may_replace_what_a_layer_gives() -> None:
    out = model().prefill(ids(), layer_hook=lambda layer, x: np.zeros_like(x) if layer == 6 else None, logits_to_keep=0)
    assert np.all(out.last_hidden_state == 0)
    with pytest.raises(InputError, match=r"layer_hook returned float64 \[3\]"):
        model().prefill(ids(), layer_hook=lambda layer, x: np.zeros(3))


def test_a_hook_that_raises_leaves_the_cache_as_it_was() -> None:
    cache = model().prefill(ids(9)).past_key_values
    before = cache.copy()

    def stop(layer: int, x: Array) -> None:
        raise KeyError("stop here")

    with pytest.raises(KeyError, match="stop here"):
        model().prefill(ids(), past_key_values=cache, layer_hook=stop)
    assert_same_cache(cache, before)
    again = model().prefill(ids(), past_key_values=cache).logits
    assert np.array_equal(again, model().prefill(ids(), past_key_values=before).logits)


def test_float16_and_unknown_names_are_refused_with_the_reason() -> None:
    path = build("gemma3_text").path
    with pytest.raises(InputError, match=r"float16.*overflows"):
        gemma_cuda.Gemma.from_pretrained(path, device="numpy", dtype="float16")
    with pytest.raises(InputError, match="int8"):
        gemma_cuda.Gemma.from_pretrained(path, device="numpy", dtype="int8")
    with pytest.raises((InputError, DeviceError), match="tpu"):
        gemma_cuda.Gemma.from_pretrained(path, device="tpu")


def test_a_loaded_model_says_what_it_is() -> None:
    gemma = model()
    assert (gemma.device, gemma.dtype) == ("numpy", "float32")
    assert gemma.device_reason and gemma.config.num_hidden_layers == 7
    done: list[tuple[int, int]] = []
    gemma_cuda.Gemma.from_pretrained(
        build("gemma3_text").path, device="numpy", progress=lambda n, total: done.append((n, total))
    )
    assert done == sorted(done) and done[-1][0] == done[-1][1] > 0


@pytest.mark.parametrize("damage", ["not a file", "no metadata", "cut", "another layout"])
def test_what_is_not_a_saved_cache_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save_file

    cache = model().prefill(ids()).past_key_values
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    if damage == "not a file":
        path = tmp_path / "absent.safetensors"
    elif damage == "no metadata":
        save_file({"x": np.zeros(3)}, path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    with pytest.raises(CacheError, match=path.name):
        type(cache).load(path)


def test_saving_a_cache_is_atomic(tmp_path: Path) -> None:
    cache = model().prefill(ids()).past_key_values
    with pytest.raises(CacheError, match="cannot be written"):
        cache.save(tmp_path / "absent" / "cache.safetensors")
    cache.save(tmp_path / "cache.safetensors")
    cache.save(tmp_path / "cache.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]
