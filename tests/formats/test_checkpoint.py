"""Safetensors checkpoints: what the library wrote is read back exactly, and every broken file is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gemma_cuda.errors import CheckpointError, ConfigError
from gemma_cuda.formats.checkpoint import Checkpoint, open_checkpoint
from tests.support.checkpoints import (
    GEMMA3,
    TINY_GEMMA1,
    Tensors,
    random_tensors,
    raw_safetensors,
    write_config,
    write_directory,
)

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OUT_DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
Q_PROJ = "layers.0.self_attn.q_proj.weight"


def read(checkpoint: Checkpoint, name: str, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """The tensor in an array that was full of NaN."""
    out = np.full(checkpoint.shape(name), np.nan, dtype)
    checkpoint.read_into(name, out)
    return out


def assert_holds(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert set(checkpoint.names()) == set(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(read(checkpoint, name), values.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", OUT_DTYPES)
def test_dtypes_convert_as_astype_does(tmp_path: Path, stored: str, wanted: Any) -> None:
    tensors = random_tensors(GEMMA3, seed=1, dtype=DTYPES[stored])
    checkpoint = open_checkpoint(write_directory(tmp_path, GEMMA3, tensors))
    for name, values in tensors.items():
        expected = values.astype(np.float32).astype(wanted)
        np.testing.assert_array_equal(read(checkpoint, name, wanted), expected, err_msg=name)
        assert checkpoint.stored_as(name) == stored
        assert checkpoint.nbytes(name) == values.nbytes
    assert not checkpoint.norm_plus_one_baked
    assert checkpoint.tokenizer_source() == tmp_path


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3.4e38, 65519.0])
def test_special_values_survive(tmp_path: Path, special: float) -> None:
    tensors = random_tensors(GEMMA3, seed=2)
    tensors["norm.weight"][:] = special
    checkpoint = open_checkpoint(write_directory(tmp_path, GEMMA3, tensors))
    assert read(checkpoint, "norm.weight").tobytes() == tensors["norm.weight"].tobytes()
    bf16 = tensors["norm.weight"].astype(ml_dtypes.bfloat16)
    assert read(checkpoint, "norm.weight", ml_dtypes.bfloat16).tobytes() == bf16.tobytes()


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.", "lm_head.weight"),
        ("", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("language_model.", "lm_head.weight"),
    ],
)
def test_prefixes_are_stripped_and_towers_skipped(tmp_path: Path, prefix: str, head: str) -> None:
    config = {**GEMMA3, "tie_word_embeddings": False}
    tensors = random_tensors(config, seed=3)
    projectors = {
        "multi_modal_projector.mm_input_projection_weight": np.ones((8, 256), np.float32),
        "multi_modal_projector.mm_soft_emb_norm.weight": np.ones(8, np.float32),
        "embed_vision.embedding_projection.weight": np.ones((256, 8), np.float32),
    }
    stored = {head if name == "lm_head.weight" else prefix + name: values for name, values in tensors.items()}
    outer = "" if prefix in ("", "language_model.model.", "language_model.") else "model."
    for tower in ("vision_tower", "audio_tower", "vision_embedder"):
        stored[f"{outer}{tower}.layers.0.weight"] = np.ones(3, np.float64)  # a dtype that would be refused
    stored |= {outer + name: values for name, values in projectors.items()}
    checkpoint = open_checkpoint(write_directory(tmp_path, config, stored))
    assert_holds(checkpoint, tensors | projectors)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards(tmp_path: Path, shards: int) -> None:
    tensors = random_tensors(GEMMA3, seed=4)
    stored = {f"model.{name}": values for name, values in tensors.items()}
    assert_holds(open_checkpoint(write_directory(tmp_path, GEMMA3, stored, shards=shards)), tensors)


def test_unaligned_data(tmp_path: Path) -> None:
    """The header's length is any number, so the data may begin at an odd address."""
    tensors = random_tensors(TINY_GEMMA1, seed=5)
    write_config(tmp_path, TINY_GEMMA1)
    for padding in range(4):
        header, data = layout(tensors)
        text = json.dumps(header).encode()
        text += b" " * (padding - len(text) % 4 + 4)
        (tmp_path / "model.safetensors").write_bytes(raw_safetensors(text, data))
        assert_holds(open_checkpoint(tmp_path), tensors)


