"""GGUF metadata to GemmaConfig: what llama.cpp's converter writes for a model says what its config.json says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_cuda.config import RopeConfig
from gemma_cuda.errors import ConfigError
from gemma_cuda.formats.gemma_config import GemmaConfig
from tests.support.config_cases import FULL, SLIDING, hub, read

Shapes = dict[str, tuple[int, ...]]

TOKENS = {
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.unknown_token_id": 3,
}
EPS = float(np.float32(1e-6))  # as the file's float32 reads
# The header of the real file, less the vocabulary.
GEMMA_3_270M: dict[str, object] = {
    "general.architecture": "gemma3",
    "general.type": "model",
    "general.name": "Gemma 3 270m",
    "general.file_type": 15,
    "gemma3.context_length": 32768,
    "gemma3.embedding_length": 640,
    "gemma3.block_count": 18,
    "gemma3.feed_forward_length": 2048,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.layer_norm_rms_epsilon": EPS,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.rope.freq_base": 1000000.0,
    "gemma3.attention.sliding_window": 512,
    "gemma3.attention.head_count_kv": 1,
    **TOKENS,
}
SHAPES_270M: Shapes = {"token_embd.weight": (262144, 640), "output_norm.weight": (640,)}


def header(name: str) -> tuple[dict[str, object], Shapes]:
    """The metadata and the tensor shapes that llama.cpp's converter makes of a Hub file."""
    d = hub(name)
    config = read(d)
    architecture = {1: "gemma", 2: "gemma2", 3: "gemma3", 4: "gemma4"}[config.generation]
    vocab = min(config.vocab_size, 262144)  # padding rows of the embedding are dropped
    first = config.layers[0]
    values: dict[str, object] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": first.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": first.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": EPS,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim,
    }
    shapes: Shapes = {"token_embd.weight": (vocab, config.hidden_size)}
    if config.generation > 1:
        values["attention.sliding_window"] = first.sliding_window
    if config.generation == 2:
        values |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if config.generation == 3:
        values["rope.freq_base"] = 1000000.0
        if config.layers[5].rope.factor != 1:
            values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.layers[5].rope.factor}
    if config.generation == 4:
        values |= gemma4_values(config)
        shapes |= gemma4_shapes(config)
    metadata = {f"{architecture}.{key}": value for key, value in values.items()}
    return metadata | {"general.architecture": architecture} | TOKENS, shapes


def gemma4_values(config: GemmaConfig) -> dict[str, object]:
    widths = [layer.intermediate_size for layer in config.layers]
    values: dict[str, object] = {
        "attention.shared_kv_layers": sum(layer.kv_source is not None for layer in config.layers),
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.sliding_window_pattern": np.array([layer.layer_type == SLIDING for layer in config.layers]),
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.head_count_kv": np.array([layer.num_key_value_heads for layer in config.layers], np.int32),
        "rope.dimension_count": 512,
        "rope.dimension_count_swa": 256,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
        "final_logit_softcapping": 30.0,
    }
    if len(set(widths)) > 1:
        values["feed_forward_length"] = np.array(widths, np.int32)
    if config.num_experts:
        values |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.top_k_experts,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    return values


def gemma4_shapes(config: GemmaConfig) -> Shapes:
    shapes: Shapes = {"rope_freqs.weight": (256,)}
    if size := config.hidden_size_per_layer_input:
        shapes["per_layer_token_embd.weight"] = (262144, config.num_hidden_layers * size)
    for index, layer in enumerate(config.layers):
        if not layer.attention_k_eq_v and layer.kv_source is None:
            shapes[f"blk.{index}.attn_v.weight"] = (layer.num_key_value_heads * layer.head_dim, config.hidden_size)
    return shapes


def read_gguf(metadata: dict[str, Any], shapes: Shapes) -> GemmaConfig:
    return GemmaConfig.from_gguf(metadata, shapes, source="model.gguf")


def refusal(metadata: dict[str, Any], shapes: Shapes) -> str:
    with pytest.raises(ConfigError) as caught:
        read_gguf(metadata, shapes)
    assert str(caught.value).startswith("model.gguf: ")
    return str(caught.value)


def text_only(config: GemmaConfig) -> GemmaConfig:
    """What a GGUF file of the text model can know of it."""
    tokens = [f"{name}_token_id" for name in ("image", "boi", "eoi", "audio", "boa", "eoa", "video")]
    vision = ["composite", "bidirectional", "mm_tokens_per_image", "vision_hidden_size", "vision_layer_norm_eps"]
    nothing = dict.fromkeys([*tokens, *vision, "dtype"])
    return replace(config, vocab_size=min(config.vocab_size, 262144), eos_token_ids=(1,), **nothing)  # type: ignore[arg-type]


