"""Random HuggingFace models of every Gemma generation, small but with the scales of trained ones.

HuggingFace's default initialisation gives uniform attention and logits near zero, which hides most mistakes. Here the
attention is peaked, soft caps bite, norms differ from one and every weight is a bfloat16 number, so that a float32, a
float64 and a bfloat16 model of one name are the same model and one float64 reference serves all three.
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.support.hf_forward import Array, rounded_powers, to_float64

VOCAB = 160
# Ids of the special tokens inside the small vocabulary; plain text is drawn from FIRST_TEXT_ID up to BOI.
PAD, EOS, BOS = 0, 1, 2
FIRST_TEXT_ID = 3
BOI, EOI, IMAGE, AUDIO, VIDEO, BOA, EOA = 150, 151, 152, 153, 154, 155, 156
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Config = Any


@dataclass(frozen=True)
class Size:
    """The lengths that differ between the small models of the tests and those with the head_dims of real ones."""

    head_dim: int
    global_head_dim: int
    hidden_size: int
    intermediate_size: int
    sliding_window: int
    prompt: int


TINY = Size(head_dim=32, global_head_dim=64, hidden_size=96, intermediate_size=128, sliding_window=8, prompt=40)
REAL = Size(head_dim=256, global_head_dim=512, hidden_size=320, intermediate_size=512, sliding_window=64, prompt=160)


@dataclass(frozen=True)
class Recipe:
    """How to make one model: its config for a Size, its class, and what the tests need to know about it."""

    config: Callable[[Size], Config]
    model_class: str
    seed: int
    # The name under which forward() takes the types of tokens; None for a model of text alone.
    token_types: str | None = None
    generation: int = 3

    @property
    def has_logits(self) -> bool:
        return "For" in self.model_class


def _text(size: Size, **changes: Any) -> dict[str, Any]:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": size.head_dim,
        "num_hidden_layers": 7,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    return values | changes


def _gemma(size: Size, **changes: Any) -> Config:
    return transformers.GemmaConfig(**_text(size, **changes))


def _gemma2(size: Size, **changes: Any) -> Config:
    return transformers.Gemma2Config(
        **_text(
            size,
            sliding_window=size.sliding_window,
            query_pre_attn_scalar=size.head_dim * 3 // 2,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
            **changes,
        )
    )


def _gemma3_text(size: Size, **changes: Any) -> Config:
    values = _text(size, sliding_window=size.sliding_window, query_pre_attn_scalar=size.head_dim * 2 // 3)
    return transformers.Gemma3TextConfig(**(values | changes))


def _linear_rope() -> dict[str, Any]:
    return {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    }


def _gemma3(size: Size) -> Config:
    text = _gemma3_text(size, rope_parameters=_linear_rope(), final_logit_softcapping=5.0)
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4
    )
    return transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=16,
        boi_token_index=BOI,
        eoi_token_index=EOI,
        image_token_index=IMAGE,
    )


def _gemma4_values(size: Size, **changes: Any) -> dict[str, Any]:
    values = _text(
        size,
        sliding_window=size.sliding_window,
        global_head_dim=size.global_head_dim,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCAB,
        final_logit_softcapping=10.0,
    )
    return values | changes


def _gemma4_text(size: Size, **changes: Any) -> Config:
    return transformers.Gemma4TextConfig(**_gemma4_values(size, **changes))


_E2B = {
    "num_hidden_layers": 10,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
}
_31B = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_26B = _31B | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 48}


def _gemma4_ids() -> dict[str, int]:
    return {
        "boi_token_id": BOI,
        "eoi_token_id": EOI,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "audio_token_id": AUDIO,
        "boa_token_id": BOA,
        "eoa_token_index": EOA,
    }


def _gemma4(size: Size, **changes: Any) -> Config:
    vision = transformers.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=16,
        rms_norm_eps=1e-3,  # of the projector, too, and not the text model's
    )
    text = _gemma4_text(size, **changes)
    return transformers.Gemma4Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), audio_config=None, **_gemma4_ids()
    )


def _gemma4_unified(size: Size) -> Config:
    values = _gemma4_values(size, **_31B, use_bidirectional_attention="vision")
    del values["hidden_size_per_layer_input"], values["vocab_size_per_layer_input"]
    text = transformers.Gemma4UnifiedTextConfig(**values)
    vision = {
        "patch_size": 2,
        "pooling_kernel_size": 1,
        "mm_embed_dim": 16,
        "mm_posemb_size": 8,
        "output_proj_dims": 16,
        "rms_norm_eps": 1e-3,
    }
    return transformers.Gemma4UnifiedConfig(
        text_config=text.to_dict(), vision_config=vision, audio_config=None, **_gemma4_ids()
    )


def _paligemma(text: Config) -> Config:
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    return transformers.PaliGemmaConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_index=IMAGE,
        vocab_size=VOCAB,
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
    )


RECIPES: dict[str, Recipe] = {
    "gemma_mqa": Recipe(lambda s: _gemma(s, num_key_value_heads=1), "GemmaForCausalLM", 1, generation=1),
    "gemma_mha": Recipe(
        lambda s: _gemma(s, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False),
        "GemmaForCausalLM",
        2,
        generation=1,
    ),
    "gemma2": Recipe(_gemma2, "Gemma2ForCausalLM", 3, generation=2),
    "gemma3_text": Recipe(
        lambda s: _gemma3_text(s, rope_parameters=_linear_rope(), attn_logit_softcapping=1.0), "Gemma3ForCausalLM", 4
    ),
    "gemma3_text_capped": Recipe(
        lambda s: _gemma3_text(s, final_logit_softcapping=5.0, num_key_value_heads=1), "Gemma3ForCausalLM", 5
    ),
    "gemma3": Recipe(_gemma3, "Gemma3ForConditionalGeneration", 6, token_types="token_type_ids"),
    "gemma4_dense": Recipe(_gemma4_text, "Gemma4ForCausalLM", 7, generation=4),
    "gemma4_e2b": Recipe(lambda s: _gemma4_text(s, **_E2B), "Gemma4ForCausalLM", 8, generation=4),
    "gemma4_31b": Recipe(lambda s: _gemma4_text(s, **_31B), "Gemma4ForCausalLM", 9, generation=4),
    "gemma4_moe": Recipe(lambda s: _gemma4_text(s, **_26B), "Gemma4ForCausalLM", 10, generation=4),
    "gemma4_vision": Recipe(
        lambda s: _gemma4(s, **_31B, use_bidirectional_attention="vision"),
        "Gemma4ForConditionalGeneration",
        11,
        token_types="mm_token_type_ids",
        generation=4,
    ),
    "gemma4_e2b_vision": Recipe(
        lambda s: _gemma4(s, **_E2B),
        "Gemma4ForConditionalGeneration",
        12,
        token_types="mm_token_type_ids",
        generation=4,
    ),
    "gemma4_unified": Recipe(
        _gemma4_unified, "Gemma4UnifiedForConditionalGeneration", 13, token_types="mm_token_type_ids", generation=4
    ),
    "embedding_gemma": Recipe(lambda s: _gemma3_text(s, use_bidirectional_attention=True), "Gemma3TextModel", 14),
    "gemma4_all": Recipe(
        lambda s: _gemma4_text(s, use_bidirectional_attention="all"), "Gemma4TextModel", 15, generation=4
    ),
    "paligemma": Recipe(
        lambda s: _paligemma(_gemma(s, num_key_value_heads=1)),
        "PaliGemmaForConditionalGeneration",
        16,
        token_types="token_type_ids",
        generation=1,
    ),
    "paligemma2": Recipe(
        lambda s: _paligemma(_gemma2(s)),
        "PaliGemmaForConditionalGeneration",
        17,
        token_types="token_type_ids",
        generation=2,
    ),
}
CAUSAL_TEXT = tuple(name for name, recipe in RECIPES.items() if recipe.has_logits and recipe.token_types is None)
MULTIMODAL = tuple(name for name, recipe in RECIPES.items() if recipe.token_types is not None)
CAUSAL = CAUSAL_TEXT + MULTIMODAL
BIDIRECTIONAL_TEXT = tuple(name for name, recipe in RECIPES.items() if not recipe.has_logits)


_RESIDUAL_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")


def _draw(name: str, shape: tuple[int, ...], generation: int, rng: np.random.Generator) -> Array | None:
    """float64 values of trained-like scale for the parameter `name`, or None where HuggingFace's own will do."""
    normal = rng.standard_normal(shape)
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if "vision_tower" in name:
        return None
    if leaf == "layer_scalar":
        return rng.uniform(0.5, 1.0, shape)
    if leaf == "per_expert_scale":
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "scale":
        return 1.0 + 0.3 * normal
    if leaf in ("q_norm", "k_norm"):
        # Scores of standard deviation near 2: q and k are unit vectors times sqrt(D) before the weight.
        return math.sqrt(2.0 / math.sqrt(shape[-1])) * (1.0 + 0.2 * normal) if generation == 4 else 0.2 + 0.3 * normal
    if leaf == "norm" and ".layers." not in f".{name}":
        # Random signs: with one sign a tied head would make every random model repeat its last token.
        scale = rng.choice([-1.0, 1.0], shape) * (3.0 + 0.3 * normal)
        return scale if generation == 4 else scale - 1.0
    if generation == 4 and leaf in _RESIDUAL_NORMS:
        # layer_scalar shrinks the stream; branches as large as it would make a chaotic model, unlike a trained one.
        return 0.2 + 0.06 * normal
    if leaf.endswith("norm") or "layernorm" in leaf:
        return (1.0 if generation == 4 else 0.0) + 0.3 * normal
    if leaf in ("embed_tokens", "lm_head"):
        return normal / math.sqrt(shape[-1])
    if leaf == "embed_tokens_per_layer":
        return normal / 4.0
    if leaf == "mm_input_projection_weight":
        return normal / math.sqrt(shape[0])
    gain = 1.0
    if leaf in ("q_proj", "k_proj") and generation <= 2:
        gain = 1.5
    if "router" in name:
        gain = 2.0 * math.sqrt(shape[-1])
    return gain * normal / math.sqrt(shape[-1])


