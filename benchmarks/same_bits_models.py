"""Random models for same_bits.py: every generation, as small as the kernels allow, scaled as trained ones."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemma_cuda import GemmaConfig

VOCAB, IMAGE, BOI, EOI = 112, 97, 98, 99  # text is drawn from 3 to 96
VISION = 16  # width of a vision tower's output
_WINDOW = 16
_LINEAR = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
}


def _text(model_type: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-3,  # large, so that a wrong one shows in bfloat16
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    return fields | changes


def _gemma2() -> dict[str, Any]:
    return _text(
        "gemma2", sliding_window=_WINDOW, query_pre_attn_scalar=96, attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0, tie_word_embeddings=False,
    )  # fmt: skip


def _gemma3(**changes: Any) -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    fields = _text(
        "gemma3_text", num_hidden_layers=3, layer_types=layers, sliding_window=_WINDOW, query_pre_attn_scalar=48,
        rope_parameters=_LINEAR,
    )  # fmt: skip
    return fields | changes


def _gemma4(**changes: Any) -> dict[str, Any]:
    fields = _text(
        "gemma4_text", sliding_window=_WINDOW, global_head_dim=128, hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCAB, final_logit_softcapping=10.0, num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return fields | changes


def _composite(model_type: str, text: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": text, **fields}


_E2B = {
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
_EQUAL_KV = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32}
_SIGLIP = {"hidden_size": VISION, "image_size": 16, "patch_size": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma1": _text("gemma", num_key_value_heads=1),
    "gemma2": _gemma2(),
    "gemma3": _gemma3(),
    "gemma3_images": _composite(
        "gemma3", _gemma3(final_logit_softcapping=5.0), vision_config=_SIGLIP, mm_tokens_per_image=4,
        boi_token_index=BOI, eoi_token_index=EOI, image_token_index=IMAGE,
    ),
    "embedding_gemma": _gemma3(use_bidirectional_attention=True),
    "paligemma": _composite(
        "paligemma", _text("gemma", num_key_value_heads=1), vision_config=_SIGLIP, image_token_index=IMAGE,
        projection_dim=64, hidden_size=64,
    ),
    "gemma4_e2b": _gemma4(**_E2B),
    "gemma4_experts": _gemma4(**_EQUAL_KV, **_EXPERTS),
    "gemma4_images": _composite(
        "gemma4", _gemma4(**_EQUAL_KV, use_bidirectional_attention="vision"),
        vision_config={"hidden_size": VISION, "rms_norm_eps": 1e-3}, audio_config=None, image_token_id=IMAGE,
        boi_token_id=BOI, eoi_token_id=EOI, video_token_id=100, audio_token_id=101, boa_token_id=102,
        eoa_token_index=103,
    ),
}  # fmt: skip
_PROJECTORS: dict[str, dict[str, tuple[int, ...]]] = {
    "gemma3_images": {
        "multi_modal_projector.mm_input_projection_weight": (VISION, 64),
        "multi_modal_projector.mm_soft_emb_norm.weight": (VISION,),
    },
    "gemma4_images": {"embed_vision.embedding_projection.weight": (64, VISION)},
}


def write_models(folder: Path) -> None:
    """A directory of safetensors for each of CONFIGS, of bfloat16 numbers, and two models in GGUF files."""
    for name, fields in CONFIGS.items():
        config = GemmaConfig.from_dict(fields, source=name)
        shapes = config.weight_shapes() | _PROJECTORS.get(name, {})
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(fields))
        (folder / name / "tokenizer.json").write_text(json.dumps(_tokenizer()))
        tensors = {key: _draw(key, shape, config.generation) for key, shape in shapes.items()}
        _write_safetensors(folder / name / "model.safetensors", tensors)
    _write_gguf(folder)


def _draw(name: str, shape: tuple[int, ...], generation: int) -> np.ndarray[Any, Any]:
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    one = 1.0 if generation == 4 else 0.0
    if leaf in ("layer_scalar", "per_expert_scale", "scale"):
        return 1.0 + 0.2 * np.tanh(normal)
    if leaf == "norm" and name == "norm.weight":  # with one sign a tied head would repeat the last token
        return np.where(normal < 0, -3.0, 3.0) + 0.3 * normal - (1.0 - one)
    if "norm" in leaf:
        return one + 0.3 * normal
    fan_in = shape[0] if leaf == "mm_input_projection_weight" else shape[-1]
    gain = 1.5 if leaf in ("q_proj", "k_proj") else 1.0
    return gain * normal / math.sqrt(fan_in)


def _tokenizer() -> dict[str, Any]:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *map(chr, range(ord("!"), ord("~") + 1))]
    vocab = {token: i for i, token in enumerate(tokens)}
    added = [{"id": i, "content": token, "special": True} for token, i in vocab.items() if i < 4]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    return {"version": "1.0", "added_tokens": added, "model": model}


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    header, data = {}, b""
    for name, values in tensors.items():
        begin = len(data)
        data += values.astype(ml_dtypes.bfloat16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _write_gguf(folder: Path) -> None:
    import gguf

    from tests.support.checkpoints import GEMMA3, random_tensors, write_gguf_model

    config = {**GEMMA3, "vocab_size": VOCAB}
    tensors = random_tensors(config, seed=0)
    for kind in ("Q8_0", "Q4_K"):
        write_gguf_model(folder / f"{kind}.gguf", config, tensors, gguf.GGMLQuantizationType[kind])
