"""The metadata of a GGUF file to `ModelConfig`, by way of the equivalent config.json.

A GGUF file lacks the values that its architecture implies: the layer pattern, Gemma 3's local rope base, the attention
scale by the size of the model. They are those of llama.cpp, which defines and writes these files.
"""

from collections.abc import Mapping

import numpy as np

from ..config import ModelConfig
from ..errors import ConfigError
from .fields import MAX_INT32, MAX_LAYERS, Fields, shown_json
from .hf_config import parse_config
from .hf_layers import FULL, SLIDING

_MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "gemma4": "gemma4_text"}
# The scale of the 27B models is (hidden_size / heads)^-1/2; llama.cpp recognises them by their number of layers.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_DEFAULT_PATTERN = {"gemma2": 2, "gemma3": 6}
_GEMMA2_WINDOW = 4096
_GEMMA2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


class _Metadata(Fields):
    """The keys of one architecture: `block_count` reads "gemma3.block_count"; arrays and scalars are Python's."""

    def __init__(self, metadata: Mapping[str, object], architecture: str, *, source: str) -> None:
        prefix = architecture + "."
        own = {
            key.removeprefix(prefix): _plain(value)
            for key, value in metadata.items()
            if isinstance(key, str) and key.startswith(prefix)
        }
        super().__init__(own, source=source, prefix=prefix)
        self.architecture = architecture

    def layer_count(self) -> int:
        return self.integer("block_count", maximum=MAX_LAYERS)


