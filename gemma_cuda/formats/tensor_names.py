"""Names of tensors: the checkpoint's name -> the canonical name (HuggingFace's, inside the text model)."""

from __future__ import annotations

_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_SKIPPED = ("vision_tower.", "audio_tower.", "vision_embedder.")  # not multi_modal_projector and embed_vision: they run


def canonical_name(name: str) -> str | None:
    """`layers.3.mlp.up_proj.weight` for any HuggingFace spelling; None for a vision or audio tower's tensor."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    return None if name.startswith(_SKIPPED) else name


# GGUF's names within a layer, except `ffn_norm`: its meaning differs in Gemma 1, which has only two norms.
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    # Gemma 4
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}
_MODEL_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}


def gguf_names(generation: int, num_layers: int) -> dict[str, str]:
    """GGUF's tensor name -> canonical name, for every tensor that a Gemma of this generation can have."""
    ffn_norm = "post_attention_layernorm.weight" if generation == 1 else "pre_feedforward_layernorm.weight"
    layer_names = {**_LAYER_NAMES, "ffn_norm.weight": ffn_norm}
    names = dict(_MODEL_NAMES)
    for layer in range(num_layers):
        names.update({f"blk.{layer}.{theirs}": f"layers.{layer}.{ours}" for theirs, ours in layer_names.items()})
    return names
