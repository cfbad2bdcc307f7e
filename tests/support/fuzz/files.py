"""Properties of hostile files, run by `test_files.py` in a process of limited memory and time.

Small valid files are changed by bytes and by structure. Whatever comes of it, reading one gives a result or one error
of the package, in printable words, within seconds.
"""

from __future__ import annotations

import copy
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import hypothesis
from hypothesis import given, seed
from hypothesis import strategies as st

from gemma_cuda.errors import GemmaError
from gemma_cuda.formats.checkpoint import open_checkpoint
from gemma_cuda.formats.hf_config import end_token_ids
from gemma_cuda.text import chat_template
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.checkpoints import TINY_GEMMA1, random_tensors, write_directory, write_gguf_model
from tests.support.fuzz import examples

SECONDS = 10.0  # of CPU, for one example: far above what any needs, far below for ever
TEXT = "ab  <bos>\x1b[31mé\0 aaaa"

numbers = st.sampled_from([0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 60, (1 << 63) - 1, (1 << 64) - 1, -1])
texts = st.text(max_size=5) | st.sampled_from(
    ["\ud800", "\0", "\x1b[31m", "..", "../x", "a" * 300, "é" * 5000, "<bos>", "a b", "Replace", "Sequence", "Regex"]
)
leaves = st.none() | st.booleans() | numbers | st.integers(-(10**40), 10**40) | st.floats() | st.just(10**4000) | texts
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
) | st.integers(1, 300).map(lambda depth: json.loads("[" * depth + "]" * depth))