def parse_metadata(
    metadata: Mapping[str, object], tensor_shapes: Mapping[str, tuple[int, ...]], *, source: str
) -> ModelConfig:
    """The configuration of a GGUF file of Gemma 1 to 4; ConfigError naming `source` and the metadata key."""
    general = {key: metadata[key] for key in metadata if isinstance(key, str) and key.startswith("general.")}
    architecture = Fields(general, source=source).text("general.architecture")
    if architecture not in _MODEL_TYPES:
        raise ConfigError(
            f"{source}: general.architecture is {shown_json(architecture)}, supported: {', '.join(_MODEL_TYPES)}"
        )
    fields = _Metadata(metadata, architecture, source=source)
    if "token_embd.weight" not in tensor_shapes:
        raise ConfigError(f"{source}: tensor token_embd.weight is missing, which gives vocab_size")
    config: dict[str, object] = {
        "model_type": _MODEL_TYPES[architecture],
        "vocab_size": tensor_shapes["token_embd.weight"][0],
        "hidden_size": fields.integer("embedding_length"),
        "num_hidden_layers": fields.layer_count(),
        "num_attention_heads": fields.integer("attention.head_count"),
        "max_position_embeddings": fields.integer("context_length", maximum=MAX_INT32),
        "rms_norm_eps": _decimal(fields.positive("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in tensor_shapes,
        **_special_tokens(metadata, source),
    }
    if architecture == "gemma4":
        config |= _gemma4(fields, tensor_shapes)
    else:
        config |= _gemma_1_to_3(fields)
    return parse_config(config, source=source)


def _gemma_1_to_3(fields: _Metadata) -> dict[str, object]:
    """The values of Gemma 1 to 3, in which all layers have the same shapes."""
    head_dim = _head_dim(fields, "")
    config: dict[str, object] = {
        "head_dim": head_dim,
        "num_key_value_heads": fields.integer("attention.head_count_kv"),
        "intermediate_size": fields.integer("feed_forward_length"),
    }
    if fields.architecture == "gemma":
        return config | {"rope_parameters": _rope(fields, fields.positive("rope.freq_base", 10_000.0))}
    config["query_pre_attn_scalar"] = _query_scalar(fields, head_dim)
    if fields.architecture == "gemma2":
        config["sliding_window"] = fields.integer("attention.sliding_window", _GEMMA2_WINDOW, maximum=MAX_INT32)
        config["layer_types"] = _layer_types(fields)
        config["rope_parameters"] = _rope(fields, fields.positive("rope.freq_base", 10_000.0))
        return config | {cap: fields.positive(cap, default) for cap, default in _GEMMA2_CAPS.items()}
    # As in llama.cpp: without a window, or with 0, all layers are full.
    window = fields.integer("attention.sliding_window", 0, minimum=0, maximum=MAX_INT32)
    config["sliding_window"] = window or None
    config["layer_types"] = _layer_types(fields) if window else [FULL] * fields.layer_count()
    config["final_logit_softcapping"] = fields.optional_positive("final_logit_softcapping", None)
    local = {"rope_type": "default", "rope_theta": fields.positive("rope.freq_base_swa", 10_000.0)}
    return config | {"rope_parameters": {FULL: _rope(fields, fields.positive("rope.freq_base")), SLIDING: local}}


def _query_scalar(fields: _Metadata, head_dim: int) -> int:
    """query_pre_attn_scalar, for which GGUF has no key."""
    if fields.layer_count() == _LAYERS_OF_27B[fields.architecture]:
        return max(1, fields.integer("embedding_length") // fields.integer("attention.head_count"))
    return head_dim


def _gemma4(fields: _Metadata, tensor_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    """The values of Gemma 4: shapes by layer, shared K and V, per-layer embeddings, experts."""
    types = _layer_types(fields)
    shared = fields.integer("attention.shared_kv_layers", 0, minimum=0)
    if shared >= len(types):
        fields.fail("attention.shared_kv_layers", f"is {shared}, but there are only {len(types)} layers")
    dims: dict[str, int] = {FULL: _head_dim(fields, ""), SLIDING: _head_dim(fields, "_swa")}
    kv_heads = _per_layer(fields, "attention.head_count_kv")
    widths = _per_layer(fields, "feed_forward_length")
    own = len(types) - shared
    doubled = shared > 0 and widths == [widths[0]] * own + [2 * widths[0]] * shared
    if not doubled and len(set(widths)) > 1:
        fields.fail("feed_forward_length", "varies by layer in another way than doubling where K and V are shared")
    if "rope_freqs.weight" not in tensor_shapes:
        fields.fail("rope", "is incomplete: tensor rope_freqs.weight is missing")
    ple_size = fields.integer("embedding_length_per_layer_input", minimum=0)
    ple_table = tensor_shapes.get("per_layer_token_embd.weight")
    if ple_size and ple_table is None:
        fields.fail("embedding_length_per_layer_input", "is set, but tensor per_layer_token_embd.weight is missing")
    experts = fields.integer("expert_count", 0, minimum=0)
    return {
        "layer_types": types,
        "sliding_window": fields.integer("attention.sliding_window", maximum=MAX_INT32),
        "per_layer_config": {
            index: {"head_dim": dims[name], "num_key_value_heads": kv}
            for index, (name, kv) in enumerate(zip(types, kv_heads, strict=True))
        },
        "intermediate_size": widths[0],
        "use_double_wide_mlp": doubled,
        "num_kv_shared_layers": shared,
        "attention_k_eq_v": _k_eq_v(fields, types[:own], tensor_shapes),
        "hidden_size_per_layer_input": ple_size,
        "vocab_size_per_layer_input": ple_table[0] if ple_table else 1,
        "final_logit_softcapping": fields.optional_positive("final_logit_softcapping", None),
        "enable_moe_block": experts > 0,
        "num_experts": experts,
        "top_k_experts": fields.integer("expert_used_count") if experts else None,
        "moe_intermediate_size": fields.integer("expert_feed_forward_length") if experts else None,
        "rope_parameters": {
            # The rotated share follows only from the values of rope_freqs.weight; all Gemma 4 models rotate a quarter.
            FULL: {
                "rope_type": "proportional",
                "rope_theta": fields.positive("rope.freq_base"),
                "partial_rotary_factor": 0.25,
            },
            SLIDING: {"rope_type": "default", "rope_theta": fields.positive("rope.freq_base_swa")},
        },
    }


def _k_eq_v(fields: _Metadata, types: list[str], tensor_shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the full layers have no V projection: no key says so, their tensors are missing."""
    missing = {f"blk.{index}.attn_v.weight" not in tensor_shapes for index, name in enumerate(types) if name == FULL}
    if len(missing) > 1:
        fields.fail("attention", f"is inconsistent: some {FULL} layers have an attn_v.weight and some have none")
    return True in missing


def _layer_types(fields: _Metadata) -> list[str]:
    """The type of each layer, from a period p (every p-th layer is full) or from one flag per layer (1: sliding)."""
    key, count = "attention.sliding_window_pattern", fields.layer_count()
    if fields.architecture in _DEFAULT_PATTERN and not isinstance(fields.values.get(key), list):
        period = fields.integer(key, _DEFAULT_PATTERN[fields.architecture])
        return [SLIDING if (index + 1) % period else FULL for index in range(count)]
    slides = fields.sequence(key)
    if len(slides) != count or not all(flag in (0, 1) for flag in slides):
        fields.fail(key, f"is {shown_json(slides)}, expected {count} flags")
    return [SLIDING if flag else FULL for flag in slides]


def _head_dim(fields: _Metadata, suffix: str) -> int:
    """The head_dim of K, V and the rotary embedding, of all layers or with suffix "_swa" of sliding layers."""
    head_dim = fields.integer("attention.key_length" + suffix)
    for key in ("attention.value_length" + suffix, "rope.dimension_count" + suffix):
        if fields.integer(key, head_dim) != head_dim:
            fields.fail(key, f"is {fields.integer(key)}, but attention.key_length{suffix} is {head_dim}")
    return head_dim


def _per_layer(fields: _Metadata, key: str) -> list[int]:
    """One integer for each layer, from an array or from one value for all."""
    if not isinstance(fields.values.get(key), list):
        return [fields.integer(key)] * fields.layer_count()
    values = fields.sequence(key)
    if len(values) != fields.layer_count():
        fields.fail(key, f"is {shown_json(values)}, expected {fields.layer_count()}")
    return fields.integers(key)


def _rope(fields: _Metadata, theta: float) -> dict[str, object]:
    """The rope dictionary of config.json, with the file's scaling."""
    factor_key = "rope.scaling.factor" if "rope.scaling.factor" in fields else "rope.scale_linear"
    scaling = fields.text("rope.scaling.type", "linear" if factor_key in fields else "none")
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling != "linear":
        fields.fail("rope.scaling.type", f"is {shown_json(scaling)}, expected none or linear")
    return {"rope_type": "linear", "rope_theta": theta, "factor": fields.positive(factor_key)}


def _special_tokens(metadata: Mapping[str, object], source: str) -> dict[str, object]:
    """pad, bos and eos ids; the end-of-turn token is one of the eos ids."""
    prefix = "tokenizer.ggml."
    names = ("padding_token_id", "bos_token_id", "eos_token_id", "eot_token_id")
    given = {name: _plain(metadata[prefix + name]) for name in names if prefix + name in metadata}
    tokens = Fields(given, source=source, prefix=prefix)
    eos = tokens.integer("eos_token_id", minimum=0, maximum=MAX_INT32)
    eot = tokens.integer("eot_token_id", eos, minimum=0, maximum=MAX_INT32)
    return {
        "pad_token_id": tokens.integer("padding_token_id", 0, minimum=0, maximum=MAX_INT32),
        "bos_token_id": tokens.integer("bos_token_id", minimum=0, maximum=MAX_INT32),
        "eos_token_id": [eos] if eot == eos else [eos, eot],
    }


def _plain(value: object) -> object:
    """`value` without NumPy: its arrays and scalars as lists, integers, floats."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to `value` in float32, the file's type: 1e-06, not 9.999999974752427e-07."""
    with np.errstate(over="ignore"):  # a too large value becomes infinite, and that is refused
        return float(str(np.float32(value)))
