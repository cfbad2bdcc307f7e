"""Files that are too much, endless or of no regular kind: one error within the budget, nothing raw for a terminal."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.errors import CheckpointError, ConfigError, DownloadError, GemmaError, TokenizerError
from gemma_cuda.formats import bounded_files, hub
from gemma_cuda.formats.bounded_files import Budget, parse_json_object, read_bytes
from gemma_cuda.formats.checkpoint import open_checkpoint
from gemma_cuda.formats.gemma_config import GemmaConfig
from gemma_cuda.formats.gguf_file import GgufFile
from gemma_cuda.formats.gguf_vocabulary import GgufVocabulary, StringArray
from gemma_cuda.formats.hf_config import end_token_ids
from gemma_cuda.printable import printable, shown_line
from gemma_cuda.text import chat_template
from gemma_cuda.text.bpe_vocabulary import check_added_tokens, check_vocabulary
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.checkpoints import TINY_GEMMA1, random_tensors, raw_safetensors, write_directory
from tests.support.fuzz.files import TOKENIZER_CONFIG, TOKENIZER_JSON, TOKENIZER_MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two shards with every side file."""
    directory = write_directory(tmp_path / "model", TINY_GEMMA1, random_tensors(TINY_GEMMA1, seed=0), shards=2)
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER_JSON))
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 4]}')
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return directory


def read_everything(directory: Path) -> None:
    open_checkpoint(directory)
    end_token_ids(directory / "generation_config.json")
    Tokenizer.from_pretrained(directory)


SIDE_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
              "model.safetensors.index.json"]  # fmt: skip


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "large"])
def test_bounded_files_are_regular_and_within_their_budget(model: Path, name: str, kind: str) -> None:
    read_everything(model)
    path = model / name
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                file.truncate((64 << 20) + 1)  # a hole: it takes no disk
    with pytest.raises(GemmaError, match=name.replace(".", r"\.")) as caught:
        read_everything(model)
    words = {"large": "may have at most", "directory": "Is a directory|not a regular file|no such file"}
    assert any(word in str(caught.value) for word in words.get(kind, "not a regular file").split("|"))


def test_a_tokenizer_model_that_is_a_fifo(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    path = model / "tokenizer.model"
    path.write_bytes(TOKENIZER_MODEL)
    assert Tokenizer.from_directory(model).encode("ab") == [2, 6]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a regular file"):
        Tokenizer.from_directory(model)


def test_a_file_that_grows_is_read_no_further_than_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    assert len(read_bytes(path, Budget(10), ConfigError)) == 10
    with pytest.raises(ConfigError, match="10 bytes; a file of this kind may have at most 9"):
        read_bytes(path, Budget(9), ConfigError)


@pytest.mark.parametrize("make", [Path, str])
@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", "x/" * 3000])
@pytest.mark.parametrize(
    "read", [open_checkpoint, GemmaConfig.from_file, Tokenizer.from_pretrained, Tokenizer.from_directory, hub.resolve]
)
def test_impossible_names(tmp_path: Path, read: Callable[[Any], Any], name: str, make: type) -> None:
    with pytest.raises(GemmaError):
        read(make(tmp_path / name))


@pytest.mark.parametrize("read", [open_checkpoint, GemmaConfig.from_file, Tokenizer.from_directory, hub.resolve])
@pytest.mark.parametrize("value", [None, 3, 1.5, ["x"], object()])
def test_what_is_no_path(read: Callable[[Any], Any], value: object) -> None:
    with pytest.raises(GemmaError, match="expected a path"):
        read(value)


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "a/b.git", "a/" + "b" * 200, "a/b-"])
def test_names_that_the_hub_refuses(name: str) -> None:
    with pytest.raises((CheckpointError, DownloadError), match=name[:20]):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "..", ".", ""])
def test_shards_of_impossible_names(model: Path, name: str) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    assert str(caught.value).isprintable()


def test_json_is_counted_before_it_is_parsed() -> None:
    budget = Budget(1000, 10)
    assert parse_json_object(b'{"a": [1, 2, 3]}', "f", budget, ConfigError) == {"a": [1, 2, 3]}
    with pytest.raises(ConfigError, match="f: some 21 values; a file of this kind may have at most 10"):
        parse_json_object(b'{"a":[' + b"[]," * 9 + b"[]]}", "f", budget, ConfigError)


PATTERNS = {
    "lists": b"[],", "objects": b'{"a":1},', "nested": b'{"a":' * 90 + b"1" + b"}" * 90 + b",", "numbers": b"99999,",
    "floats": b"1.5,", "wide": '"\U0001f600x",'.encode(), "escaped": b'"\\ud83d\\ude00' + b"x" * 500 + b'",',
}  # fmt: skip