def test_read_into_part_of_a_packed_array(tmp_path: Path) -> None:
    tensors = random_tensors(GEMMA3, seed=6)
    checkpoint = open_checkpoint(write_directory(tmp_path, GEMMA3, tensors))
    names = [f"layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    packed = np.full((256 + 2 * 128, 256), np.nan, np.float32)
    checkpoint.read_into(names[0], packed[:256])
    checkpoint.read_into(names[2], packed[384:])
    assert np.isnan(packed[256:384]).all()
    checkpoint.read_into(names[1], packed[256:384])
    np.testing.assert_array_equal(packed, np.concatenate([tensors[name] for name in names]))


def test_many_row_blocks(tmp_path: Path) -> None:
    """More rows than one block of the threads, the last block not full."""
    config = {**GEMMA3, "vocab_size": 3001}
    tensors = random_tensors(config, seed=7, dtype=ml_dtypes.bfloat16)
    checkpoint = open_checkpoint(write_directory(tmp_path, config, tensors))
    expected = tensors["embed_tokens.weight"]
    for dtype in OUT_DTYPES:
        np.testing.assert_array_equal(read(checkpoint, "embed_tokens.weight", dtype), expected.astype(dtype))


def test_rows_are_gathered(tmp_path: Path) -> None:
    config = {**GEMMA3, "vocab_size": 1200}
    tensors = random_tensors(config, seed=8, dtype=ml_dtypes.bfloat16)
    table = open_checkpoint(write_directory(tmp_path, config, tensors)).table("embed_tokens.weight")
    assert table.shape == (1200, 256)
    expected = tensors["embed_tokens.weight"].astype(np.float32)
    for ids in (np.array([5]), np.array([1199, 0, 7, 7]), np.arange(1200)[::-1], np.zeros(0, np.int64)):
        got = table.gather(ids)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected[ids])
    for bad in ([1200], [-1], [0, 5000]):
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has rows 0\.\.1199, asked for"):
            table.gather(np.array(bad))


def test_head(tmp_path: Path) -> None:
    """Tied and stored all the same; untied; said to be untied but not stored, which is tied."""
    tensors = random_tensors(GEMMA3, seed=9)
    head = {"lm_head.weight": random_tensors(GEMMA3, seed=10)["embed_tokens.weight"]}
    untied = {**GEMMA3, "tie_word_embeddings": False}
    for i, (config, stored, tied) in enumerate(
        [
            (GEMMA3, tensors | head, True),
            (untied, tensors | head, False),
            (untied, tensors, True),
            (GEMMA3, tensors, True),
        ]
    ):
        checkpoint = open_checkpoint(write_directory(tmp_path / str(i), config, stored))
        assert checkpoint.config.tie_word_embeddings is tied
        assert_holds(checkpoint, stored)


def test_unused_tensors_are_ignored(tmp_path: Path) -> None:
    tensors = random_tensors(GEMMA3, seed=11)
    extra = {"model.rotary_emb.inv_freq": np.ones(4, np.int64), "model.layers.9.norm.weight": np.ones(4, np.float32)}
    checkpoint = open_checkpoint(write_directory(tmp_path, GEMMA3, tensors | extra))
    assert read(checkpoint, Q_PROJ).shape == (256, 256)
    with pytest.raises(CheckpointError, match=r"rotary_emb\.inv_freq is stored as I64, which is not supported .*BF16"):
        read(checkpoint, "rotary_emb.inv_freq")


