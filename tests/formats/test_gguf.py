"""GGUF checkpoints: files that the `gguf` library wrote give the values that it decodes; broken files are refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_cuda.errors import CheckpointError, ConfigError
from gemma_cuda.formats.checkpoint import Checkpoint, open_checkpoint
from gemma_cuda.formats.dequantize import FORMATS
from gemma_cuda.formats.gguf_file import GgufFile
from gemma_cuda.formats.gguf_vocabulary import GgufVocabulary
from gemma_cuda.formats.hub import DEMO_MODEL, resolve
from gemma_cuda.formats.tensor_names import gguf_names
from tests.support.checkpoints import (
    GEMMA3,
    TINY_GEMMA1,
    gguf_metadata,
    gguf_name,
    random_tensors,
    write_gguf,
    write_gguf_model,
)

Kind = gguf.GGMLQuantizationType
Change = Callable[[bytearray], None]


def read(checkpoint: Checkpoint, name: str, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    out = np.full(checkpoint.shape(name), np.nan, dtype)
    checkpoint.read_into(name, out)
    return out


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_equals_the_library(tmp_path: Path, kind: str) -> None:
    tensors = random_tensors(GEMMA3, seed=1)
    expected = write_gguf_model(tmp_path / "m.gguf", GEMMA3, tensors, Kind[kind])
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert set(checkpoint.names()) == set(expected)
    for name, values in expected.items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(read(checkpoint, name), values, err_msg=name)
    name = "layers.1.mlp.down_proj.weight"
    assert checkpoint.stored_as(name) == kind
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            converted = expected[name].astype(dtype)
        np.testing.assert_array_equal(read(checkpoint, name, dtype), converted)
    ids = np.array([47, 0, 3, 3])
    gathered = checkpoint.table("embed_tokens.weight").gather(ids)
    np.testing.assert_array_equal(gathered, expected["embed_tokens.weight"][ids])


@pytest.mark.parametrize("kind", FORMATS)
def test_any_block_decodes_as_the_library_does(kind: str) -> None:
    """Random bytes, so NaN and infinite scales too; more blocks than the library's groups."""
    block_format = FORMATS[kind]
    assert (block_format.block_size, block_format.block_bytes) == gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = np.random.default_rng(2).integers(0, 256, (1000, block_format.block_bytes), dtype=np.uint8)
    out = np.full((1000, block_format.block_size), np.nan, np.float32)
    assert block_format.decode is not None
    with np.errstate(all="ignore"):
        block_format.decode(blocks, out)
        expected = gguf.quants.dequantize(blocks, Kind[kind])
    np.testing.assert_array_equal(out, expected.reshape(out.shape))


def test_many_row_blocks(tmp_path: Path) -> None:
    """More rows than one block of the threads, the last block not full."""
    config = {**GEMMA3, "vocab_size": 2003}
    expected = write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config, seed=3), Kind.Q6_K)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    np.testing.assert_array_equal(read(checkpoint, "embed_tokens.weight"), expected["embed_tokens.weight"])


GEMMA2 = {**GEMMA3, "model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"]}
GEMMA1 = {key: value for key, value in GEMMA3.items() if key != "layer_types"} | {"model_type": "gemma"}


@pytest.mark.parametrize("config", [GEMMA1, GEMMA2, GEMMA3], ids=lambda config: config["model_type"])
def test_generations(tmp_path: Path, config: dict[str, Any]) -> None:
    expected = write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config, seed=4), Kind.F32)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config.model_type == config["model_type"]
    assert checkpoint.norm_plus_one_baked
    assert set(checkpoint.names()) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(read(checkpoint, name), values, err_msg=name)


GEMMA4 = {
    **GEMMA3,
    "model_type": "gemma4_text",
    "global_head_dim": 128,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 48,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
}


