"""Chunked prefill, decoding and the KV cache: any split equals one pass, and caches come and go."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers.cache_utils import DynamicCache

import gemma_cuda
from gemma_cuda.errors import InputError
from tests.support import hf_forward
from tests.support.compare import assert_within_rule
from tests.support.hf_models import CAUSAL, CAUSAL_TEXT, EOS, TINY, VOCAB, build
from tests.support.parity import Array, is_capped, one_shot, ours, run_in_chunks, token_types


def assert_chunked(name: str, cuts: Sequence[int]) -> None:
    model, r, b = build(name), one_shot(name, "float64"), one_shot(name, "float32")
    cache, logits = run_in_chunks(ours(name), model.ids(), cuts)
    rule = functools.partial(assert_within_rule, dtype="float32", softcap=is_capped(model))
    rule(logits, r.logits, b.logits, what=f"logits cut at {cuts}")
    for i, (pair, exact, rounded) in enumerate(zip(cache, r.past_key_values, b.past_key_values, strict=True)):
        assert (pair is None) == (exact is None)
        for y, e, f in zip(pair or (), exact or (), rounded or (), strict=True):
            rule(y, e, f, what=f"cache[{i}] cut at {cuts}")


WINDOW = TINY.sliding_window


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "cuts",
    [(1,), (WINDOW - 1,), (WINDOW,), (WINDOW + 1, 2 * WINDOW + 2), tuple(range(1, TINY.prompt))],
    ids=["one", "window-1", "window", "straddle", "token by token"],
)
def test_chunks_equal_one_shot(name: str, cuts: tuple[int, ...]) -> None:
    assert_chunked(name, cuts)


@pytest.mark.parametrize("name", CAUSAL_TEXT)
@settings(max_examples=8)
@given(cuts=st.sets(st.integers(1, TINY.prompt - 1), max_size=12))
def test_any_split_equals_one_shot(name: str, cuts: set[int]) -> None:
    assert_chunked(name, sorted(cuts))


@pytest.mark.parametrize("name", ["gemma3", "gemma4_vision", "gemma4_unified"])
def test_splits_around_an_image_equal_one_shot_and_splits_inside_are_refused(name: str) -> None:
    model = build(name)
    spans = [(6, 16), (20, 32)]
    types = token_types(model, spans)
    r, b = (ours(name, d).prefill(model.ids(), token_type_ids=types, logits_to_keep=0) for d in ("float64", "float32"))
    for cuts in ((6,), (16,), (6, 16, 20, 32), (3, 18, 33), (32,)):
        _, logits = run_in_chunks(ours(name), model.ids(), cuts, token_type_ids=types)
        assert_within_rule(logits, r.logits, b.logits, dtype="float32", softcap=is_capped(model), what=f"cut at {cuts}")
    for cut in (7, 15, 25):
        with pytest.raises(InputError, match="span"):
            run_in_chunks(ours(name), model.ids(), (cut,), token_type_ids=types)


def greedy(gemma: gemma_cuda.Gemma, ids: Array, steps: int) -> list[int]:
    out = gemma.prefill(ids)
    tokens: list[int] = []
    for _ in range(steps):
        tokens.append(int(out.logits[0, -1].argmax()))
        out = gemma.prefill([tokens[-1]], past_key_values=out.past_key_values)
    return tokens


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_decoding_equals_generate(name: str) -> None:
    model = build(name)
    ids = model.ids(13)
    with torch.no_grad():
        generated = model.float32.generate(
            torch.from_numpy(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            attention_mask=torch.ones_like(torch.from_numpy(ids)),
        )
    expected = generated[0, 13:].tolist()
    assert len(set(expected)) > 5, "a continuation that repeats itself tests little"
    assert greedy(ours(name), ids, 20) == expected


@functools.cache
def with_tokenizer() -> gemma_cuda.Gemma:
    """gemma2 with a vocabulary of words w0 ... w159, and an end token that its continuation of `PROMPT` reaches."""
    directory = build("gemma2").path.with_name("gemma2-words")
    shutil.copytree(build("gemma2").path, directory)
    words = tokenizers.Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    eos = greedy(ours("gemma2"), PROMPT, 12)[-1]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, eos]}))
    return gemma_cuda.Gemma.from_pretrained(directory, device="numpy")


PROMPT = build("gemma2").ids(13)


def test_generate_continues_a_text_until_its_end_token() -> None:
    gemma = with_tokenizer()
    expected = greedy(ours("gemma2"), PROMPT, 12)
    stop = expected.index(expected[-1])
    pieces: list[str] = []
    text = gemma.generate(" ".join(f"w{i}" for i in PROMPT[0]), max_new_tokens=30, on_token=pieces.append)
    assert re.findall(r"w\d+", text) == [f"w{i}" for i in expected[:stop]] and stop > 2
    assert "".join(pieces) == text
    assert gemma.generate(PROMPT[0].tolist(), max_new_tokens=30) == text
    assert re.findall(r"w\d+", gemma.generate(PROMPT[0].tolist(), max_new_tokens=2)) == [f"w{i}" for i in expected[:2]]


def test_sampling_obeys_its_seed_and_top_p() -> None:
    generate = functools.partial(with_tokenizer().generate, PROMPT[0].tolist(), max_new_tokens=10)
    greedy_text = generate()
    assert generate(temperature=5.0, seed=1) == generate(temperature=5.0, seed=1)
    assert len({generate(temperature=5.0, seed=seed) for seed in range(5)}) > 1
    assert generate(temperature=1.0, top_p=1e-6, seed=3) == greedy_text


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b", "gemma4_31b"])
def test_cache_goes_to_transformers_and_comes_back(name: str) -> None:
    """Three stretches of a prompt, the second run by Transformers from our cache, the third by us from theirs."""
    model, gemma = build(name), ours(name)
    ids = model.ids(30)
    r, b = (hf_forward.forward(m, ids) for m in (model.float64, model.float32))
    rule = functools.partial(assert_within_rule, dtype="float32", softcap=is_capped(model))
    first = gemma.prefill(ids[:, :11])
    theirs = first.past_key_values.to_transformers()
    middle = hf_forward.forward(model.float32, ids[:, 11:20], cache=theirs)
    rule(middle.logits, r.logits, b.logits, at=np.s_[:, 11:20], what="Transformers on our cache")
    back = type(first.past_key_values).from_transformers(theirs, gemma)
    last = gemma.prefill(ids[:, 20:], past_key_values=back, logits_to_keep=0)
    rule(last.logits, r.logits, b.logits, at=np.s_[:, 20:], what="ours on Transformers' cache")


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_e2b"])
def test_cache_for_transformers_sliding_layers(name: str) -> None:
    """With the config, sliding layers arrive as Transformers keeps them, w - 1 positions, and generation goes on."""
    model, gemma = build(name), ours(name)
    ids = model.ids(30)
    b = hf_forward.forward(model.float32, ids)
    r = hf_forward.forward(model.float64, ids)
    theirs = gemma.prefill(ids[:, :21]).past_key_values.to_transformers(model.float32.config)
    native = DynamicCache(config=model.float32.config)
    hf_forward.forward(model.float32, ids[:, :21], cache=native)
    assert [type(layer) for layer in theirs.layers] == [type(layer) for layer in native.layers]
    for mine, expected in zip(theirs.layers, native.layers, strict=True):
        if expected.keys is not None:  # None on layers that read another's
            assert mine.keys.shape == expected.keys.shape and mine.get_seq_length() == 21
    rest = hf_forward.forward(model.float32, ids[:, 21:], cache=theirs)
    assert_within_rule(
        rest.logits, r.logits, b.logits, at=np.s_[:, 21:], dtype="float32", softcap=is_capped(model), what="logits"
    )


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_text", "gemma4_e2b"])
def test_saved_cache_continues_with_the_same_bits(name: str, tmp_path: Path) -> None:
    gemma, ids = ours(name), build(name).ids()
    cache = gemma.prefill(ids[:, :25]).past_key_values
    cache.save(tmp_path / "cache.safetensors")
    loaded = type(cache).load(tmp_path / "cache.safetensors")
    for mine, theirs in zip(cache, loaded, strict=True):
        assert (mine is None) == (theirs is None)
        assert all(np.array_equal(a, c) for a, c in zip(mine or (), theirs or (), strict=True))
    again = gemma.prefill(ids[:, 25:], past_key_values=loaded).logits
    assert np.array_equal(again, gemma.prefill(ids[:, 25:], past_key_values=cache).logits)


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma4_e2b"])
def test_cropped_and_copied_caches(name: str) -> None:
    """A cropped cache is that of the shorter prompt; a copy does not follow its original."""
    gemma, ids = ours(name), build(name).ids()
    whole = gemma.prefill(ids).past_key_values
    branch = whole.copy()
    branch.crop(18)
    short = gemma.prefill(ids[:, :18]).past_key_values
    for mine, expected, exact in zip(
        branch, short, ours(name, "float64").prefill(ids[:, :18]).past_key_values, strict=True
    ):
        for y, b, r in zip(mine or (), expected or (), exact or (), strict=True):
            assert_within_rule(y, r, b, dtype="float32", what="cropped cache")
    assert_within_rule(
        gemma.prefill(ids[:, 18:], past_key_values=branch).logits,
        one_shot(name, "float64").logits,
        one_shot(name, "float32").logits,
        at=np.s_[:, -1:],
        dtype="float32",
        softcap=is_capped(build(name)),
        what="prompt continued from a crop",
    )
    assert all(pair is None or pair[0].shape[2] == 40 for pair in whole)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_e2b"])
def test_trimmed_cache_continues(name: str) -> None:
    """trim_sliding drops what no later query sees."""
    model, gemma = build(name), ours(name)
    ids = model.ids()
    whole = gemma.prefill(ids[:, :25]).past_key_values
    trimmed = gemma.prefill(ids[:, :25], trim_sliding=True).past_key_values
    assert trimmed.nbytes() < whole.nbytes()
    for window, pair in zip(trimmed.sliding_windows, trimmed, strict=True):
        assert pair is None or pair[0].shape[2] == (25 if window is None else window - 1)
    y = gemma.prefill(ids[:, 25:], past_key_values=trimmed, logits_to_keep=0).logits
    r, b = (one_shot(name, dtype).logits for dtype in ("float64", "float32"))
    assert_within_rule(y, r, b, at=np.s_[:, 25:], dtype="float32", softcap=is_capped(model), what="logits")
