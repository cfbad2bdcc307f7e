"""Small checkpoints with random weights, written by the `safetensors` and `gguf` libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from gemma_cuda.formats.gemma_config import GemmaConfig

Tensors = dict[str, np.ndarray[Any, Any]]

# One 256-element K block per row; a sliding and a full layer.
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
# As small as a model can be, for fuzzing.
TINY_GEMMA1: dict[str, Any] = {
    "model_type": "gemma",
    "vocab_size": 5,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def random_tensors(config: Mapping[str, Any], *, seed: int, dtype: Any = np.float32) -> Tensors:
    """Every tensor of the text model by canonical name, normally distributed."""
    rng = np.random.default_rng(seed)
    shapes = GemmaConfig.from_dict(config, source="test").weight_shapes()
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))


def write_directory(directory: Path, config: Mapping[str, Any], tensors: Tensors, *, shards: int = 1) -> Path:
    """config.json and model.safetensors, or `shards` shards and their index. Tensor names are written as given."""
    write_config(directory, config)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A safetensors file with this header, right or wrong, and no padding after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def gguf_name(arch: gguf.MODEL_ARCH, canonical: str, layers: int) -> str:
    """What llama.cpp's converter calls a tensor, by the `gguf` package's own table."""
    if canonical.endswith("router.scale"):
        return f"blk.{canonical.split('.')[1]}.ffn_gate_inp.scale"
    if canonical.endswith("router.per_expert_scale"):
        return f"blk.{canonical.split('.')[1]}.ffn_down_exps.scale"
    name = canonical if canonical.endswith(".weight") else canonical + ".weight"
    if name == "lm_head.weight":
        return "output.weight"
    mapped = gguf.get_tensor_name_map(arch, layers).get_name("model." + name, try_suffixes=(".weight",))
    assert mapped is not None, canonical
    return mapped


def write_gguf(
    path: Path,
    arch: str,
    tensors: Mapping[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]],
    metadata: Mapping[str, Any],
) -> Path:
    """A GGUF file of packed tensors by GGUF name; metadata values by their Python type (int is uint32)."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add_metadata(writer, key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def pack(
    values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """`values` in a GGML format: the library's quantisation, or random blocks where it cannot quantise (K types)."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        packed = rng.integers(0, 256, gguf.quant_shape_to_byte_shape(values.shape, kind), dtype=np.uint8)
        _, size = gguf.GGML_QUANT_SIZES[kind]
        scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
        blocks = packed.reshape(-1, size)
        for start in scales:  # finite, of either sign, some of them subnormal
            halves = (rng.standard_normal(len(blocks)) * 10.0 ** rng.integers(-7, 2, len(blocks))).astype(np.float16)
            blocks[:, start : start + 2] = halves[:, None].view(np.uint8)
        return packed


def gguf_vocabulary(count: int) -> dict[str, Any]:
    """Tokenizer metadata of `count` tokens, some of them empty, long or not ASCII."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "", "▁the", "é", "😀", "x" * 300]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": (tokens + [f"t{i}" for i in range(count)])[:count],
        "tokenizer.ggml.scores": [-float(i) for i in range(count)],
        "tokenizer.ggml.token_type": [3 if i < 4 else 1 for i in range(count)],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter writes for a Gemma 1, 2 or 3 config, vocabulary included."""
    arch = config["model_type"].removesuffix("_text")
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
    }
    if arch != "gemma":
        keys["attention.sliding_window"] = config["sliding_window"]
    if arch == "gemma3":
        keys["rope.freq_base"] = 1e6
    return {f"{arch}.{key}": value for key, value in keys.items()} | gguf_vocabulary(config["vocab_size"])


def write_gguf_model(
    path: Path, config: Mapping[str, Any], tensors: Tensors, kind: gguf.GGMLQuantizationType, *, seed: int = 0
) -> Tensors:
    """Writes a Gemma 1, 2 or 3 model, its matrices stored as `kind`; returns what the library decodes, canonically."""
    rng, arch = np.random.default_rng(seed), config["model_type"].removesuffix("_text")
    packed, expected = {}, {}
    for name, values in tensors.items():
        used = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = pack(values, used, rng)
        packed[gguf_name(gguf.MODEL_ARCH[arch.upper()], name, config["num_hidden_layers"])] = (data, used)
        expected[name] = gguf.quants.dequantize(data, used).reshape(values.shape)
    write_gguf(path, arch, packed, gguf_metadata(config))
    return expected