def gemma4_metadata() -> dict[str, Any]:
    common = {
        key.replace("gemma3.", "gemma4."): value
        for key, value in gguf_metadata(GEMMA3).items()
        if not key.endswith(("key_length", "value_length"))
    }
    return common | {
        "gemma4.attention.sliding_window_pattern": [True, False],
        "gemma4.attention.key_length": 128,
        "gemma4.attention.value_length": 128,
        "gemma4.attention.key_length_swa": 64,
        "gemma4.attention.value_length_swa": 64,
        "gemma4.rope.freq_base_swa": 1e4,
        "gemma4.embedding_length_per_layer_input": 32,
        "gemma4.expert_count": 4,
        "gemma4.expert_used_count": 2,
        "gemma4.expert_feed_forward_length": 64,
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.merges": ["t h", "th e", "▁ the"],
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_gemma4_with_experts_and_per_layer_embeddings(tmp_path: Path) -> None:
    tensors = random_tensors(GEMMA4, seed=5)
    packed = {gguf_name(gguf.MODEL_ARCH.GEMMA4, name, 2): (values, Kind.F32) for name, values in tensors.items()}
    packed["rope_freqs.weight"] = (np.ones(64, np.float32), Kind.F32)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "gemma4", packed, gemma4_metadata()))
    assert not checkpoint.norm_plus_one_baked
    assert set(checkpoint.names()) == set(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(read(checkpoint, name), values, err_msg=name)
    vocabulary = checkpoint.tokenizer_source()
    assert isinstance(vocabulary, GgufVocabulary)
    assert vocabulary.merges is not None
    assert vocabulary.merges.all() == [b"t h", b"th e", "▁ the".encode()]
    assert (vocabulary.model, vocabulary.eot_ids, vocabulary.chat_template) == ("gemma4", (5,), "{{ messages }}")


@pytest.mark.parametrize(("arch", "generation"), [("GEMMA", 1), ("GEMMA2", 2), ("GEMMA3", 3), ("GEMMA4", 4)])
def test_names_are_those_of_the_library(arch: str, generation: int) -> None:
    """Every tensor that the `gguf` package lists for the architecture has a canonical name here, except rope_freqs."""
    listed = {
        gguf.TENSOR_NAMES[tensor].format(bid=1) + ".weight" for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch]]
    }
    assert listed - set(gguf_names(generation, 2)) <= {"rope_freqs.weight"}


# -- vocabulary


def vocabulary_of(path: Path, **changes: Any) -> GgufVocabulary:
    """The vocabulary of a file whose tokenizer.ggml.* metadata are changed; None removes a key."""
    metadata = gguf_metadata(GEMMA3) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    found = GgufFile(
        write_gguf(path / "v.gguf", "gemma3", {"a": (np.ones(1, np.float32), Kind.F32)}, metadata)
    ).vocabulary()
    assert found is not None
    return found


def test_vocabulary(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(tmp_path)
    metadata = gguf_metadata(GEMMA3)
    expected = [token.encode() for token in metadata["tokenizer.ggml.tokens"]]
    assert vocabulary.tokens.all() == expected
    assert len(vocabulary.tokens) == len(expected)
    assert vocabulary.scores is not None
    assert vocabulary.types is not None
    assert (vocabulary.scores.dtype, vocabulary.types.dtype) == (np.float32, np.int32)
    assert vocabulary.scores.tolist() == metadata["tokenizer.ggml.scores"]
    assert vocabulary.types.tolist() == metadata["tokenizer.ggml.token_type"]
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id, vocabulary.unk_id) == (2, 1, 0, 3)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, None, False)
    assert (vocabulary.model, vocabulary.merges, vocabulary.chat_template, vocabulary.eot_ids) == (
        "llama",
        None,
        None,
        (),
    )


def test_vocabulary_without_some_keys(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(tmp_path, scores=None, token_type=None, bos_token_id=-1, unknown_token_id=None)
    assert (vocabulary.scores, vocabulary.types, vocabulary.bos_id, vocabulary.unk_id) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0]}, r"tokenizer\.ggml\.scores is 1 values of float32 for 48 tokens"),
        ({"token_type": [1] * 49}, r"token_type is 49 values of int32 for 48 tokens"),
        ({"token_type": [1.5] * 48}, r"token_type is 48 values of float32"),
        ({"scores": "no"}, r"scores is not a ndarray"),
        ({"eos_token_id": 48}, r"eos_token_id is 48, the vocabulary has 48 tokens"),
        ({"bos_token_id": -2}, r"bos_token_id is -2"),
        ({"pad_token_id": 1, "padding_token_id": "x"}, r"padding_token_id is not a int"),
        ({"tokens": [1, 2]}, r"tokens is not a StringArray"),
        ({"merges": [1, 2]}, r"merges is not a StringArray"),
        ({"add_bos_token": 1}, r"add_bos_token is not a bool"),
        ({"model": 7}, r"model is not a str"),
    ],
)
def test_vocabulary_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"v\.gguf: .*" + message):
        vocabulary_of(tmp_path, **changes)