def test_the_real_file() -> None:
    assert read_gguf(GEMMA_3_270M, SHAPES_270M) == text_only(read(hub("gemma-3-270m")))


@pytest.mark.parametrize(
    "name",
    [
        "gemma-2b",
        "gemma-7b",
        "gemma-2-2b",
        "gemma-2-9b",
        "gemma-2-27b",  # scale 144^-1/2 by its 46 layers
        "gemma-3-270m",
        "gemma-3-1b",
        "gemma-3-4b",
        "gemma-3-12b",
        "gemma-3-27b",  # scale 168^-1/2 by its 62 layers
        "gemma-4-e2b",
        "gemma-4-e4b",
        "gemma-4-31b",
        "gemma-4-26b-a4b",
    ],
)
def test_says_what_config_json_says(name: str) -> None:
    assert read_gguf(*header(name)) == text_only(read(hub(name)))


def test_gemma_4_unified_is_a_gemma_4_without_extras() -> None:
    expected = replace(text_only(read(hub("gemma-4-12b"))), model_type="gemma4_text")
    assert read_gguf(*header("gemma-4-12b")) == expected


def test_what_early_gemma_2_files_leave_out() -> None:
    metadata, shapes = header("gemma-2-9b")
    expected = read_gguf(metadata, shapes)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"):
        del metadata["gemma2." + key]
    assert read_gguf(metadata, shapes) == expected


def test_gemma_3_without_window_is_full_everywhere() -> None:
    metadata = {key: value for key, value in GEMMA_3_270M.items() if "sliding_window" not in key}
    for given_metadata in (metadata, metadata | {"gemma3.attention.sliding_window": 0}):
        assert {layer.layer_type for layer in read_gguf(given_metadata, SHAPES_270M).layers} == {FULL}


def test_pattern_as_period_and_as_flags() -> None:
    key = "gemma3.attention.sliding_window_pattern"
    by_period = read_gguf(GEMMA_3_270M | {key: 3}, SHAPES_270M)
    flags = np.array([True, True, False] * 6)
    assert by_period == read_gguf(GEMMA_3_270M | {key: flags}, SHAPES_270M)
    assert [layer.layer_type for layer in by_period.layers[:4]] == [SLIDING, SLIDING, FULL, SLIDING]


def test_rope() -> None:
    metadata = GEMMA_3_270M | {"gemma3.rope.scale_linear": 4.0, "gemma3.rope.freq_base_swa": 20000.0}
    layers = read_gguf(metadata, SHAPES_270M).layers
    assert layers[5].rope == RopeConfig("linear", 1e6, 4.0)
    assert layers[0].rope == RopeConfig("default", 2e4)
    none = read_gguf(metadata | {"gemma3.rope.scaling.type": "none"}, SHAPES_270M)
    assert none.layers[5].rope == RopeConfig("default", 1e6)