def randomise(model: Any, generation: int, seed: int) -> None:
    """Overwrites the parameters of the text model and the projector, in place, by bfloat16 numbers of trained scale."""
    rng = np.random.default_rng(seed)
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name.endswith("layer_scalar")}
    with torch.no_grad():
        for name in sorted(tensors):
            values = _draw(name, tuple(tensors[name].shape), generation, rng)
            if values is not None:
                tensors[name].copy_(torch.from_numpy(values).bfloat16().float())
            else:
                tensors[name].copy_(tensors[name].bfloat16().float())


def _models_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="gemma-cuda-random-models-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def _root() -> Path:
    return _models_directory()


@dataclass(frozen=True)
class RandomModel:
    """One random model: its directory as save_pretrained wrote it, and the eager HuggingFace models of its weights."""

    name: str
    recipe: Recipe
    size: Size
    path: Path

    @functools.cached_property
    def float32(self) -> Any:
        """Eager model on the CPU in float32."""
        return self._load("float32")

    @functools.cached_property
    def bfloat16(self) -> Any:
        """Eager model in bfloat16, inv_freq in float32 as from_pretrained leaves it."""
        return self._load("bfloat16")

    @functools.cached_property
    def float64(self) -> Any:
        """Eager model in float64 to be run inside `hf_forward.exact()`; sqrt(hidden_size) in float64."""
        return to_float64(self.float32)

    @functools.cached_property
    def float64_bf16_scale(self) -> Any:
        """The same with sqrt(hidden_size) rounded to bfloat16: the exact value of what a bfloat16 model computes."""
        return to_float64(self.float32, scale_dtype=torch.bfloat16)

    @property
    def text_config(self) -> Config:
        return self.float32.config.get_text_config()

    def _load(self, dtype: str) -> Any:
        model_class = getattr(transformers, self.recipe.model_class)
        extra = {"experts_implementation": "eager"} if self.name == "gemma4_moe" else {}
        with rounded_powers():
            model = model_class.from_pretrained(
                self.path, dtype=TORCH_DTYPES[dtype], attn_implementation="eager", **extra
            )
        return model.eval()

    def ids(self, length: int | None = None, *, batch: int = 1, seed: int = 0) -> Array:
        """Text token ids [batch, length], int64, a BOS first; `length` defaults to the prompt length of the size."""
        rng = np.random.default_rng([seed, self.recipe.seed])
        ids = rng.integers(FIRST_TEXT_ID, BOI, (batch, length or self.size.prompt))
        ids[:, 0] = BOS
        return ids


def build(name: str, size: Size = TINY) -> RandomModel:
    """The RandomModel of this name and size, made and saved at the first call."""
    return _build(name, size)


@functools.cache
def _build(name: str, size: Size) -> RandomModel:
    recipe = RECIPES[name]
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_root()))
    model_class = getattr(transformers, recipe.model_class)
    torch.manual_seed(recipe.seed)
    model = model_class._from_config(recipe.config(size), attn_implementation="eager")
    randomise(model, recipe.generation, recipe.seed)
    model.save_pretrained(path)
    return RandomModel(name, recipe, size, path)
