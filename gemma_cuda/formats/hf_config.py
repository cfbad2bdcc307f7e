"""config.json to `ModelConfig`, in every spelling that Hub files and HuggingFace Transformers 4.38 to 5.23 use.

An absent key has the default of HuggingFace's config class (the file of Gemma 3 4B on the Hub holds little more than
the values that differ from it). Unknown keys are ignored, unknown values refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from ..config import Bidirectional, ModelConfig
from ..errors import ConfigError
from .bounded_files import CONFIG, kind_of, read_json_object
from .fields import MAX_INT32, Fields, shown_json
from .hf_layers import DEFAULTS, is_generation_4, layer_count, parse_layers, size, sliding_window

# composite model_type -> text model types it may hold, the first being the default
_COMPOSITES = {
    "gemma3": ("gemma3_text",),
    "gemma4": ("gemma4_text",),
    "gemma4_unified": ("gemma4_unified_text",),
    "paligemma": ("gemma", "gemma2"),
}
_OTHER_ARCHITECTURES = {
    "gemma3n": "Gemma 3n is another architecture (AltUp, LAuReL, activation sparsity)",
    "gemma3n_text": "Gemma 3n is another architecture (AltUp, LAuReL, activation sparsity)",
    "recurrent_gemma": "RecurrentGemma is a recurrent hybrid",
    "t5gemma": "T5Gemma is an encoder-decoder",
    "t5gemma2": "T5Gemma 2 is an encoder-decoder",
    "vaultgemma": "VaultGemma lacks Gemma 2's post-norms",
    "shieldgemma2": "ShieldGemma 2 is a classifier on top of Gemma 3",
    "gemma4_assistant": "the Gemma 4 assistant is a drafter without K and V of its own",
}

# composite model_type -> field of ModelConfig -> its keys in config.json and its default
_TOKEN_KEYS: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "gemma3": {
        "image_token_id": (("image_token_index", "image_token_id"), 262144),
        "boi_token_id": (("boi_token_index", "boi_token_id"), 255999),
        "eoi_token_id": (("eoi_token_index", "eoi_token_id"), 256000),
    },
    "paligemma": {"image_token_id": (("image_token_index", "image_token_id"), 256000)},
    "gemma4": {
        "image_token_id": (("image_token_id",), 258880),
        "boi_token_id": (("boi_token_id",), 255999),
        "eoi_token_id": (("eoi_token_id",), 258882),
        "audio_token_id": (("audio_token_id",), 258881),
        "boa_token_id": (("boa_token_id",), 256000),
        "eoa_token_id": (("eoa_token_index",), 258883),
        "video_token_id": (("video_token_id",), 258884),
    },
}
_TOKEN_KEYS["gemma4_unified"] = _TOKEN_KEYS["gemma4"]


def end_token_ids(path: Path) -> tuple[int, ...]:
    """`eos_token_id` of the generation_config.json at `path`; () without the file or without the key.

    ConfigError for a damaged file or a value other than token ids.
    """
    if kind_of(path, ConfigError) == "absent":
        return ()
    fields = Fields(read_json_object(path, CONFIG, ConfigError), source=str(path))
    return () if fields.is_null("eos_token_id") else _eos_token_ids(fields)


def parse_config(d: Mapping[str, object], *, source: str) -> ModelConfig:
    """The configuration in a parsed config.json; ConfigError naming `source` and the field."""
    if not isinstance(d, Mapping):
        raise ConfigError(f"{source}: holds {shown_json(d)}, expected an object")
    top = Fields(d, source=source)
    composite, model_type, text = _text_section(top)
    _check_unsupported(text, model_type)
    vocab_size = size(text, model_type, "vocab_size")
    bidirectional, radius = _attention_direction(text, model_type, composite)
    ple_size, ple_vocab = _per_layer_embeddings(text, model_type)
    experts, top_k, expert_size = _experts(text, model_type)
    vision_size, vision_eps, image_tokens = _vision(top, composite)
    placeholders: dict[str, int | None] = dict.fromkeys(_TOKEN_KEYS["gemma4"])
    for name, (keys, default) in _TOKEN_KEYS.get(composite or "", {}).items():
        placeholders[name] = _token(top, next((key for key in keys if key in top), keys[0]), default)
    return ModelConfig(
        model_type=model_type,
        composite=composite,
        vocab_size=vocab_size,
        hidden_size=size(text, model_type, "hidden_size"),
        num_hidden_layers=layer_count(text, model_type),
        num_attention_heads=size(text, model_type, "num_attention_heads"),
        max_position_embeddings=size(text, model_type, "max_position_embeddings", maximum=MAX_INT32),
        rms_norm_eps=text.positive("rms_norm_eps", 1e-6),
        layers=parse_layers(text, model_type),
        scale=_scale(text, model_type),
        attn_logit_softcapping=_attention_softcap(text, model_type),
        final_logit_softcapping=_final_softcap(text, model_type, composite),
        # As in HuggingFace, the outer level has precedence.
        tie_word_embeddings=(top if "tie_word_embeddings" in top else text).flag("tie_word_embeddings", True),
        bidirectional=bidirectional,
        bidirectional_radius=radius,
        position_offset=1 if composite == "paligemma" else 0,
        hidden_size_per_layer_input=ple_size,
        vocab_size_per_layer_input=ple_vocab,
        num_experts=experts,
        top_k_experts=top_k,
        moe_intermediate_size=expert_size,
        pad_token_id=text.optional_integer("pad_token_id", 0, minimum=0, maximum=vocab_size - 1) or 0,
        bos_token_id=_token(_outer(top, text, "bos_token_id"), "bos_token_id", 2),
        eos_token_ids=_eos_token_ids(_outer(top, text, "eos_token_id")),
        mm_tokens_per_image=image_tokens,
        vision_hidden_size=vision_size,
        vision_layer_norm_eps=vision_eps,
        dtype=_dtype(top) or _dtype(text),
        **placeholders,
    )


def _text_section(top: Fields) -> tuple[str | None, str, Fields]:
    """(composite model_type or None, text model's model_type, text model's fields)."""
    model_type = top.text("model_type")
    if model_type in DEFAULTS:
        return None, model_type, top
    if model_type in _COMPOSITES:
        allowed = _COMPOSITES[model_type]
        text = top.section("text_config")
        text_type = text.text("model_type", allowed[0])
        if text_type not in allowed:
            text.fail("model_type", f"is {shown_json(text_type)}, expected {' or '.join(allowed)} within {model_type}")
        return model_type, text_type, text
    reason = _OTHER_ARCHITECTURES.get(model_type, "it is no Gemma we know")
    known = ", ".join([*DEFAULTS, *_COMPOSITES])
    top.fail("model_type", f"is {shown_json(model_type)}, which is not supported: {reason}. Supported: {known}")


def _check_unsupported(text: Fields, model_type: str) -> None:
    """Refuses values that would change the arithmetic and that no Gemma has."""
    if text.flag("attention_bias", False):
        text.fail("attention_bias", "is true; no Gemma has biases and none are computed")
    key = "hidden_act" if model_type == "gemma" else "hidden_activation"
    # Gemma 1 was trained with the tanh approximation, and HuggingFace runs it so, even where the file says "gelu".
    allowed = ("gelu_pytorch_tanh", "gelu") if model_type == "gemma" else ("gelu_pytorch_tanh",)
    activation = text.text(key, "gelu_pytorch_tanh")
    if activation not in allowed:
        text.fail(key, f"is {shown_json(activation)}, expected gelu_pytorch_tanh")
    if not is_generation_4(model_type) and text.optional_section("per_layer_config").values:
        text.fail("per_layer_config", f"is not supported in {model_type}: its layers are all alike")


def _scale(text: Fields, model_type: str) -> float:
    """The factor of q.k before softcap and mask."""
    if is_generation_4(model_type):
        return 1.0
    if model_type == "gemma":
        return math.pow(size(text, model_type, "head_dim"), -0.5)
    return math.pow(text.positive("query_pre_attn_scalar", 256), -0.5)


def _attention_softcap(text: Fields, model_type: str) -> float | None:
    """Only Gemma 2's: Gemma 3 files may set it, but HuggingFace's model does not apply it."""
    return text.optional_positive("attn_logit_softcapping", 50.0) if model_type == "gemma2" else None


def _final_softcap(text: Fields, model_type: str, composite: str | None) -> float | None:
    """None if HuggingFace's class never applies it: Gemma 1, and Gemma 3's multimodal class."""
    if model_type == "gemma" or composite == "gemma3":
        return None
    return text.optional_positive("final_logit_softcapping", 30.0 if model_type == "gemma2" else None)


def _attention_direction(text: Fields, model_type: str, composite: str | None) -> tuple[Bidirectional, int | None]:
    """`bidirectional` and `bidirectional_radius` of ModelConfig."""
    key = "use_bidirectional_attention"
    if composite == "paligemma":
        return "prefix", None
    if model_type in ("gemma", "gemma2"):
        # With either value HuggingFace builds causal masks, yet tells SDPA otherwise: the flag has no one meaning.
        if text.optional_flag(key):
            text.fail(key, f"is true, which {model_type} supports only as part of PaliGemma")
        return None, None
    window = sliding_window(text, model_type)
    half = None if window is None else window // 2
    if model_type == "gemma3_text":
        if text.optional_flag(key):
            if composite is not None:
                text.fail(key, f"is true, which is not supported within {composite}: images have a rule of their own")
            return "text", half  # HuggingFace: |q - k| < w // 2 + 1
        return ("vision_all_layers" if composite else None), None
    direction = text.optional_text(key) if key in text else ("vision" if model_type == "gemma4_unified_text" else None)
    if direction not in (None, "vision", "all"):
        text.fail(key, f"is {shown_json(direction)}, expected null, 'vision' or 'all'")
    if direction == "all":
        return "text", None if half is None else half + 1  # HuggingFace: |q - k| <= w // 2 + 1
    return ("vision_sliding_layers" if direction == "vision" else None), None


def _per_layer_embeddings(text: Fields, model_type: str) -> tuple[int, int]:
    """Width and vocabulary of the per-layer embeddings; zeros if there are none."""
    if model_type != "gemma4_text":
        return 0, 0
    size = text.integer("hidden_size_per_layer_input", 256, minimum=0)
    return (size, text.integer("vocab_size_per_layer_input", 262144)) if size else (0, 0)


def _experts(text: Fields, model_type: str) -> tuple[int, int, int]:
    """Number of experts, experts per token and their width; zeros without mixture of experts."""
    if model_type != "gemma4_text" or not text.flag("enable_moe_block", False):
        return 0, 0, 0
    experts = text.integer("num_experts")
    top_k = text.integer("top_k_experts")
    if top_k > experts:
        text.fail("top_k_experts", f"is {top_k}, more than num_experts = {experts}")
    return experts, top_k, text.integer("moe_intermediate_size")


def _outer(top: Fields, text: Fields, key: str) -> Fields:
    """The level of config.json that a token id is read from: the outer level if it has the key."""
    return text if top.is_null(key) else top


def _eos_token_ids(fields: Fields) -> tuple[int, ...]:
    """`eos_token_id` as a tuple: an integer, a list of them, or null for none."""
    if isinstance(fields.values.get("eos_token_id"), list | tuple):
        return tuple(fields.integers("eos_token_id", minimum=0, maximum=MAX_INT32))
    token = _token(fields, "eos_token_id", 1)
    return () if token is None else (token,)


def _token(fields: Fields, key: str, default: int) -> int | None:
    return fields.optional_integer(key, default, minimum=0, maximum=MAX_INT32)


def _vision(top: Fields, composite: str | None) -> tuple[int | None, float | None, int | None]:
    """Width and norm epsilon of the vision features, and tokens per image if their number is fixed."""
    if composite is None:
        return None, None, None
    siglip = composite in ("gemma3", "paligemma")
    if top.is_null("vision_config"):
        if not siglip:
            return None, None, None
        # HuggingFace's default
        vision = Fields({"hidden_size": 1152, "patch_size": 14} if composite == "paligemma" else {}, source=top.source)
    else:
        vision = top.section("vision_config")
    if composite == "gemma4_unified":
        return vision.integer("output_proj_dims", 3840), vision.positive("rms_norm_eps", 1e-6), None
    if composite == "gemma4":
        return vision.integer("hidden_size", 768), vision.positive("rms_norm_eps", 1e-6), None
    if composite == "gemma3":
        tokens = top.optional_integer("mm_tokens_per_image", 256)
    else:
        tokens = (vision.integer("image_size", 224) // vision.integer("patch_size", 16)) ** 2
    return vision.integer("hidden_size", 768), vision.positive("layer_norm_eps", 1e-6), tokens


def _dtype(fields: Fields) -> str | None:
    return fields.optional_text("dtype") or fields.optional_text("torch_dtype")