def test_head_and_end_of_turn() -> None:
    shapes = SHAPES_270M | {"output.weight": (262144, 640)}
    config = read_gguf(GEMMA_3_270M | {"tokenizer.ggml.eot_token_id": 106}, shapes)
    assert not config.tie_word_embeddings and config.eos_token_ids == (1, 106)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("general.architecture", None, "general.architecture is None"),
        ("general.architecture", "llama", "general.architecture is 'llama', supported: gemma, gemma2, gemma3, gemma4"),
        ("general.architecture", "gemma3n", "general.architecture is 'gemma3n'"),
        ("general.architecture", 3, "general.architecture is 3"),
        ("gemma3.block_count", 10**12, "gemma3.block_count is 1000000000000"),
        ("gemma3.block_count", np.array([18]), "gemma3.block_count is a list"),
        ("gemma3.embedding_length", 640.0, "gemma3.embedding_length is 640.0"),
        ("gemma3.attention.head_count", 0, "gemma3.attention.head_count is 0"),
        ("gemma3.attention.head_count_kv", 3, "num_key_value_heads = 3"),
        ("gemma3.attention.key_length", 128, "gemma3.attention.value_length is 256, but attention.key_length is 128"),
        ("gemma3.rope.dimension_count", 64, "gemma3.rope.dimension_count is 64"),
        ("gemma3.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
        ("gemma3.attention.layer_norm_rms_epsilon", 1e300, "rms_norm_eps is inf"),
        ("gemma3.attention.sliding_window", True, "gemma3.attention.sliding_window is True"),
        ("gemma3.attention.sliding_window_pattern", np.array([True]), "sliding_window_pattern is a list of 1 values"),
        ("gemma3.attention.sliding_window_pattern", np.full(18, 2), "expected 18 flags"),
        ("gemma3.rope.scaling.type", "yarn", "gemma3.rope.scaling.type is 'yarn'"),
        ("gemma3.rope.scaling.type", "linear", "gemma3.rope.scale_linear is missing"),
        ("gemma3.rope.scaling.factor", 0.0, "gemma3.rope.scaling.factor is 0.0"),
        ("tokenizer.ggml.padding_token_id", 262144, "pad_token_id is 262144"),
        ("tokenizer.ggml.eos_token_id", -1, "tokenizer.ggml.eos_token_id is -1"),
    ],
)
def test_refusals_name_the_key(key: str, value: Any, words: str) -> None:
    assert words in refusal(GEMMA_3_270M | {key: value}, SHAPES_270M)


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "gemma3.context_length",
        "gemma3.embedding_length",
        "gemma3.block_count",
        "gemma3.feed_forward_length",
        "gemma3.attention.head_count",
        "gemma3.attention.head_count_kv",
        "gemma3.attention.key_length",
        "gemma3.attention.layer_norm_rms_epsilon",
        "gemma3.rope.freq_base",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    ],
)
def test_nothing_is_invented(key: str) -> None:
    metadata = {name: value for name, value in GEMMA_3_270M.items() if name != key}
    assert f"{key} is missing" in refusal(metadata, SHAPES_270M)


def test_no_embedding() -> None:
    assert "token_embd.weight is missing" in refusal(GEMMA_3_270M, {})


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        ("gemma-4-e2b", "attention.sliding_window_pattern", 5, "sliding_window_pattern is 5, expected a list"),
        ("gemma-4-e2b", "attention.shared_kv_layers", 35, "attention.shared_kv_layers is 35"),
        (
            "gemma-4-e2b",
            "attention.head_count_kv",
            np.array([1, 1]),
            "head_count_kv is a list of 2 values, expected 35",
        ),
        ("gemma-4-e2b", "attention.head_count_kv", np.zeros(35, int), "head_count_kv[0] is 0"),
        ("gemma-4-e2b", "feed_forward_length", np.arange(1, 36), "feed_forward_length varies by layer in another way"),
        ("gemma-4-e2b", "rope.dimension_count_swa", 128, "rope.dimension_count_swa is 128"),
        ("gemma-4-26b-a4b", "expert_used_count", 129, "top_k_experts is 129"),
    ],
)
def test_gemma_4_refusals(name: str, key: str, value: Any, words: str) -> None:
    metadata, shapes = header(name)
    assert words in refusal(metadata | {f"gemma4.{key}": value}, shapes)


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("gemma-4-e2b", "rope_freqs.weight", "rope_freqs.weight is missing"),
        ("gemma-4-e2b", "per_layer_token_embd.weight", "per_layer_token_embd.weight is missing"),
        ("gemma-4-e2b", "blk.4.attn_v.weight", "some full_attention layers have an attn_v.weight"),
    ],
)
def test_gemma_4_tensors_that_must_be_there(name: str, tensor: str, words: str) -> None:
    metadata, shapes = header(name)
    del shapes[tensor]
    assert words in refusal(metadata, shapes)


VALUES = (
    st.sampled_from([0, 1, -1, 2**40, 10**400, 1e-300, float("inf"), "", "linear", True, None])
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(0, 3), max_size=40).map(np.array)
    | st.lists(st.floats(), max_size=3).map(np.array)
)
HEADERS = [header(name) for name in ("gemma-2b", "gemma-2-27b", "gemma-3-4b", "gemma-4-e2b", "gemma-4-26b-a4b")]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(HEADERS), st.data())
def test_mutated_headers_never_raise_anything_else(real: tuple[dict[str, object], Shapes], data: st.DataObject) -> None:
    metadata, shapes = dict(real[0]), dict(real[1])
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        if data.draw(st.booleans()):
            metadata[key] = data.draw(VALUES)
        else:
            del metadata[key]
        if not metadata:
            break
    try:
        config = read_gguf(metadata, shapes)
    except ConfigError as error:
        assert str(error).startswith("model.gguf: ")
    else:
        assert len(config.layers) == config.num_hidden_layers and config.parameter_count() > 0