@st.composite
def changed_json(draw: st.DrawFn, root: Any, values: st.SearchStrategy[Any] = json_values) -> bytes:
    """JSON of `root` with one to three of its nodes replaced or taken away; now and then cut or hardly JSON at all."""
    root = copy.deepcopy(root)
    for _ in range(draw(st.integers(1, 3))):
        node = root
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            if draw(st.sampled_from(range(8))):
                node[key] = copy.deepcopy(draw(values))  # which later changes leave alone
            else:
                del node[key]
            break
    data = json.dumps(root).encode()
    match draw(st.sampled_from(range(30))):
        case 0:
            return data[: draw(st.integers(0, len(data)))]
        case 1:
            return data.replace(b"1", b"9" * 5000, 1)
        case 2:
            return b'{"a":' * 20_000 + data
        case 3:
            return data[:-1] + b"," + data[1:]  # every key twice
        case _:
            return data


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes, *, headers: int) -> bytes:
    """`data` with some bytes or numbers among its first `headers` bytes replaced, a piece doubled, or the end cut."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(range(headers)))
        match draw(st.sampled_from(range(5))):
            case 0:
                result[at : at + 8] = struct.pack("<Q", draw(numbers) & (1 << 64) - 1)
            case 1:
                result[at : at + 4] = struct.pack("<I", draw(numbers) & (1 << 32) - 1)
            case 2:
                result[at:at] = result[at : at + draw(st.integers(1, 40))]
            case 3:
                result[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
            case 4:
                del result[at : at + draw(st.integers(1, 40))]
    return bytes(result[: draw(st.integers(0, len(result)))] if draw(st.sampled_from(range(10))) == 0 else result)


@contextmanager
def package_errors_only(file: Path) -> Iterator[None]:
    """Lets errors of the package pass that name `file` in printable words, and nothing that takes long."""
    begin = time.thread_time()
    try:
        yield
    except GemmaError as error:
        message = str(error)
        assert str(file) in message or str(file.parent) in message, message
        assert message.replace("\n", "").isprintable() and len(message) < 1500, message
    assert time.thread_time() - begin < SECONDS


def use_tokenizer(tokenizer: Tokenizer) -> None:
    tokenizer.decode(tokenizer.encode(TEXT))


class Files:
    """Valid files in a folder of their own; each property overwrites one and puts it back."""

    def __init__(self, folder: Path) -> None:
        tensors = random_tensors(TINY_GEMMA1, seed=0)
        self.gguf = folder / "m.gguf"
        write_gguf_model(self.gguf, TINY_GEMMA1, tensors, gguf.GGMLQuantizationType.F32)
        self.gguf_bytes = self.gguf.read_bytes()
        self.single = write_directory(folder / "single", TINY_GEMMA1, tensors)
        self.sharded = write_directory(folder / "sharded", TINY_GEMMA1, tensors, shards=2)
        self.weights = (self.single / "model.safetensors").read_bytes()
        end = 8 + int.from_bytes(self.weights[:8], "little")
        self.header, self.data = json.loads(self.weights[8:end]), self.weights[end:]
        self.index = json.loads((self.sharded / "model.safetensors.index.json").read_bytes())
        self.tokens = folder / "tokens"
        self.tokens.mkdir()

    def tokenizer_from(self, name: str, data: bytes) -> None:
        """Reads and uses the tokenizer of the folder `tokens` with just this file, and a vocabulary if it has none."""
        for other in self.tokens.iterdir():
            other.unlink()
        if name != "tokenizer.model":
            (self.tokens / "tokenizer.json").write_text(json.dumps(TOKENIZER_JSON))
        (self.tokens / name).write_bytes(data)
        with package_errors_only(self.tokens / name):
            use_tokenizer(Tokenizer.from_directory(self.tokens))


TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "ab", "\u2581", "\u2581a", "<0x41>", "<start_of_turn>"]
TOKENIZER_JSON: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": i, "content": TOKENS[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i in (0, 1, 2, 3, 10)
    ],
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
    "model": {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(TOKENS)},
        "merges": [["a", "b"], ["\u2581", "a"]],
    },
}  # fmt: skip
TOKENIZER_CONFIG = {
    "add_bos_token": True, "bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": "{{ messages }}",
    "added_tokens_decoder": {"2": {"content": "<bos>", "special": True}, "11": {"content": "<more>"}},
}  # fmt: skip
growing = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
steps = st.one_of(
    st.builds(lambda n: {"type": "Sequence", "normalizers": [growing] * n}, st.integers(1, 40)),
    st.builds(lambda n: {"type": "Sequence", "decoders": [growing] * n}, st.integers(1, 40)),
    st.builds(lambda n: {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * n}, st.integers(1, 40)),
    st.builds(
        lambda kind, pattern, content: {"type": kind, "pattern": pattern, "content": content, "behavior": "Isolated"},
        st.sampled_from(["Replace", "Split"]),
        st.fixed_dictionaries({"String": texts}) | st.just({"Regex": "(a*)*b"}),
        texts,
    ),
    st.builds(lambda prepend: {"type": "Prepend", "prepend": prepend}, texts),
    st.sampled_from(["NFKD", "ByteLevel", "Lowercase", "Precompiled", "Fuse", "CTC", "Digits"]).map(
        lambda name: {"type": name}
    ),
)


def message(field: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content


TOKENIZER_MODEL = b"".join(
    message(1, message(1, token.encode()) + b"\x15" + struct.pack("<f", -i) + b"\x18" + bytes([3 if i < 4 else 1]))
    for i, token in enumerate(TOKENS)
) + message(2, b"\x18\x02")

operands = st.sampled_from(
    [
        "x",
        "messages",
        "'a'",
        "1000",
        "10 ** 8",
        "range(9999)",
        "[x, x]",
        "loop",
        "namespace",
        "lipsum",
        "cycler",
        "''",
    ]
)
expressions = st.recursive(
    operands,
    lambda e: st.one_of(
        st.builds("({} {} {})".format, e, st.sampled_from(["+", "*", "**", "~", "%", "//", "in", "and"]), e),
        st.builds("({} | {})".format, e, st.sampled_from(["list", "join", "string", "length", "tojson", "indent(99)",
                  "center(10 ** 9)", "upper", "batch(9, 0) | list", "replace('a', 'aaaa')", "format(1)", "urlize"])),
        st.builds("{}.{}".format, e, st.sampled_from(["format(1)", "zfill(10 ** 10)", "append(1)", "split('a')"])),
    ),
    max_leaves=4,
)  # fmt: skip
templates = st.recursive(
    expressions.map("{{{{ {} }}}}".format) | expressions.map("{{% set x = {} %}}".format),
    lambda t: st.one_of(
        st.builds("{}{}".format, t, t),
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, expressions, t),
        st.builds("{{% macro f(x) %}}{}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f(1) }}}}".format, t),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, expressions, t),
    ),
    max_leaves=5,
)


runaways = st.sampled_from([
    "", "", "", "", "", "", "{{ 'a' * 10 ** 9 }}", "{{ '%999999999d' % 1 }}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(28) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
])  # fmt: skip

# Bytes, or a count or length that what is behind it satisfies.
payloads = st.binary(max_size=40) | st.integers(0, 9).map(lambda n: struct.pack("<Q", n) + bytes(n))
GGUF_KEYS = [
    b"split.count", b"general.alignment", b"tokenizer.chat_template", b"gemma.attention.head_count",
    b"tokenizer.ggml.merges", b"gemma.rope.scaling.type", b"gemma.rope.freq_base", b"\x1b[31m", b"x" * 70_000, b"\xff",
    b"tokenizer.ggml.add_eos_token", b"tokenizer.ggml.eot_token_id", b"gemma.rope.dimension_count",
]  # fmt: skip


def properties(files: Files) -> list[Callable[[], None]]:
    def write(path: Path, data: bytes) -> Path:
        path.write_bytes(data)
        return path

    @examples(250)
    @given(data=changed_bytes(files.gguf_bytes, headers=len(files.gguf_bytes)))
    def gguf_files(data: bytes) -> None:
        with package_errors_only(write(files.gguf, data)):
            source = open_checkpoint(files.gguf).tokenizer_source()
            use_tokenizer(Tokenizer.from_pretrained(source))

    @examples(250)
    @given(key=st.sampled_from(GGUF_KEYS), kind=st.integers(0, 13), inner=st.integers(0, 13), data=payloads)
    def gguf_values(key: bytes, kind: int, inner: int, data: bytes) -> None:
        """One entry more before the others: any key, any type."""
        count, entries = struct.unpack_from("<QQ", files.gguf_bytes, 8)
        value = struct.pack("<II", kind, inner) + data if kind == 9 else struct.pack("<I", kind) + data
        entry = struct.pack("<Q", len(key)) + key + value
        head = files.gguf_bytes[:8] + struct.pack("<QQ", count, entries + 1) + entry
        with package_errors_only(write(files.gguf, head + files.gguf_bytes[24:] + bytes(64))):
            open_checkpoint(files.gguf)

    @examples(150)
    @given(header=changed_json(files.header), extra=st.sampled_from([0, 0, 0, 1, -1, 1 << 40]))
    def safetensors_headers(header: bytes, extra: int) -> None:
        data = (len(header) + extra & (1 << 64) - 1).to_bytes(8, "little") + header + files.data
        path = files.single / "model.safetensors"
        with package_errors_only(write(path, data)):
            open_checkpoint(files.single)
        path.write_bytes(files.weights)

    @examples(150)
    @given(data=changed_json(TINY_GEMMA1))
    def configs(data: bytes) -> None:
        path = files.single / "config.json"
        with package_errors_only(write(path, data)):
            open_checkpoint(files.single)
        path.write_text(json.dumps(TINY_GEMMA1))

    @examples(100)
    @given(data=changed_json({"eos_token_id": [1, 2], "bos_token_id": 2}))
    def generation_configs(data: bytes) -> None:
        path = files.single / "generation_config.json"
        with package_errors_only(write(path, data)):
            assert all(type(i) is int for i in end_token_ids(path))

    @examples(150)
    @given(data=changed_json(files.index))
    def indices(data: bytes) -> None:
        with package_errors_only(write(files.sharded / "model.safetensors.index.json", data)):
            open_checkpoint(files.sharded)

    @examples(250)
    @given(data=changed_json(TOKENIZER_JSON, json_values | steps))
    def tokenizer_jsons(data: bytes) -> None:
        files.tokenizer_from("tokenizer.json", data)

    @examples(100)
    @given(step=steps, kind=st.sampled_from(["normalizer", "pre_tokenizer", "decoder", "post_processor"]))
    def tokenizer_steps(step: Any, kind: str) -> None:
        files.tokenizer_from("tokenizer.json", json.dumps(TOKENIZER_JSON | {kind: step}).encode())

    @examples(100)
    @given(data=changed_json(TOKENIZER_CONFIG))
    def tokenizer_configs(data: bytes) -> None:
        files.tokenizer_from("tokenizer_config.json", data)

    @examples(150)
    @given(data=changed_bytes(TOKENIZER_MODEL, headers=len(TOKENIZER_MODEL)))
    def tokenizer_models(data: bytes) -> None:
        files.tokenizer_from("tokenizer.model", data)

    @examples(60)
    @given(runaway=runaways, template=templates)
    def chat_templates(runaway: str, template: str) -> None:
        with package_errors_only(Path("t.gguf")):
            text = chat_template.render_chat_template(
                runaway + template, [{"role": "user", "content": "x"}], add_generation_prompt=True, special_tokens={},
                source="t.gguf",
            )  # fmt: skip
            assert len(text) < chat_template.CHARACTERS + 1000

    return [
        gguf_files, gguf_values, safetensors_headers, configs, generation_configs, indices, tokenizer_jsons,
        tokenizer_steps, tokenizer_configs, tokenizer_models, chat_templates,
    ]  # fmt: skip


def main(times: int) -> None:
    hypothesis.settings.register_profile(
        "limited", deadline=None, database=None, print_blob=False, max_examples=100 * times
    )
    hypothesis.settings.load_profile("limited")
    chat_template.CPU_SECONDS, chat_template.MEMORY = 1, 128 << 20
    with tempfile.TemporaryDirectory() as folder:
        for run in properties(Files(Path(folder))):
            begin = time.process_time()
            run() if times == 1 else seed(time.time_ns())(run)()
            print(f"{run.__name__} {time.process_time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