@pytest.mark.parametrize("pattern", [*PATTERNS, "keys"])
def test_json_takes_a_stated_multiple_of_its_text_and_values(pattern: str) -> None:
    data = json.dumps({str(i): i for i in range(3000)}).encode()
    if pattern != "keys":
        data = b'{"a":[' + PATTERNS[pattern] * (30_000 // len(PATTERNS[pattern])) + b"1]}"
    values = sum(map(data.count, (b",", b"[", b"{")))
    tracemalloc.start()
    try:
        parse_json_object(data, "f", bounded_files.INDEX, ConfigError, unique=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * values + 12 * len(data) + 10_000


@pytest.mark.parametrize(
    "given, ids",
    [("{}", ()), ('{"eos_token_id": null}', ()), ('{"eos_token_id": 3}', (3,)), ('{"eos_token_id": [3, 1]}', (3, 1))],
)
def test_end_tokens_of_a_generation_config(tmp_path: Path, given: str, ids: tuple[int, ...]) -> None:
    path = tmp_path / "generation_config.json"
    assert end_token_ids(path) == ()
    path.write_text(given)
    assert end_token_ids(path) == ids


@pytest.mark.parametrize(
    "given",
    ["", "[]", "{" * 100_000, '{"eos_token_id": 3.5}', '{"eos_token_id": "3"}', '{"eos_token_id": [[1]]}',
     '{"eos_token_id": {"1": 2}}', '{"eos_token_id": true}', '{"eos_token_id": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_a_generation_config_that_says_no_ids(tmp_path: Path, given: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(given)
    with pytest.raises(ConfigError, match=r"generation_config\.json: "):
        end_token_ids(path)


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    "kind, step, words",
    [
        ("normalizer", {"type": "Sequence", "normalizers": [GROWING] * 30}, "can multiply the characters of a text by"),
        ("decoder", {"type": "Sequence", "decoders": [GROWING] * 30}, "can multiply the characters of a text by"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 9}, "can multiply"),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 100}, "can multiply"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Strip"}] * 33}, "more than 32 steps"),
        ("normalizer", {**GROWING, "pattern": {"Regex": "(a*)*b"}}, "a pattern other than a String"),
        ("normalizer", {**GROWING, "pattern": {"String": ""}}, "an empty pattern"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}, "a step of type 'Precompiled'"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed"}, "other than a String"),
        ("post_processor", {"type": "TemplateProcessing", "single": [{}] * 65}, "more than 64 tokens around a text"),
        ("model", {"type": "Unigram", "vocab": []}, "its type is 'Unigram'"),
        ("model", TOKENIZER_JSON["model"] | {"dropout": 0.5}, "dropout is 0.5"),
        ("model", TOKENIZER_JSON["model"] | {"vocab": {"a" * 5000: 0}}, "tokens of up to 5000 characters"),
        ("added_tokens", [{"id": 0, "content": "<pad>"}] * 2, "'<pad>' has no id of its own (0)"),
        ("added_tokens", [{"id": 0, "content": [1]}], "a list of 1 values has no id of its own (0)"),
    ],
)
def test_tokenizers_whose_cost_has_no_bound(tmp_path: Path, kind: str, step: Any, words: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER_JSON | {kind: step}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*" + re.escape(words)):
        Tokenizer.from_directory(tmp_path).encode("a")


def test_steps_nested_too_deeply(tmp_path: Path) -> None:
    nested: Any = {"type": "Strip"}
    for _ in range(6):
        nested = {"type": "Sequence", "normalizers": [nested]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER_JSON | {"normalizer": nested}))
    with pytest.raises(TokenizerError, match="more than 4 of them in each other"):
        Tokenizer.from_directory(tmp_path)


def test_pieces_without_number(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x00" * (6 << 20))
    begin = time.thread_time()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: 1048577 tokens"):
        Tokenizer.from_directory(tmp_path)
    assert time.thread_time() - begin < 30
    several = StringArray(b"", *[np.zeros((1 << 20) + 1, np.int64)] * 2)
    vocabulary = GgufVocabulary("m.gguf", "llama", several, *[None] * 7, (), *[None] * 4)
    with pytest.raises(TokenizerError, match=r"m\.gguf: 1048577 tokens"):
        Tokenizer.from_gguf(vocabulary)


def test_vocabularies_have_budgets() -> None:
    check_vocabulary("f", ["a" * 4096] * 2048, 4 << 20)
    for tokens, merges in (
        (["a" * 4097], 0),
        (["a" * 4096] * 2049, 0),
        (["a"], (4 << 20) + 1),
        (["a"] * (1 << 20 | 1), 0),
    ):
        with pytest.raises(TokenizerError, match=r"f: .*expected at most"):
            check_vocabulary("f", tokens, merges)
    for contents in (["a"] * 65537, ["a" * 70000] * 4):
        with pytest.raises(TokenizerError, match=r"f: .* to be matched in texts"):
            check_added_tokens("f", contents)


CHAT = [{"role": "user", "content": "x"}]
RUNAWAYS = {
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "string": "{% set n = namespace(x='aaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "operator": "{{ 'a' * 10 ** 10 }}",
    "filter": "{{ 'a' | center(10 ** 10) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_templates_without_end_or_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    monkeypatch.setattr(chat_template, "MEMORY", 256 << 20)
    options: dict[str, Any] = {"add_generation_prompt": True, "special_tokens": {}, "source": "m.gguf"}
    with pytest.raises(TokenizerError, match=r"m\.gguf: the chat template exceeds its budget of 1 s, 256 MiB"):
        chat_template.render_chat_template(RUNAWAYS[name], CHAT, **options)
    assert chat_template.render_chat_template("{{ messages[0].content }}", CHAT, **options) == "x"


def test_a_template_process_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "WALL_SECONDS", 0.3)
    monkeypatch.setattr(chat_template._process, "_process", None)
    options: dict[str, Any] = {"add_generation_prompt": True, "special_tokens": {}, "source": "m.gguf"}
    with pytest.raises(TokenizerError, match="exceeds its budget"):
        chat_template.render_chat_template(RUNAWAYS["loop"], CHAT, **options)
    assert chat_template._process._process is None


def gguf(*entries: bytes, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries) if count is None else count) + b"".join(entries)


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "data, words",
    [
        (gguf(entry(b"split.count", 9, struct.pack("<IQ", 4, 2) + bytes(8))), "one part of a split model"),
        (gguf(entry(b"k", 9, struct.pack("<IQ", 8, 1 << 60))), "it is cut or damaged"),
        (gguf(entry(b"k", 9, struct.pack("<IQ", 10, 1 << 60))), "it is cut or damaged"),
        (gguf(entry(b"k", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1))), "an array of type 9"),
        (gguf(entry(b"k" * 65537, 0, b"x")), "a metadata key has 65537 bytes"),
        (gguf(entry(b"\x1b[31m", 99, b"")), r"\x1b[31m has unknown type 99"),
        (gguf(count=1 << 17) + bytes(13 << 17), "expected at most 65536"),
        (gguf(*[entry(b"\xc2\x9b31m", 0, b"x")] * 2), r"\x9b31m occurs twice"),
    ],
)
def test_gguf_headers_beyond_their_budget(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        GgufFile(path)
    assert words in str(caught.value) and str(caught.value).startswith(f"{path}: ")


def test_gguf_headers_that_only_claim_too_much(tmp_path: Path) -> None:
    """Files of holes: strings without number, and values that go on for ever."""
    for value, words in (
        (struct.pack("<IQ", 8, (4 << 20) + 1), "4194305 strings"),
        (struct.pack("<IQ", 0, 257 << 20), "may have at most 268435456"),
    ):
        path = tmp_path / "m.gguf"
        with path.open("wb") as file:
            file.write(gguf(entry(b"k", 9, value)))
            file.truncate(300 << 20)
        with pytest.raises(CheckpointError, match=words):
            GgufFile(path)


def test_safetensors_headers_beyond_their_budget(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(TINY_GEMMA1))
    for data, words in (
        ((17 << 20).to_bytes(8, "little") + b" " * (17 << 20), "it may have at most 16777216"),
        (raw_safetensors(b'{"a":[' + b"[]," * (1 << 20) + b"[]]}", b""), "values"),
        (
            raw_safetensors({"\x1b[31m": {"dtype": [["F32"]], "shape": [], "data_offsets": [0, 4]}}, b""),
            r"tensor \x1b[31m",
        ),
        (
            raw_safetensors({"a": {"dtype": "F32", "shape": [[9]], "data_offsets": [0, 4]}}, b""),
            "shape is [[9]]",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path)
        assert words in str(caught.value)


def test_names_reach_no_terminal_raw(tmp_path: Path) -> None:
    assert printable("a\x1b[31m\n\u202eb\ud800\x9b") == "a\\x1b[31m\n\\u202eb\\ud800\\x9b"
    assert printable("猫 é ok") == "猫 é ok" == shown_line("猫 é ok")
    assert shown_line("a\nb" + "x" * 999) == "a\\nb" + "x" * 117 + "..."
    for kind in GemmaError.__subclasses__():
        if kind.__name__ != "KernelError":
            assert str(kind("a\x1b]0;title\x07")) == "a\\x1b]0;title\\x07"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "\x1b[31m")
    assert str(caught.value).endswith("/\\x1b[31m: no such file or directory")


def test_budgets_hold_what_gemma_needs() -> None:
    """Sizes of the largest published files; a budget below them would refuse Gemma itself."""
    for budget, size in (
        (bounded_files.TOKENIZER_JSON, 33_384_568), (bounded_files.TOKENIZER_MODEL, 4_689_074),
        (bounded_files.TOKENIZER_CONFIG, 1_157_001), (bounded_files.INDEX, 110_000),
        (bounded_files.CHAT_TEMPLATE, 17_000),
    ):  # fmt: skip
        assert budget.bytes > 2 * size