def test_file_without_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    metadata = {
        key: value
        for key, value in gguf_metadata(GEMMA3).items()
        if not key.startswith("tokenizer") or key.endswith(("bos_token_id", "eos_token_id"))
    }
    packed = {
        gguf_name(gguf.MODEL_ARCH.GEMMA3, name, 2): (values, Kind.F32)
        for name, values in random_tensors(GEMMA3, seed=6).items()
    }
    checkpoint = open_checkpoint(write_gguf(path, "gemma3", packed, metadata))
    with pytest.raises(CheckpointError, match="holds no vocabulary"):
        checkpoint.tokenizer_source()


# -- refused files


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor_header(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw_gguf(
    metadata: list[bytes], tensors: list[bytes], data: bytes = b"", *, version: int = 3, counts: Any = None
) -> bytes:
    """A GGUF file, right or wrong, its data aligned to 32 bytes."""
    tensor_count, entry_count = counts or (len(tensors), len(metadata))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join(metadata) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def entry(key: bytes, value_type: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", value_type) + value


def array(item_type: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", item_type, count) + items


HUGE = (1 << 64) - 1
BAD_FILES = {
    "empty": (b"", "the file is empty"),
    "short": (b"GGUF", "the header needs 4 bytes"),
    "not gguf": (b"GGML" + bytes(60), "not a GGUF file"),
    "version 1": (raw_gguf([], [], version=1), "GGUF version 1 is not supported"),
    "version 4": (raw_gguf([], [], version=4), "GGUF version 4 is not supported"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file is not supported"),
    "tensor count": (raw_gguf([], [], counts=(HUGE, 0)), f"claims {HUGE} tensors"),
    "entry count": (raw_gguf([], [], counts=(0, 1 << 40)), "1099511627776 metadata entries"),
    "key length": (raw_gguf([struct.pack("<Q", 1 << 62) + bytes(16)], []), "a metadata key needs 4611686018427387904"),
    "key not utf-8": (raw_gguf([entry(b"\xff", 4, bytes(4))], []), "a metadata key is not UTF-8"),
    "key twice": (raw_gguf([entry(b"a", 4, bytes(4))] * 2, []), "metadata key a occurs twice"),
    "value type": (raw_gguf([entry(b"a", 13, bytes(8))], []), "a has unknown type 13"),
    "string length": (raw_gguf([entry(b"a", 8, struct.pack("<Q", HUGE))], []), f"a needs {HUGE} bytes"),
    "string not utf-8": (raw_gguf([entry(b"a", 8, string(b"\xc3"))], []), "a is not UTF-8"),
    "array count": (raw_gguf([entry(b"a", 9, array(6, 1 << 61, b""))], []), "a needs"),
    "string array count": (raw_gguf([entry(b"a", 9, array(8, HUGE, b""))], []), "a needs"),
    "string in array": (
        raw_gguf([entry(b"a", 9, array(8, 2, string(b"x") + struct.pack("<Q", HUGE)))], []),
        "a (string 1) needs",
    ),
    "nested array": (raw_gguf([entry(b"a", 9, array(9, 1, array(4, 1, bytes(4))))], []), "a is an array of type 9"),
    "alignment 0": (raw_gguf([entry(b"general.alignment", 4, bytes(4))], []), "general.alignment is 0"),
    "alignment 24": (raw_gguf([entry(b"general.alignment", 4, struct.pack("<I", 24))], []), "alignment is 24"),
    "alignment text": (raw_gguf([entry(b"general.alignment", 8, string(b"32"))], []), "general.alignment is '32'"),
    "alignment huge": (raw_gguf([entry(b"general.alignment", 10, struct.pack("<Q", 1 << 63))], []), "alignment is"),
    "split": (raw_gguf([entry(b"split.count", 2, struct.pack("<H", 3))], []), "llama-gguf-split --merge"),
    "no dims": (raw_gguf([], [tensor_header(b"t", [], 0, 0)]), "tensor t has 0 dimensions"),
    "many dims": (raw_gguf([], [string(b"t") + struct.pack("<I", 1 << 31) + bytes(64)]), "t has 2147483648 dimensions"),
    "dim 0": (raw_gguf([], [tensor_header(b"t", [4, 0], 0, 0)]), "impossible dimensions [4, 0]"),
    "dims overflow": (raw_gguf([], [tensor_header(b"t", [1 << 32, 1 << 32], 0, 0)]), "impossible dimensions"),
    "tensor type": (raw_gguf([], [tensor_header(b"t", [4], 99, 0)], bytes(32)), "tensor t has unknown type 99"),
    "ragged blocks": (
        raw_gguf([], [tensor_header(b"t", [33, 2], 8, 0)], bytes(80)),
        "rows of 33 are not whole Q8_0 blocks of 32",
    ),
    "unaligned": (raw_gguf([], [tensor_header(b"t", [4], 0, 4)], bytes(64)), "offset 4 is not a multiple"),
    "past the end": (raw_gguf([], [tensor_header(b"t", [4], 0, 1 << 40)], bytes(64)), "tensor t ends at byte"),
    "cut data": (raw_gguf([], [tensor_header(b"t", [16], 0, 0)], bytes(63)), "the file is cut"),
    "tensor twice": (raw_gguf([], [tensor_header(b"t", [4], 0, 0)] * 2, bytes(64)), "tensor t occurs twice"),
    "overlap": (
        raw_gguf([], [tensor_header(b"t", [16], 0, 0), tensor_header(b"u", [4], 0, 32)], bytes(64)),
        "tensor u overlaps t",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_hostile_files(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert str(tmp_path / "m.gguf") in str(caught.value)
    assert message in str(caught.value), str(caught.value)


def test_versions_2_and_3_are_read(tmp_path: Path) -> None:
    for version in (2, 3):
        content = raw_gguf(
            [entry(b"a", 5, struct.pack("<i", -7))], [tensor_header(b"t", [2, 3], 0, 0)], bytes(24), version=version
        )
        (tmp_path / "m.gguf").write_bytes(content)
        file = GgufFile(tmp_path / "m.gguf")
        assert file.metadata == {"a": -7}
        assert file.tensors["t"].shape == (3, 2)
        assert file.vocabulary() is None


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    entries = [entry(f"n{kind}".encode(), kind, struct.pack("<" + code, 1)) for kind, code in numbers.items()]
    entries += [
        entry(f"a{kind}".encode(), 9, array(kind, 3, struct.pack("<3" + code, 1, 0, 1)))
        for kind, code in numbers.items()
    ]
    entries += [
        entry(b"s", 8, string("é".encode())),
        entry(b"empty", 9, array(8, 0, b"")),
        entry(b"none", 9, array(6, 0, b"")),
    ]
    (tmp_path / "m.gguf").write_bytes(raw_gguf(entries, []))
    metadata = GgufFile(tmp_path / "m.gguf").metadata
    for kind, code in numbers.items():
        value, items = metadata[f"n{kind}"], metadata[f"a{kind}"]
        assert type(value) is {"f": float, "d": float, "?": bool}.get(code, int)
        assert value == 1
        assert isinstance(items, np.ndarray)
        assert items.tolist() == [1, 0, 1]
    assert metadata["s"] == "é"
    assert len(metadata["empty"]) == len(metadata["none"]) == 0  # type: ignore[arg-type]


def test_a_format_we_cannot_decode_is_refused_by_name(tmp_path: Path) -> None:
    packed: dict[str, Any] = {
        gguf_name(gguf.MODEL_ARCH.GEMMA3, name, 2): (values, Kind.F32)
        for name, values in random_tensors(GEMMA3, seed=7).items()
    }
    packed["blk.1.attn_q.weight"] = (np.zeros((256, 136), np.uint8), Kind.IQ4_XS)
    path = write_gguf(tmp_path / "m.gguf", "gemma3", packed, gguf_metadata(GEMMA3))
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor blk\.1\.attn_q\.weight is stored as IQ4_XS"):
        open_checkpoint(path)


def test_wrong_and_missing_tensors(tmp_path: Path) -> None:
    packed = {
        gguf_name(gguf.MODEL_ARCH.GEMMA3, name, 2): (values, Kind.F32)
        for name, values in random_tensors(GEMMA3, seed=8).items()
    }
    wrong = packed | {"blk.0.ffn_up.weight": (np.ones((8, 256), np.float32), Kind.F32)}
    path = write_gguf(tmp_path / "a.gguf", "gemma3", wrong, gguf_metadata(GEMMA3))
    with pytest.raises(CheckpointError, match=r"a\.gguf: blk\.0\.ffn_up\.weight is \[8, 256\], .* \[512, 256\]"):
        open_checkpoint(path)
    del packed["blk.1.attn_k_norm.weight"]
    path = write_gguf(tmp_path / "b.gguf", "gemma3", packed, gguf_metadata(GEMMA3))
    with pytest.raises(CheckpointError, match=r"b\.gguf: tensors are missing: layers\.1\.self_attn\.k_norm\.weight"):
        open_checkpoint(path)


# -- fuzzing: any bytes either open or are refused with one of our errors


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    write_gguf_model(path, TINY_GEMMA1, random_tensors(TINY_GEMMA1, seed=9), Kind.F32)
    return path, path.read_bytes()


def open_and_read(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.config.weight_shapes():
            read(checkpoint, name)
        source = checkpoint.tokenizer_source()
        assert isinstance(source, GgufVocabulary)
        source.tokens.all()
    except (CheckpointError, ConfigError):
        return


def test_every_cut_is_refused(fuzz_file: tuple[Path, bytes]) -> None:
    path, content = fuzz_file
    used = max(tensor.start + tensor.nbytes for tensor in GgufFile(path).tensors.values())
    data_start = min(tensor.start for tensor in GgufFile(path).tensors.values())
    for length in [*range(0, data_start, 2), *range(data_start, used, 7), used - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    path.write_bytes(content[:used])
    open_checkpoint(path)


BYTE_CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=500)
@given(BYTE_CHANGES, st.booleans())
def test_changed_bytes(fuzz_file: tuple[Path, bytes], changes: list[tuple[float, int]], only_header: bool) -> None:
    path, content = fuzz_file
    changed = bytearray(content)
    for where, value in changes:
        changed[int(where * ((1800 if only_header else len(content)) - 1))] = value
    path.write_bytes(changed)
    open_and_read(path)


@settings(max_examples=120)
@given(st.integers(0, 225), st.sampled_from([0, 1, 255, 1 << 31, 1 << 32, 1 << 61, (1 << 63) - 1, 1 << 63, HUGE]))
def test_changed_words(fuzz_file: tuple[Path, bytes], word: int, value: int) -> None:
    """Lengths, counts, dimensions and offsets take the values that break arithmetic, at every byte position mod 8."""
    path, content = fuzz_file
    for shift in range(8):
        changed = bytearray(content)
        struct.pack_into("<Q", changed, 8 * word + shift, value)
        path.write_bytes(changed)
        open_and_read(path)


# -- the real file


@pytest.fixture(scope="module")
def demo_checkpoint() -> Checkpoint:
    """The real weights; without the packages this fails, saying what to install."""
    return open_checkpoint(resolve(DEMO_MODEL))


@pytest.mark.real_weights
def test_real_file_equals_the_library(demo_checkpoint: Checkpoint) -> None:
    """One tensor of every format in the file, and the ends of the embedding."""
    assert demo_checkpoint.config.parameter_count() == 268_098_176
    names = gguf_names(3, 18)
    by_format = {}
    for theirs, tensor in GgufFile(demo_checkpoint.path).tensors.items():
        if theirs != "token_embd.weight":
            by_format[tensor.format.name] = (names[theirs], tensor)
    assert set(by_format) == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    for kind, (name, tensor) in by_format.items():
        expected = gguf.quants.dequantize(np.array(tensor.stored_rows()), Kind[kind]).reshape(tensor.shape)
        np.testing.assert_array_equal(read(demo_checkpoint, name), expected, err_msg=name)
    embedding = GgufFile(demo_checkpoint.path).tensors["token_embd.weight"]
    ids = np.array([0, 1, 2, 5000, 262_142, 262_143])
    expected = gguf.quants.dequantize(embedding.stored_rows()[ids], Kind[embedding.format.name])
    np.testing.assert_array_equal(demo_checkpoint.table("embed_tokens.weight").gather(ids), expected)


@pytest.mark.real_weights
def test_real_vocabulary(demo_checkpoint: Checkpoint) -> None:
    vocabulary = demo_checkpoint.tokenizer_source()
    assert isinstance(vocabulary, GgufVocabulary)
    tokens = vocabulary.tokens.all()
    assert len(tokens) == 262_144
    assert tokens[:4] == [b"<pad>", b"<eos>", b"<bos>", b"<unk>"]
    assert (tokens[105], tokens[106], tokens[262_143]) == (b"<start_of_turn>", b"<end_of_turn>", b"<unused6241>")
    assert len(set(tokens)) == len(tokens)
    assert vocabulary.types is not None
    byte_tokens = [tokens[i] for i in np.flatnonzero(vocabulary.types == 6)]
    assert byte_tokens == [b"<0x%02X>" % i for i in range(256)]


MEMORY_PROBE = """
import resource, sys
import numpy as np
from gemma_cuda.formats.checkpoint import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
outputs = {name: np.zeros(checkpoint.shape(name), np.float32) for name in checkpoint.names()}
for out in outputs.values():
    out.fill(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, out in outputs.items():
    checkpoint.read_into(name, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.real_weights
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_reading_takes_no_memory_beyond_the_output(demo_checkpoint: Checkpoint) -> None:
    """MiB that the peak of the process grows by while 253 MB of blocks become 1.07 GB of float32."""
    command = [sys.executable, "-c", MEMORY_PROBE, str(demo_checkpoint.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64
