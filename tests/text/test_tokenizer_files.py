"""The files around a vocabulary: what configures it is heeded, what is damaged is one TokenizerError naming it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_cuda.errors import TokenizerError
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.tokenizer_models import CORPUS, Pieces, Sources, string_array, train, write_config


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [2, 26]),
        ({"add_bos_token": True}, [2, 26]),
        ({"add_bos_token": False}, [26]),
        ({"add_bos_token": True, "add_eos_token": True}, [2, 26, 1]),
        ({"add_eos_token": True}, [26, 1]),  # as Transformers: naming one flag sets both
        ({"add_bos_token": True, "bos_token": {"content": "<pad>", "special": True}}, [0, 26]),
        ({"add_eos_token": True, "eos_token": "<end_of_turn>"}, [26, 8]),
    ],
)
def test_tokenizer_config_decides_the_frame(
    sources: Sources, tmp_path: Path, config: dict[str, Any], expected: list[int]
) -> None:
    for origin in (sources.model_directory / "tokenizer.model", sources.json_directory / "tokenizer.json"):
        directory = tmp_path / origin.name
        directory.mkdir()
        (directory / origin.name).write_bytes(origin.read_bytes())
        write_config(directory, **config)
        assert Tokenizer.from_directory(directory).encode("\n") == expected


def test_a_tokenizer_json_says_itself_whether_bos_is_added(sources: Sources, tmp_path: Path) -> None:
    data = json.loads((sources.json_directory / "tokenizer.json").read_text())
    for processor, expected in ((data["post_processor"], [2, 26]), (None, [26])):
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"post_processor": processor}))
        assert Tokenizer.from_directory(tmp_path).encode("\n") == expected


def test_named_tokens_are_special_whatever_a_tokenizer_json_says(sources: Sources, tmp_path: Path) -> None:
    data = json.loads((sources.json_directory / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    write_config(tmp_path, eos_token="<end_of_turn>", image_token={"content": "<b>"})
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode("<mask>x<end_of_turn><b></b><eos>")) == "x</b><eos>"


def test_baked_truncation_and_padding_are_ignored(sources: Sources, tmp_path: Path) -> None:
    backend = sources.huggingface.backend_tokenizer.from_file(str(sources.json_directory / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=10)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = CORPUS[1]
    assert Tokenizer.from_directory(tmp_path).encode(text) == sources.tokenizers["gguf"].encode(text)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no such file"):
        Tokenizer.from_pretrained(tmp_path / "absent")


def test_a_tokenizer_json_without_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: the vocabulary is empty"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "model_type is 1"),
        ({"normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
    ],
)
def test_a_sentencepiece_model_that_is_not_gemmas(tmp_path: Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**options))
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model: .*{message}"):
        Tokenizer.from_directory(tmp_path)


def test_a_sentencepiece_model_with_an_unknown_piece_type(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(Pieces(["a"], [0.0], [7]).model_file())
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: .*'a' has type 7"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt2"}, "tokenizer.ggml.model is 'gpt2'"),
        ({"types": None}, "token_type is missing"),
        ({"scores": None}, "neither scores nor merges"),
        ({"types": np.ones(3, np.int32)}, "3 token types for 1200 tokens"),
        ({"scores": np.ones(3, np.float32)}, "3 scores for 1200 tokens"),
        ({"scores": np.full(1200, np.nan, np.float32)}, "score of token 0 is not finite"),
        ({"bos_id": 1200}, "bos is token 1200, the vocabulary has 1200"),
        ({"eos_id": -1}, "eos is token -1"),
        ({"tokens": string_array([])}, "vocabulary is empty|bos is token 2"),
        ({"tokens": string_array([b"\xff"] * 1200)}, "token 0 is .*not UTF-8"),
        ({"tokens": string_array([b"a"] * 1200)}, "tokens 0 and 1199 are both 'a'"),
        ({"merges": string_array([b"nospace"])}, "merge 0 is b'nospace'"),
        ({"merges": string_array([b"no such"])}, "model.gguf: "),
    ],
)
def test_an_inconsistent_gguf_vocabulary(sources: Sources, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_gguf(replace(sources.pieces.gguf(), **changes))
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        "", "{", "[]", "3", "[" * 100_000, '{"add_bos_token": 1}', '{"chat_template": 3}',
        '{"chat_template": [{"name": "default", "template": 3}]}', '{"added_tokens_decoder": 3}',
        '{"added_tokens_decoder": {"x": {}}}', '{"added_tokens_decoder": {"5000": {"content": 3}}}',
        '{"added_tokens_decoder": {"5000": {"content": ""}}}',
        '{"added_tokens_decoder": {"1200": {"content": "\\ud800"}}}',
        '{"bos_token": "<absent>"}', '{"eos_token": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_config(sources: Sources, tmp_path: Path, config: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sources.model)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json|<absent>|surrogates"):
        Tokenizer.from_directory(tmp_path)


def loads_or_refuses(directory: Path) -> None:
    """Whatever the files hold, the tokenizer works or there is one TokenizerError that names the directory."""
    try:
        tokenizer = Tokenizer.from_directory(directory)
        ids = tokenizer.encode("the fox 猫 👾 <bos>\n\n  x")
        tokenizer.decode(ids)
    except TokenizerError as error:
        assert str(directory) in str(error)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_model_files_never_fail_otherwise(sources: Sources, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(sources.model)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "tokenizer.model").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    loads_or_refuses(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_random_model_files_never_fail_otherwise(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    loads_or_refuses(tmp_path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["<bos>", "[", "BPE"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_json_never_fails_otherwise(sources: Sources, tmp_path: Path, data: st.DataObject) -> None:
    """Any value anywhere in a small tokenizer.json replaced by any other, or the text cut anywhere."""
    root = json.loads((sources.json_directory / "tokenizer.json").read_text())
    root["model"]["vocab"] = dict(list(root["model"]["vocab"].items())[:320])
    root["model"]["merges"] = [["<", "b"]] if data.draw(st.booleans()) else []
    node: Any = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    text = json.dumps(root)
    if data.draw(st.integers(0, 9)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    (tmp_path / "tokenizer.json").write_text(text)
    loads_or_refuses(tmp_path)


@settings(max_examples=200)
@given(
    tokens=st.lists(
        st.binary(max_size=4) | st.sampled_from([b"<bos>", b"a", b"ab", b"<0x41>", b" ", b"  "]), max_size=8
    ),
    extra=st.integers(-1, 1),
    data=st.data(),
)
def test_random_gguf_vocabularies_never_fail_otherwise(
    sources: Sources, tokens: list[bytes], extra: int, data: st.DataObject
) -> None:
    n = max(len(tokens) + extra * data.draw(st.integers(0, 1)), 0)
    vocabulary = sources.pieces.gguf(
        tokens=string_array(tokens),
        types=np.array(data.draw(st.lists(st.integers(-1, 9), min_size=n, max_size=n)), np.int32),
        scores=np.array(data.draw(st.lists(st.floats(width=32), min_size=n, max_size=n)), np.float32),
        bos_id=data.draw(st.one_of(st.none(), st.integers(-2, 9))),
        eos_id=None, pad_id=None, unk_id=data.draw(st.one_of(st.none(), st.integers(0, 9))),
    )  # fmt: skip
    try:
        tokenizer = Tokenizer.from_gguf(vocabulary)
        tokenizer.decode(tokenizer.encode("ab  <bos>é\0"))
    except TokenizerError as error:
        assert "model.gguf" in str(error)
