"""GemmaConfig against the config classes and models of HuggingFace Transformers, and the files on the Hub."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from gemma_cuda.config import RopeConfig
from gemma_cuda.formats.gemma_config import GemmaConfig
from tests.support.config_cases import FULL, HF_CONFIGS, HUB, SLIDING, TINY, TINY_4, hub, read

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
NOT_TEXT = (
    "vision_tower.",
    "audio_tower.",
    "multi_modal_projector.",
    "embed_vision.",
    "embed_audio.",
    "vision_embedder.",
)

# Keys that HuggingFace turns into others when it reads them, and does not write again.
SPELLINGS: list[dict[str, Any]] = [
    {"model_type": "gemma", **TINY, "rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"model_type": "gemma", **TINY, "rope_theta": 5e4, "rope_parameters": {"rope_type": "default"}, "rope_scaling": {}},
    {
        "model_type": "gemma2",
        **TINY,
        "rope_theta": 5e4,
        "rope_parameters": {"rope_theta": 6e4},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    {"model_type": "gemma2", **TINY, "layer_types": None, "sliding_window_pattern": 3},
    {"model_type": "gemma3_text", **TINY, "rope_theta": 5e5, "rope_local_base_freq": 3e4},
    {"model_type": "gemma3_text", **TINY, "rope_theta": 5e5, "rope_parameters": {SLIDING: {"rope_theta": 3e4}}},
    {
        "model_type": "gemma3_text",
        **TINY,
        "rope_parameters": {FULL: {"rope_theta": 5e5}, SLIDING: None},
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    {"model_type": "gemma4_text", **TINY},
    {"model_type": "gemma4_text", **TINY_4, "layer_types": [FULL] + [SLIDING] * 7},
    {"model_type": "gemma4_text", **TINY_4, "num_global_key_value_heads": 1},
    {"model_type": "gemma4_text", **TINY_4, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    {"model_type": "gemma4_text", **TINY_4, "attention_k_eq_v": True},
    {"model_type": "gemma4_text", **TINY_4, "per_layer_config": {}},
    {"model_type": "gemma4_text", **TINY_4, "per_layer_config": {"05": {"head_dim": 32}, "7": {"head_dim": 32}}},
    {
        "model_type": "gemma4_text",
        **TINY,
        "per_layer_config": {"5": {"num_key_value_heads": 4}, "07": {"num_key_value_heads": 4, "head_dim": 16}},
    },
    {"model_type": "gemma4_unified", "text_config": {**TINY, "use_bidirectional_attention": None}},
    {"model_type": "gemma4_unified", "text_config": {**TINY, "enable_moe_block": True, "num_experts": 4}},
    {"model_type": "gemma3", "text_config": TINY, "image_token_id": 95, "boi_token_id": 94, "vision_config": {}},
    {"model_type": "paligemma", "text_config": TINY, "image_token_id": 95, "projection_dim": 48},
]


@pytest.fixture(params=list(HF_CONFIGS))
def hf_config(request: pytest.FixtureRequest) -> PreTrainedConfig:
    return HF_CONFIGS[request.param]()


class TestHuggingFaceConfigs:
    """What `save_pretrained` writes, field by field against what HuggingFace itself reads from it."""

    def test_scalars(self, hf_config: PreTrainedConfig) -> None:
        config, text = read(hf_config.to_dict()), hf_config.get_text_config()
        assert config.model_type == text.model_type
        assert config.composite == (None if text is hf_config else hf_config.model_type)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "pad_token_id",
            "bos_token_id",
        ):
            assert getattr(config, name) == getattr(text, name), name
        assert config.tie_word_embeddings == hf_config.tie_word_embeddings
        eos = text.eos_token_id
        assert config.eos_token_ids == tuple(eos if isinstance(eos, list) else [eos])
        assert config.dtype == hf_config.to_dict()["dtype"]
        assert config.generation == {"gemma": 1, "gemma2": 2, "gemma3_text": 3}.get(text.model_type, 4)
        assert config.position_offset == (hf_config.model_type == "paligemma")

    def test_softcaps(self, hf_config: PreTrainedConfig) -> None:
        config, text = read(hf_config.to_dict()), hf_config.get_text_config()
        attention = text.attn_logit_softcapping if text.model_type == "gemma2" else None
        final = None if hf_config.model_type == "gemma3" else getattr(text, "final_logit_softcapping", None)
        assert config.attn_logit_softcapping == attention
        assert config.final_logit_softcapping == final

    def test_layers(self, hf_config: PreTrainedConfig) -> None:
        config, text = read(hf_config.to_dict()), hf_config.get_text_config()
        types = getattr(text, "layer_types", [FULL] * text.num_hidden_layers)
        assert [layer.layer_type for layer in config.layers] == types
        for index, layer in enumerate(config.layers):
            theirs = text.per_layer_config[index]
            assert (layer.head_dim, layer.num_key_value_heads) == (theirs.head_dim, theirs.num_key_value_heads)
            assert layer.rope == hf_rope(text, layer.layer_type)
            assert layer.attention_k_eq_v == (getattr(text, "attention_k_eq_v", False) and layer.layer_type == FULL)
            halved = config.bidirectional == "text"
            window = 2 * (text.sliding_window - 1) if halved else getattr(text, "sliding_window", None)
            assert layer.sliding_window == (window if layer.layer_type == SLIDING else None)
        modes = getattr(text, "kv_sharing_modes", [None] * text.num_hidden_layers)
        for index, (layer, mode) in enumerate(zip(config.layers, modes, strict=True)):
            if mode != "reuse":
                assert layer.kv_source is None
                continue
            assert layer.kv_source is not None and layer.kv_source < index
            assert modes[layer.kv_source] == "store" and types[layer.kv_source] == types[index]

    def test_bidirectional(self, hf_config: PreTrainedConfig) -> None:
        config, text = read(hf_config.to_dict()), hf_config.get_text_config()
        flag = text.use_bidirectional_attention
        expected = {
            "paligemma": "prefix",
            "gemma3": "vision_all_layers",
            "gemma3_text": "text" if flag else None,
        }.get(hf_config.model_type, {"vision": "vision_sliding_layers", "all": "text"}.get(flag))
        assert config.bidirectional == expected
        if expected == "text":  # HuggingFace keeps w // 2 + 1: Gemma 3 sees |q - k| below it, Gemma 4 up to it
            assert config.bidirectional_radius == text.sliding_window - (text.model_type == "gemma3_text")
        else:
            assert config.bidirectional_radius is None

    def test_gemma4_extras(self, hf_config: PreTrainedConfig) -> None:
        config, text = read(hf_config.to_dict()), hf_config.get_text_config()
        ple = getattr(text, "hidden_size_per_layer_input", 0)
        assert config.hidden_size_per_layer_input == ple
        assert config.vocab_size_per_layer_input == (text.vocab_size_per_layer_input if ple else 0)
        moe = getattr(text, "enable_moe_block", False)
        expected = (text.num_experts, text.top_k_experts, text.moe_intermediate_size) if moe else (0, 0, 0)
        assert (config.num_experts, config.top_k_experts, config.moe_intermediate_size) == expected

    def test_composite_fields(self, hf_config: PreTrainedConfig) -> None:
        config, composite = read(hf_config.to_dict()), hf_config.model_type
        is_composite = hf_config.get_text_config() is not hf_config
        for name in ("image", "boi", "eoi", "audio", "boa", "eoa", "video"):
            theirs = getattr(hf_config, f"{name}_token_id", getattr(hf_config, f"{name}_token_index", None))
            assert getattr(config, f"{name}_token_id") == theirs, name
        vision = getattr(hf_config, "vision_config", None)
        if not is_composite or vision is None:
            assert config.vision_hidden_size is None and config.vision_layer_norm_eps is None
            return
        width = vision.output_proj_dims if composite == "gemma4_unified" else vision.hidden_size
        eps = vision.layer_norm_eps if composite in ("gemma3", "paligemma") else vision.rms_norm_eps
        assert (config.vision_hidden_size, config.vision_layer_norm_eps) == (width, eps)
        tokens = {"gemma3": "mm_tokens_per_image", "paligemma": "num_image_tokens"}.get(composite)
        holder = hf_config if composite == "gemma3" else hf_config.get_text_config()
        assert config.mm_tokens_per_image == (getattr(holder, tokens) if tokens else None)

    def test_saved_file(self, hf_config: PreTrainedConfig, tmp_path: Path) -> None:
        """save_pretrained writes only what differs from the defaults; it says the same."""
        hf_config.save_pretrained(tmp_path)
        config = GemmaConfig.from_file(tmp_path)
        assert config == read(hf_config.to_dict())
        assert config == GemmaConfig.from_file(str(tmp_path / "config.json"))

    def test_scale(self, hf_config: PreTrainedConfig) -> None:
        attention = hf_text_model(hf_config).layers[0].self_attn
        assert read(hf_config.to_dict()).scale == attention.scaling

    def test_weight_shapes(self, hf_config: PreTrainedConfig) -> None:
        config = read(hf_config.to_dict())
        assert config.weight_shapes() == hf_shapes(hf_config)
        parameters = sum(int(np.prod(shape)) for shape in hf_shapes(hf_config).values())
        assert config.parameter_count() == parameters


def hf_rope(text: PreTrainedConfig, layer_type: str) -> RopeConfig:
    entry = text.rope_parameters.get(layer_type, text.rope_parameters)
    return RopeConfig(
        entry["rope_type"], entry["rope_theta"], entry.get("factor", 1.0), entry.get("partial_rotary_factor", 1.0)
    )


def hf_model(hf_config: PreTrainedConfig) -> torch.nn.Module:
    composite = hf_config.get_text_config() is not hf_config
    with torch.device("meta"):
        if composite:
            return AutoModelForImageTextToText.from_config(copy.deepcopy(hf_config))
        return AutoModelForCausalLM.from_config(copy.deepcopy(hf_config))


def hf_text_model(hf_config: PreTrainedConfig) -> Any:
    model = hf_model(hf_config).model
    return getattr(model, "language_model", model)


def hf_shapes(hf_config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """State dict of HuggingFace's model: names of the text model without prefix, a tied head left out."""
    shapes = {}
    for name, tensor in hf_model(hf_config).state_dict().items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        inner = name.removeprefix(prefix)
        if not inner.startswith(NOT_TEXT) and not (inner == "lm_head.weight" and hf_config.tie_word_embeddings):
            shapes[inner] = tuple(tensor.shape)
    return shapes


