"""The tokenizer: HuggingFace's and SentencePiece's ids from every source, decoding, chat templates, damaged files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.tokenization_utils_base import generate_merges

from gemma_cuda.errors import InputError, TokenizerError
from gemma_cuda.text.bpe_vocabulary import merges_from_scores
from gemma_cuda.text.sentencepiece_file import read_sentencepiece_model
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.tokenizer_models import (
    AWKWARD,
    CONTROL,
    CORPUS,
    SPACE,
    USER_DEFINED,
    Pieces,
    Sources,
    any_text,
    string_array,
    train,
    without,
    write_config,
)  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(sources: Sources) -> Tokenizer:
    return sources.tokenizers["gguf"]


def test_pieces_read_from_a_model_file_are_sentencepieces_own(sources: Sources) -> None:
    read = read_sentencepiece_model(sources.model_directory / "tokenizer.model")
    assert read.tokens == sources.pieces.tokens
    assert read.types.tolist() == sources.pieces.types
    assert read.scores is not None
    assert read.scores.tolist() == sources.pieces.scores
    assert read.unk_token == "<unk>"


@settings(max_examples=400)
@given(text=any_text)
def test_ids_are_sentencepieces_where_no_control_token_is_written_out(sources: Sources, text: str) -> None:
    text = without(text, *CONTROL, SPACE)
    expected = sources.sentencepiece.encode(text)
    for name, tokenizer in sources.tokenizers.items():
        assert tokenizer.encode(text, add_special_tokens=False) == expected, name


@settings(max_examples=600)
@given(text=any_text)
def test_ids_are_huggingfaces_for_any_text(sources: Sources, text: str) -> None:
    expected = sources.huggingface.encode(text, add_special_tokens=False)
    with_bos = expected if expected[:1] == [2] else [2, *expected]
    for name, tokenizer in sources.tokenizers.items():
        assert tokenizer.encode(text, add_special_tokens=False) == expected, name
        assert tokenizer.encode(text) == with_bos, name


@settings(max_examples=400)
@given(text=any_text)
def test_text_survives_encoding_and_decoding(sources: Sources, text: str) -> None:
    for name, tokenizer in sources.tokenizers.items():
        decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False)
        assert decoded == text.replace(SPACE, " "), name


@settings(max_examples=400)
@given(ids=st.lists(st.one_of(st.integers(0, 1300), st.integers(26, 300), st.sampled_from([0, 1, 2, 7, 8, 4, 6]))))
def test_decoding_any_ids_is_huggingfaces_and_the_streams(sources: Sources, ids: list[int]) -> None:
    for name, tokenizer in sources.tokenizers.items():
        for skip in (True, False):
            expected = sources.huggingface.backend_tokenizer.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected, name
            stream = tokenizer.stream(skip_special_tokens=skip)
            assert "".join([stream.push(i) for i in ids]) + stream.flush() == expected, name


@settings(max_examples=200)
@given(text=any_text.filter(lambda text: "\ufffd" not in text))
def test_a_stream_never_emits_part_of_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream(skip_special_tokens=False)
    pieces = [stream.push(i) for i in tokenizer.encode(text, add_special_tokens=False)] + [stream.flush()]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text.replace(SPACE, " ")


def test_a_stream_keeps_leading_spaces_and_shows_text_at_once(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(" the dog  the", add_special_tokens=False)]
    assert all(pieces)
    assert "".join(pieces) == " the dog  the"
    assert stream.flush() == ""


def test_numpy_ids_decode(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("the fox"), np.int32)
    assert tokenizer.decode(ids) == "the fox"
    assert tokenizer.stream().push(ids[-1]) == " fox"


def test_special_tokens_are_hidden_only_on_request(sources: Sources) -> None:
    text = "<bos><start_of_turn>the<end_of_turn><eos><mask><unused0><b>"
    for name, tokenizer in sources.tokenizers.items():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, name
        assert tokenizer.decode(ids) == "the<unused0><b>", name


def test_bos_is_never_doubled(sources: Sources) -> None:
    for tokenizer in sources.tokenizers.values():
        assert tokenizer.bos_token_id == 2
        assert tokenizer.encode("the") == [2, *tokenizer.encode("the", add_special_tokens=False)]
        assert tokenizer.encode("<bos>the") == tokenizer.encode("the")
        assert tokenizer.encode("") == tokenizer.encode("<bos>") == [2]
        assert tokenizer.encode("", add_special_tokens=False) == []


def test_token_ids_and_sizes(sources: Sources) -> None:
    for tokenizer in sources.tokenizers.values():
        assert tokenizer.vocab_size == len(sources.pieces.tokens)
        assert (tokenizer.eos_token_id, tokenizer.token_id("<end_of_turn>"), tokenizer.token_id("<nope>")) == (
            1,
            8,
            None,
        )
        with pytest.raises(TokenizerError):
            tokenizer.token_id("\ud800")


def test_gguf_flags(sources: Sources) -> None:
    def ids(**changes: Any) -> list[int]:
        return Tokenizer.from_gguf(sources.pieces.gguf(**changes)).encode("\n")

    assert ids(add_bos=None) == [2, 26]
    assert ids(add_bos=False) == [26]
    assert ids(add_eos=True) == [2, 26, 1]
    assert ids(eos_id=8, add_eos=True) == [2, 26, 8]
    assert ids(bos_id=None, eos_id=None) == [2, 26]


def test_an_unknown_token_of_its_own_type_is_matched_in_text(sources: Sources) -> None:
    vocabulary = sources.pieces.gguf()
    assert vocabulary.types is not None
    types = np.where(np.arange(len(vocabulary.tokens)) == 3, 2, vocabulary.types).astype(np.int32)
    tokenizer = Tokenizer.from_gguf(replace(vocabulary, types=types))
    assert tokenizer.encode("<unk>\n") == [2, 3, 26]
    assert tokenizer.decode([3, 26]) == "\n"


def test_a_gemma4_vocabulary_brings_its_merges_and_adds_no_bos(sources: Sources) -> None:
    merges = merges_from_scores(sources.pieces.tokens, np.array(sources.pieces.scores))
    vocabulary = sources.pieces.gguf(
        model="gemma4",
        scores=None,
        tokens=string_array([token.encode() for token in sources.pieces.tokens]),
        merges=string_array([f"{left} {right}".encode() for left, right in merges]),
    )
    tokenizer = Tokenizer.from_gguf(vocabulary)
    for text in (*CORPUS, "".join(AWKWARD)):
        assert tokenizer.encode(text) == sources.huggingface.encode(text, add_special_tokens=False)


def test_a_vocabulary_without_a_tab_uses_its_byte_token(tmp_path: Path) -> None:
    user_defined = [token for token in USER_DEFINED if token != "\t"]
    pieces = Pieces.of(model := train(user_defined), user_defined)
    (tmp_path / "tokenizer.model").write_bytes(model)
    trained = replace(pieces, types=[1 if t == "\t\t" else i for t, i in zip(pieces.tokens, pieces.types, strict=True)])
    byte, pair = pieces.tokens.index("<0x09>"), pieces.tokens.index("\t\t")
    for tokenizer in (Tokenizer.from_directory(tmp_path), *(Tokenizer.from_gguf(p.gguf()) for p in (pieces, trained))):
        assert tokenizer.encode("\tx\t\t", add_special_tokens=False)[0::2] == [byte, pair]
        assert tokenizer.decode([byte, pair]) == "\t\t\t"
        for text in ("\t", "a\t\t\tb", "\t\t\n\t"):
            assert tokenizer.encode(text) == pieces.huggingface().encode(text)


def test_declared_tokens_extend_a_tokenizer_model(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sources.model)
    n = len(sources.pieces.tokens)
    image = {str(n): {"content": "<image_soft_token>", "special": True}, "2": {"content": "<bos>", "special": True}}
    image["9"] = {"content": "<b>", "special": True}
    write_config(tmp_path, added_tokens_decoder=image)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode("<b>a</b>")) == "a</b>"
    assert tokenizer.encode("a<image_soft_token>b")[2] == n
    assert tokenizer.vocab_size == n + 1
    write_config(tmp_path, added_tokens_decoder={str(n + 5): {"content": "<image_soft_token>"}})
    with pytest.raises(TokenizerError, match=f"tokenizer_config.json.*<image_soft_token>.*{n + 5}"):
        Tokenizer.from_directory(tmp_path)


@settings(max_examples=300)
@given(
    vocabulary=st.dictionaries(
        st.text("ab▁\n\U0001f600é", max_size=6), st.sampled_from([0.0, -1.0, -1.5, -2.0]), min_size=1
    )
)
def test_merges_are_transformers_merges(vocabulary: dict[str, float]) -> None:
    tokens = list(vocabulary)
    expected = generate_merges({token: i for i, token in enumerate(tokens)}, vocabulary)
    assert merges_from_scores(tokens, np.array(list(vocabulary.values()), np.float32)) == expected


@pytest.mark.parametrize("text", ["\ud800", "abc\udfff", "\udcff\ud83d\ude00"])
def test_unpaired_surrogates_are_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TokenizerError, match="unpaired surrogate"):
        tokenizer.encode(text)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_text_must_be_a_str(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(InputError, match=r"expected a text \(str\)"):
        tokenizer.encode(text)


@pytest.mark.parametrize("ids", [[-1], [1 << 32], [1.5], ["a"], 3, None, [None]])
def test_ids_must_be_token_ids(tokenizer: Tokenizer, ids: Any) -> None:
    with pytest.raises(InputError, match="id"):
        tokenizer.decode(ids)


def test_importing_the_tokenizer_imports_no_library() -> None:
    heavy = ["tokenizers", "sentencepiece", "jinja2", "gguf", "transformers", "torch", "huggingface_hub"]
    code = f"import sys, gemma_cuda.text.tokenizer; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