def test_read_into_refuses_a_wrong_array(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_directory(tmp_path, GEMMA3, random_tensors(GEMMA3, seed=12)))
    for out, message in [
        (np.empty((256, 255), np.float32), r"q_proj\.weight is \[256, 256\]; .* array of \[256, 255\]"),
        (np.empty((256, 512), np.float32)[:, :256], "rows are not contiguous"),
        (np.empty((256, 256), np.int32), "cannot be read as int32"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read_into(Q_PROJ, out)
    with pytest.raises(CheckpointError, match=r"there is no tensor layers\.7\.nope"):
        checkpoint.shape("layers.7.nope")
    assert "layers.7.nope" not in checkpoint
    assert Q_PROJ in checkpoint


# -- refused files


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such file or directory")
    refused(tmp_path, "has neither model.safetensors nor model.safetensors.index.json")
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    refused(tmp_path / "model.safetensors", "give the directory", str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pth", "pytorch_model-00001-of-00002.bin", "x.pt"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, GEMMA3)
    (tmp_path / name).write_bytes(pickle.dumps({}))
    refused(tmp_path, name, "can run code when loaded", "save_pretrained")


def test_directory_with_gguf_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(tmp_path, str(tmp_path / "m.gguf"))


def test_wrong_and_missing_tensors(tmp_path: Path) -> None:
    good = random_tensors(GEMMA3, seed=13)
    wrong = good | {Q_PROJ: good[Q_PROJ].T[:128].copy()}
    refused(write_directory(tmp_path / "a", GEMMA3, wrong), "model.safetensors", Q_PROJ, "[128, 256]", "[256, 256]")
    flat = good | {"norm.weight": good["norm.weight"][None]}
    refused(write_directory(tmp_path / "b", GEMMA3, flat), "norm.weight", "[1, 256]", "[256]")
    absent = {name: values for name, values in good.items() if not name.startswith("layers.1.mlp")}
    refused(
        write_directory(tmp_path / "c", GEMMA3, absent),
        "tensors are missing: layers.1.mlp.gate_proj.weight, layers.1.mlp.up_proj.weight, layers.1.mlp.down_proj",
    )
    integers = good | {Q_PROJ: good[Q_PROJ].astype(np.int64)}
    refused(write_directory(tmp_path / "d", GEMMA3, integers), Q_PROJ, "I64", "not supported", "F32, F16, BF16")
    twice = good | {"model.norm.weight": good["norm.weight"]}
    refused(write_directory(tmp_path / "e", GEMMA3, twice), "model.norm.weight", "are both norm.weight")


def test_broken_index(tmp_path: Path) -> None:
    tensors = random_tensors(GEMMA3, seed=14)
    directory = write_directory(tmp_path, GEMMA3, tensors, shards=2)
    index = directory / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    def with_map(weight_map: object) -> Path:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return directory

    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    swapped = good["weight_map"] | {Q_PROJ: second if good["weight_map"][Q_PROJ] == first else first}
    refused(with_map(swapped), swapped[Q_PROJ], f"tensor {Q_PROJ} is missing", "index.json says it is there")
    refused(with_map(good["weight_map"] | {Q_PROJ: "../" + first}), Q_PROJ, "'../model-00001", "beside the index")
    refused(with_map(good["weight_map"] | {Q_PROJ: 3}), Q_PROJ, "is in 3")
    refused(with_map({}), "weight_map is missing or empty")
    refused(with_map([1]), "weight_map is missing or empty")
    index.write_text("{")
    refused(directory, "index.json: cannot be read as JSON")
    index.write_text('{"weight_map": {"a": "b", "a": "c"}}')
    refused(directory, "lists 'a' twice")
    index.write_text("[" * 100_000)
    refused(directory, "index.json: cannot be read as JSON")
    with_map(good["weight_map"])
    (directory / second).unlink()
    refused(directory, second, "is missing", "index.json lists it")


def layout(tensors: Tensors) -> tuple[dict[str, Any], bytes]:
    """A right header and its data, float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [position, position + values.nbytes],
        }
        position += values.nbytes
    return header, b"".join(values.tobytes() for values in tensors.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [5, 5]}, "[5, 5] needs 100 bytes, its data_offsets span 80"),
        ({"shape": [1 << 40, 1 << 40]}, "needs"),
        ({"shape": [5, -4]}, "expected a list of at most 8 sizes"),
        ({"shape": [5.0, 4]}, "expected a list of at most 8 sizes"),
        ({"shape": [True, 20]}, "expected a list of at most 8 sizes"),
        ({"shape": [1] * 9}, "expected a list of at most 8 sizes"),
        ({"shape": None}, "expected a list of at most 8 sizes"),
        ({"dtype": "F64"}, "F64 [5, 4] needs 160 bytes, its data_offsets span 80"),
        ({"dtype": "Q9"}, "unknown dtype 'Q9'"),
        ({"dtype": 4}, "unknown dtype 4"),
        ({"data_offsets": [0, 84]}, "needs 80 bytes, its data_offsets span 84"),
        ({"data_offsets": [80, 0]}, "needs 80 bytes, its data_offsets span -80"),
        ({"data_offsets": [-80, 0]}, "expected [begin, end]"),
        ({"data_offsets": [0]}, "expected [begin, end]"),
        ({"data_offsets": [1 << 80, (1 << 80) + 80]}, "expected [begin, end]"),
        ({"data_offsets": [1 << 40, (1 << 40) + 80]}, "the file is cut"),
        ({"data_offsets": [4, 84]}, "leaves a gap after the header"),
    ],
)
def test_header_that_lies(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_config(tmp_path, TINY_GEMMA1)
    header, data = layout(random_tensors(TINY_GEMMA1, seed=15))
    header["embed_tokens.weight"] |= change
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors(header, data))
    refused(tmp_path, "model.safetensors: tensor embed_tokens.weight", message)


def test_broken_containers(tmp_path: Path) -> None:
    write_config(tmp_path, TINY_GEMMA1)
    header, data = layout(random_tensors(TINY_GEMMA1, seed=16))
    gap = {name: dict(entry) for name, entry in header.items()}
    gap["norm.weight"]["data_offsets"] = [x + 8 for x in gap["norm.weight"]["data_offsets"]]
    overlap = {name: dict(entry) for name, entry in header.items()}
    overlap["norm.weight"]["data_offsets"] = [x - 8 for x in overlap["norm.weight"]["data_offsets"]]
    for content, message in [
        (b"", "the file is empty"),
        (b"abc", "too short"),
        (b"\xff" * 64, "the header claims 18446744073709551615 bytes"),
        (raw_safetensors(b"[1]", b""), "expected an object"),
        (raw_safetensors(b"{", b""), "cannot be read as JSON"),
        (raw_safetensors(b"\xff{}", b""), "cannot be read as JSON"),
        (raw_safetensors(b"[" * 50_000, b""), "cannot be read as JSON"),
        (raw_safetensors(b"9" * 50_000, b""), "cannot be read as JSON"),
        (raw_safetensors(b'{"a": 1, "a": 2}', b""), "lists 'a' twice"),
        (raw_safetensors({"norm.weight": 3}, b""), "entry is not an object"),
        (raw_safetensors(header, data[:-1]), "norm.weight ends at byte"),
        (raw_safetensors(header, data + b"x"), "1 bytes follow the last tensor"),
        (raw_safetensors(gap, data + bytes(8)), "tensor norm.weight leaves a gap after"),
        (raw_safetensors(overlap, data[:-8]), "tensor norm.weight overlaps layers.0"),
    ]:
        (tmp_path / "model.safetensors").write_bytes(content)
        refused(tmp_path, "model.safetensors", message)


def test_no_tensor_is_read_when_opening(tmp_path: Path) -> None:
    """A sparse file of 64 GB opens, and rows of it can be gathered: nothing as large is read or allocated."""
    rows, columns = 16_000_000, 1000
    config = {**TINY_GEMMA1, "hidden_size": columns}
    write_config(tmp_path, config | {"vocab_size": rows})
    header, data = layout(random_tensors(config, seed=17))
    old, new = header["embed_tokens.weight"]["data_offsets"][1], rows * columns * 4
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [x + new - old for x in entry["data_offsets"]]
    header["embed_tokens.weight"] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, new]}
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(raw_safetensors(header, b""))
        file.seek(new, 1)
        file.write(data[old:])
    assert (open_checkpoint(tmp_path).table("embed_tokens.weight").gather(np.array([rows - 1])) == 0).all()


# -- fuzzing: any bytes either open or are refused with one of our errors


@pytest.fixture(scope="module")
def fuzz_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    write_config(directory, TINY_GEMMA1)
    return directory


FUZZ_HEADER, FUZZ_DATA = layout(random_tensors(TINY_GEMMA1, seed=18))
FUZZ_FILE = raw_safetensors(FUZZ_HEADER, FUZZ_DATA)


def open_and_read(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.config.weight_shapes():
            read(checkpoint, name)
    except (CheckpointError, ConfigError):
        return


def test_every_cut_is_refused(fuzz_directory: Path) -> None:
    header_end = len(FUZZ_FILE) - len(FUZZ_DATA)
    for length in [*range(0, header_end, 2), *range(header_end, len(FUZZ_FILE), 7), len(FUZZ_FILE) - 1]:
        (fuzz_directory / "model.safetensors").write_bytes(FUZZ_FILE[:length])
        refused(fuzz_directory, "model.safetensors")
    (fuzz_directory / "model.safetensors").write_bytes(FUZZ_FILE)
    assert open_checkpoint(fuzz_directory).config.vocab_size == 5


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(FUZZ_FILE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
@example([(7, 255)])
def test_changed_bytes(fuzz_directory: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(FUZZ_FILE)
    for position, value in changes:
        content[position] = value
    (fuzz_directory / "model.safetensors").write_bytes(content)
    open_and_read(fuzz_directory)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400)
@given(
    st.sampled_from([name for name in FUZZ_HEADER if name != "__metadata__"]),
    st.sampled_from(["dtype", "shape", "data_offsets", None]),
    JSON_VALUES,
)
def test_changed_header(fuzz_directory: Path, name: str, field: str | None, value: Any) -> None:
    header = json.loads(json.dumps(FUZZ_HEADER))
    if field is None:
        header[name] = value
    else:
        header[name][field] = value
    (fuzz_directory / "model.safetensors").write_bytes(raw_safetensors(header, FUZZ_DATA))
    open_and_read(fuzz_directory)


@settings(max_examples=200)
@given(JSON_VALUES)
def test_any_index(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    directory = tmp_path_factory.getbasetemp() / "any_index"
    write_config(directory, TINY_GEMMA1)
    for content in (value, {"weight_map": value}, {"weight_map": {"norm.weight": value}}):
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError):
            open_checkpoint(directory)


def test_library_agrees_about_a_file_we_accept(fuzz_directory: Path) -> None:
    (fuzz_directory / "model.safetensors").write_bytes(FUZZ_FILE)
    theirs = load_file(fuzz_directory / "model.safetensors")
    assert_holds(open_checkpoint(fuzz_directory), theirs)
