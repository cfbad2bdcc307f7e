"""Configurations that are wrong, absurd or hostile: one ConfigError that names the file and the field, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_cuda.errors import ConfigError
from gemma_cuda.formats.gemma_config import GemmaConfig
from tests.support.config_cases import FULL, HF_CONFIGS, HUB, SLIDING, hub, read

ABSENT = object()
COMPOSITES = ("gemma3", "gemma4", "gemma4_unified", "paligemma")


def changed(name: str, key: str, value: Any) -> dict[str, Any]:
    """The Hub file `name` with the text model's `key` set to `value`, or taken away."""
    d = hub(name)
    text = d["text_config"] if d["model_type"] in COMPOSITES else d
    if value is ABSENT:
        del text[key]
    else:
        text[key] = value
    return d


def refusal(d: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(d)
    message = str(caught.value)
    assert message.startswith("config.json: ") and len(message) < 500
    return message


SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
NO_SIZE = (0, -1, 10**12, 10**5000, 1.5, 256.0, float("nan"), True, False, None, "256", [256], {})


@pytest.mark.parametrize("key", [*SIZES, "vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", NO_SIZE, ids=lambda value: f"{value!r:.12}" if value != 10**5000 else "10**5000")
@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-4b", "gemma-4-31b"])
def test_absurd_sizes(name: str, key: str, value: Any) -> None:
    assert f"{key} is " in refusal(changed(name, key, value))


@pytest.mark.parametrize("key", ["rms_norm_eps", "query_pre_attn_scalar", "final_logit_softcapping"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 10**400, True, "1e-6", [1.0]])
def test_absurd_numbers(key: str, value: Any) -> None:
    if isinstance(value, int) and value > 10**300:
        assert "bits" in refusal(changed("gemma-2-2b", key, value))
    assert f"{key} is " in refusal(changed("gemma-2-2b", key, value))


ROPE_4 = {
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        ("gemma-2b", "num_key_value_heads", 3, "num_attention_heads is 8, no multiple of num_key_value_heads = 3"),
        ("gemma-3-1b", "head_dim", 255, "head_dim is 255"),
        ("gemma-2b", "attention_bias", True, "attention_bias is true"),
        ("gemma-3-4b", "attention_bias", "no", "text_config.attention_bias is 'no', expected true or false"),
        ("gemma-2b", "hidden_act", "silu", "hidden_act is 'silu'"),
        ("gemma-2-2b", "hidden_activation", "gelu", "hidden_activation is 'gelu'"),
        ("gemma-2-2b", "hidden_activation", None, "hidden_activation is None"),
        ("gemma-4-31b", "hidden_activation", 3, "hidden_activation is 3"),
        ("gemma-2-2b", "sliding_window", None, "sliding_window is null"),
        ("gemma-2-2b", "sliding_window", 0, "sliding_window is 0"),
        ("gemma-3-1b", "sliding_window", 1 << 40, "sliding_window is "),
        ("gemma-3-1b", "sliding_window_pattern", 0, "sliding_window_pattern is 0"),
        ("gemma-3-1b", "sliding_window_pattern", "6", "sliding_window_pattern is '6'"),
        ("gemma-3-1b", "layer_types", [FULL] * 25, "layer_types has 25 entries for 26 layers"),
        ("gemma-3-1b", "layer_types", [FULL] * 25 + ["chunked_attention"], "layer_types[25] is 'chunked_attention'"),
        ("gemma-3-1b", "layer_types", [FULL] * 25 + [[]], "layer_types[25] is a list"),
        ("gemma-3-1b", "layer_types", FULL, "layer_types is 'full_attention', expected a list"),
        ("gemma-2b", "rope_theta", "10000", "rope_theta is '10000'"),
        ("gemma-2b", "rope_theta", 0.5, "rope_theta is 0.5"),
        ("gemma-2b", "rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_scaling.type is 'dynamic'"),
        ("gemma-2-2b", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "rope_scaling.rope_type is 'yarn'"),
        ("gemma-3-4b", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "rope_scaling.rope_type is 'llama3'"),
        ("gemma-3-4b", "rope_scaling", {"rope_type": "linear"}, "text_config.rope_scaling.factor is missing"),
        ("gemma-3-4b", "rope_scaling", {"rope_type": "linear", "factor": -8}, "rope_scaling.factor is -8"),
        ("gemma-3-4b", "rope_scaling", "linear", "text_config.rope_scaling is 'linear', expected an object"),
        ("gemma-3-1b", "rope_parameters", {"rope_type": "default"}, "rope_parameters has neither full_attention nor"),
        ("gemma-2-2b", "rope_parameters", ROPE_4, "rope_parameters.full_attention is not supported"),
        (
            "gemma-3-1b",
            "rope_parameters",
            {FULL: {"rope_type": None}},
            "rope_parameters.full_attention.rope_type is None",
        ),
        ("gemma-3-1b", "rope_parameters", {FULL: {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("gemma-4-31b", "rope_parameters", {SLIDING: ROPE_4[SLIDING]}, "rope_parameters.full_attention is missing"),
        ("gemma-4-31b", "rope_parameters", ROPE_4 | {SLIDING: {}}, "sliding_attention.rope_theta is missing"),
        ("gemma-4-31b", "rope_parameters", ROPE_4 | {SLIDING: None}, "sliding_attention is None"),
        ("gemma-4-31b", "global_head_dim", 511, "head_dim is 511 on layer 5"),
        ("gemma-4-31b", "num_global_key_value_heads", 5, "num_key_value_heads = 5 on layer 5"),
        ("gemma-4-31b", "per_layer_config", {"60": {}}, "per_layer_config has the key '60'"),
        ("gemma-4-31b", "per_layer_config", {"-1": {}}, "per_layer_config has the key '-1'"),
        ("gemma-4-31b", "per_layer_config", {"²": {}}, "per_layer_config has the key '²'"),
        ("gemma-4-31b", "per_layer_config", {"5": {"head_dim": 0}}, "per_layer_config.5.head_dim is 0"),
        ("gemma-4-31b", "per_layer_config", {"5": {"sliding_window": 4}}, "per_layer_config.5.'sliding_window' is not"),
        ("gemma-4-31b", "per_layer_config", {"5": 3}, "per_layer_config.5 is 3, expected an object"),
        (
            "gemma-4-e2b",
            "per_layer_config",
            {"4": {"head_dim": 512}},
            "makes layer 9 unlike another full_attention layer",
        ),
        (
            "gemma-3-1b",
            "per_layer_config",
            {"5": {"head_dim": 512}},
            "per_layer_config is not supported in gemma3_text",
        ),
        ("gemma-4-e2b", "num_kv_shared_layers", 35, "num_kv_shared_layers is 35, but there are only 35 layers"),
        ("gemma-4-e2b", "num_kv_shared_layers", -1, "num_kv_shared_layers is -1"),
        ("gemma-4-e2b", "num_kv_shared_layers", 32, "no full_attention layer before"),
        ("gemma-4-e2b", "hidden_size_per_layer_input", -1, "hidden_size_per_layer_input is -1"),
        ("gemma-4-e2b", "vocab_size_per_layer_input", 0, "vocab_size_per_layer_input is 0"),
        ("gemma-4-e2b", "use_double_wide_mlp", 1, "use_double_wide_mlp is 1"),
        ("gemma-4-26b-a4b", "top_k_experts", 129, "top_k_experts is 129, more than num_experts = 128"),
        ("gemma-4-26b-a4b", "top_k_experts", ABSENT, "top_k_experts is missing"),
        ("gemma-4-26b-a4b", "num_experts", None, "num_experts is None"),
        ("gemma-4-26b-a4b", "moe_intermediate_size", 0, "moe_intermediate_size is 0"),
        ("gemma-4-31b", "use_bidirectional_attention", "both", "use_bidirectional_attention is 'both'"),
        ("gemma-4-31b", "use_bidirectional_attention", True, "use_bidirectional_attention is True"),
        ("gemma-3-1b", "use_bidirectional_attention", "all", "use_bidirectional_attention is 'all'"),
        ("gemma-3-4b", "use_bidirectional_attention", True, "use_bidirectional_attention is true"),
        ("gemma-2-2b", "use_bidirectional_attention", True, "use_bidirectional_attention is true"),
        ("gemma-2b", "tie_word_embeddings", "true", "tie_word_embeddings is 'true'"),
        ("gemma-2b", "pad_token_id", -1, "pad_token_id is -1"),
        ("gemma-2b", "pad_token_id", 256000, "pad_token_id is 256000"),
        ("gemma-2b", "bos_token_id", [2], "bos_token_id is a list"),
        ("gemma-2b", "eos_token_id", [1, "107"], "eos_token_id[1] is '107'"),
        ("gemma-2b", "eos_token_id", {"a": 1}, "eos_token_id is an object"),
        ("gemma-2b", "torch_dtype", 16, "torch_dtype is 16"),
        ("gemma-2b", "model_type", ABSENT, "model_type is missing"),
        ("gemma-2b", "model_type", ["gemma"], "model_type is a list"),
        ("gemma-2b", "model_type", "llama", "model_type is 'llama', which is not supported"),
        ("gemma-2b", "model_type", "gemma3n", "Gemma 3n is another architecture"),
        (
            "gemma-3-4b",
            "model_type",
            "gemma2",
            "text_config.model_type is 'gemma2', expected gemma3_text within gemma3",
        ),
    ],
)
def test_refusals_name_the_field(name: str, key: str, value: Any, words: str) -> None:
    assert words in refusal(changed(name, key, value))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("text_config", ABSENT, "text_config is missing"),
        ("text_config", None, "text_config is None"),
        ("text_config", [], "text_config is a list"),
        ("vision_config", "siglip", "vision_config is 'siglip'"),
        ("vision_config", {"hidden_size": 0}, "vision_config.hidden_size is 0"),
        ("vision_config", {"layer_norm_eps": -1}, "vision_config.layer_norm_eps is -1"),
        ("image_token_index", -7, "image_token_index is -7"),
        ("mm_tokens_per_image", 0, "mm_tokens_per_image is 0"),
        ("tie_word_embeddings", None, "tie_word_embeddings is None"),
    ],
)
def test_refusals_of_the_outer_level(key: str, value: Any, words: str) -> None:
    d = hub("gemma-3-4b") | {key: value}
    if value is ABSENT:
        del d[key]
    assert words in refusal(d)


@pytest.mark.parametrize("value", [None, 3, "gemma", [], [("model_type", "gemma")]])
def test_not_an_object(value: Any) -> None:
    assert "expected an object" in refusal(value)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[1]", "holds a list of 1 values, expected an object"),
        (b'"gemma"', "holds 'gemma', expected an object"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"model_type": "gemma", "rms_norm_eps": NaN}', "rms_norm_eps is nan"),
        (b'{"model_type": "gemma", "rms_norm_eps": 1e999}', "rms_norm_eps is inf"),
        (b" " * (17 << 20), "17825792 bytes"),
    ],
    ids=range(10),
)
def test_bad_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        GemmaConfig.from_file(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        GemmaConfig.from_file(tmp_path)
    with pytest.raises(ConfigError, match=r"absent\.json: no such file"):
        GemmaConfig.from_file(tmp_path / "absent.json")


# Fuzz: any change of a real file gives a configuration that holds together, or a ConfigError.

REAL = [HF_CONFIGS[name]().to_dict() for name in HF_CONFIGS if not name.endswith("default")] + list(HUB.values())
INTERESTING = [
    0,
    -1,
    1,
    2,
    3,
    7,
    2**31,
    10**12,
    10**400,
    0.0,
    -0.5,
    1e-300,
    1e300,
    float("nan"),
    "",
    FULL,
    "linear",
    "all",
]
JSON_VALUES = st.recursive(
    st.sampled_from(INTERESTING) | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a JSON value, itself first."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, child in children for path in paths(child, (*prefix, key)))]


@st.composite
def mutated_configs(draw: st.DrawFn) -> Any:
    d: Any = json.loads(json.dumps(draw(st.sampled_from(REAL))))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(d)[1:]))
        holder = d
        for key in parents:
            holder = holder[key]
        if draw(st.booleans()):
            holder[last] = draw(JSON_VALUES)
        else:
            del holder[last]
    return d


def check_reads_or_refuses(d: Any) -> None:
    try:
        config = read(d)
    except ConfigError as error:
        assert str(error).startswith("config.json: ")
        return
    assert len(config.layers) == config.num_hidden_layers
    assert all(min(shape) > 0 for shape in config.weight_shapes().values())
    assert config.parameter_count() > 0 and config.kv_bytes_per_token(4) > 0


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_configs())
def test_mutated_files_never_raise_anything_else(d: Any) -> None:
    check_reads_or_refuses(d)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted({key for d in REAL for key in d})), JSON_VALUES), st.sampled_from(REAL))
def test_arbitrary_values_never_raise_anything_else(values: dict[str, Any], real: dict[str, Any]) -> None:
    check_reads_or_refuses({"model_type": real["model_type"]} | values)
    check_reads_or_refuses({**real, "text_config": values})