class TestHubFiles:
    @pytest.mark.parametrize("name", HUB)
    def test_read_as_huggingface_reads_it(self, name: str) -> None:
        hf_config = AutoConfig.for_model(**hub(name))
        assert read(hub(name)) == read(hf_config.to_dict())

    @pytest.mark.parametrize("d", SPELLINGS)
    def test_other_spellings(self, d: dict[str, Any]) -> None:
        hf_config = AutoConfig.for_model(**copy.deepcopy(d))
        assert read(d) == read(hf_config.to_dict())
        assert read(d).weight_shapes() == hf_shapes(hf_config)

    @pytest.mark.parametrize(
        "name, layers, hidden, intermediate, heads, kv_heads, head_dim, window, scalar, vocab",
        [
            ("gemma-2b", 18, 2048, 16384, 8, 1, 256, None, 256, 256000),
            ("gemma-7b", 28, 3072, 24576, 16, 16, 256, None, 256, 256000),
            ("gemma-2-2b", 26, 2304, 9216, 8, 4, 256, 4096, 256, 256000),
            ("gemma-2-9b", 42, 3584, 14336, 16, 8, 256, 4096, 256, 256000),
            ("gemma-2-27b", 46, 4608, 36864, 32, 16, 128, 4096, 144, 256000),
            ("gemma-3-270m", 18, 640, 2048, 4, 1, 256, 512, 256, 262144),
            ("gemma-3-1b", 26, 1152, 6912, 4, 1, 256, 512, 256, 262144),
            ("gemma-3-4b", 34, 2560, 10240, 8, 4, 256, 1024, 256, 262208),
            ("gemma-3-12b", 48, 3840, 15360, 16, 8, 256, 1024, 256, 262208),
            ("gemma-3-27b", 62, 5376, 21504, 32, 16, 128, 1024, 168, 262208),
            ("embeddinggemma-300m", 24, 768, 1152, 3, 1, 256, 512, 256, 262144),
            ("gemma-4-e2b", 35, 1536, 6144, 8, 1, 256, 512, 1, 262144),
            ("gemma-4-e4b", 42, 2560, 10240, 8, 2, 256, 512, 1, 262144),
            ("gemma-4-12b", 48, 3840, 15360, 16, 8, 256, 1024, 1, 262144),
            ("gemma-4-31b", 60, 5376, 21504, 32, 16, 256, 1024, 1, 262144),
            ("gemma-4-26b-a4b", 30, 2816, 2112, 16, 8, 256, 1024, 1, 262144),
        ],
    )
    def test_published_sizes(
        self,
        name: str,
        layers: int,
        hidden: int,
        intermediate: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int | None,
        scalar: int,
        vocab: int,
    ) -> None:
        config = read(hub(name))
        first = config.layers[0]
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, hidden, heads)
        assert (first.intermediate_size, first.num_key_value_heads, first.head_dim) == (
            intermediate,
            kv_heads,
            head_dim,
        )
        assert (first.sliding_window, config.scale, config.vocab_size) == (window, scalar**-0.5, vocab)

    @pytest.mark.parametrize(
        "name, parameters",
        [
            ("gemma-2b", 2_506_172_416),
            ("gemma-7b", 8_537_680_896),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320),
            ("gemma-3-270m", 268_098_176),
            ("gemma-3-1b", 999_885_952),
            ("embeddinggemma-300m", 302_863_104),
        ],
    )
    def test_parameters_as_the_hub_counts_them(self, name: str, parameters: int) -> None:
        assert read(hub(name)).parameter_count() == parameters

    @pytest.mark.parametrize(
        "name, billions",
        [
            ("gemma-4-e2b", 4.6),
            ("gemma-4-e4b", 7.5),
            ("gemma-4-12b", 11.9),
            ("gemma-4-31b", 30.7),
            ("gemma-4-26b-a4b", 25.2),
        ],
    )
    def test_parameters_of_gemma_4(self, name: str, billions: float) -> None:
        assert read(hub(name)).parameter_count() == pytest.approx(billions * 1e9, rel=0.03)

    def test_gemma_3_rope(self) -> None:
        layers = read(hub("gemma-3-4b")).layers
        assert layers[5].rope == RopeConfig("linear", 1_000_000.0, 8.0)
        assert layers[4].rope == RopeConfig("default", 10_000.0)
        spelled = hub("gemma-3-4b")
        spelled["text_config"]["rope_scaling"] = {"factor": 8.0, "type": "linear"}
        assert read(spelled).layers == layers

    def test_gemma_4_sharing(self) -> None:
        e2b, e4b = read(hub("gemma-4-e2b")).layers, read(hub("gemma-4-e4b")).layers
        assert [layer.kv_source for layer in e2b[13:20]] == [None, None, 13, 13, 13, 13, 14]
        assert {layer.kv_source for layer in e4b[:24]} == {None} and {layer.kv_source for layer in e4b[24:]} == {22, 23}
        assert {layer.intermediate_size for layer in e2b[15:]} == {12288}
        assert {layer.intermediate_size for layer in e4b} == {10240}

    def test_gemma_4_geometry(self) -> None:
        layer = read(hub("gemma-4-31b")).layers[5]
        assert (layer.layer_type, layer.head_dim, layer.num_key_value_heads) == (FULL, 512, 4)
        assert layer.attention_k_eq_v and layer.sliding_window is None
        assert layer.rope == RopeConfig("proportional", 1_000_000.0, partial_rotary_factor=0.25)

    def test_embedding_gemma_radius(self) -> None:
        config = read(hub("embeddinggemma-300m"))
        assert (config.bidirectional, config.bidirectional_radius) == ("text", 256)

    def test_eos_of_the_outer_level(self) -> None:
        assert read(hub("gemma-3-4b")).eos_token_ids == (1, 106)
        assert read(hub("gemma-2-9b")).eos_token_ids == (1, 107)
        assert read(hub("gemma-2b") | {"eos_token_id": None}).eos_token_ids == ()

    def test_legacy_gelu_is_the_tanh_approximation_in_gemma_1(self) -> None:
        assert read(hub("gemma-2b")) == read(hub("gemma-2b") | {"hidden_act": "gelu_pytorch_tanh"})

    def test_untied_where_only_the_text_config_says_so(self) -> None:
        d = hub("gemma-3-4b")
        d["text_config"]["tie_word_embeddings"] = False
        assert not read(d).tie_word_embeddings
        assert read(d | {"tie_word_embeddings": True}).tie_word_embeddings

    def test_explicit_layer_types_win(self) -> None:
        d = hub("gemma-3-1b") | {"layer_types": [FULL, SLIDING] * 13}
        assert [layer.layer_type for layer in read(d).layers[:3]] == [FULL, SLIDING, FULL]

    def test_unknown_keys_are_noise(self) -> None:
        noise = {"use_cache": "?", "quantisation": {"a": [1]}, "sliding_window_size": -1, "head_dims": None, "": 0}
        assert read(hub("gemma-3-1b") | noise) == read(hub("gemma-3-1b"))


def test_kv_bytes_per_token() -> None:
    assert read(hub("gemma-3-270m")).kv_bytes_per_token(2) == 18 * 2 * 256 * 2
    # 15 of 35 layers have K and V of their own: 12 local ones, 3 global ones
    assert read(hub("gemma-4-e2b")).kv_bytes_per_token(4) == (12 * 256 + 3 * 512) * 2 * 4


def test_properties_by_generation() -> None:
    configs = [read(hub(name)) for name in ("gemma-2b", "gemma-2-2b", "gemma-3-1b", "gemma-4-12b")]
    assert [config.generation for config in configs] == [1, 2, 3, 4]
    assert [config.norm_plus_one for config in configs] == [True, True, True, False]
    assert [config.post_norms for config in configs] == [False, True, True, True]
    assert [config.has_qk_norm for config in configs] == [False, False, True, True]
