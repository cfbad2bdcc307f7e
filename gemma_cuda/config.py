"""`ModelConfig`: the architecture of a checkpoint, one entry per layer, checked and frozen.

`GemmaConfig` (formats/gemma_config.py) adds constructors that read files. They resolve every default, spelling and
layer pattern of each generation, so that no other module knows them.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

LayerType = Literal["full_attention", "sliding_attention"]
RopeType = Literal["default", "linear", "proportional"]
Bidirectional = Literal[None, "vision_all_layers", "vision_sliding_layers", "vision_union_window", "text", "prefix"]

GENERATIONS = {"gemma": 1, "gemma2": 2, "gemma3_text": 3, "gemma4_text": 4, "gemma4_unified_text": 4}


@dataclass(frozen=True)
class RopeConfig:
    """Frequencies of the rotary embedding: theta^(-2i/D) / factor for i in [0, D/2).

    proportional: the same for i < int(partial_rotary_factor * D / 2), zero (no rotation) above.
    """

    rope_type: RopeType
    rope_theta: float
    factor: float = 1.0
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True)
class LayerConfig:
    """The geometry of one decoder layer."""

    layer_type: LayerType
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    """Width of the (dense) MLP, doubled where `use_double_wide_mlp` applies."""
    sliding_window: int | None
    """The w of config.json: a causal query sees at most w keys, itself included. None on full_attention."""
    rope: RopeConfig
    attention_k_eq_v: bool
    """There is no v_proj: V is the output of k_proj, normed without weight."""
    kv_source: int | None
    """Index of the layer that computes this layer's K and V; None: this layer itself."""


@dataclass(frozen=True)
class ModelConfig:
    """The text model of one checkpoint. Field names are HuggingFace's."""

    model_type: str
    """Of the text model: gemma, gemma2, gemma3_text, gemma4_text or gemma4_unified_text."""
    composite: str | None
    """model_type of the multimodal model around it: gemma3, gemma4, gemma4_unified or paligemma."""
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    layers: tuple[LayerConfig, ...]
    scale: float
    """Factor of q.k: head_dim^-1/2, query_pre_attn_scalar^-1/2 or 1."""
    attn_logit_softcapping: float | None
    """None in Gemma 3 and 4 even if the file sets it: HuggingFace ignores it there."""
    final_logit_softcapping: float | None
    """None if HuggingFace's class never applies it: Gemma 1, and Gemma 3 within a multimodal model."""
    tie_word_embeddings: bool
    bidirectional: Bidirectional
    """Later keys that a query sees. None: none (causal). vision_all_layers: those of its image, on every layer.
    vision_sliding_layers: those of its image, on sliding layers only. text: all, on sliding layers those within
    `bidirectional_radius`. prefix: those of the prefix (PaliGemma)."""
    bidirectional_radius: int | None
    """Only with "text": sliding layers see |q - k| <= radius."""
    position_offset: int
    """Position of the first token: 1 for PaliGemma, else 0."""
    hidden_size_per_layer_input: int
    """Width P of the per-layer embeddings; 0 if the model has none."""
    vocab_size_per_layer_input: int
    num_experts: int
    """0 without mixture of experts, as the next two."""
    top_k_experts: int
    moe_intermediate_size: int
    pad_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None
    boi_token_id: int | None
    eoi_token_id: int | None
    audio_token_id: int | None
    boa_token_id: int | None
    eoa_token_id: int | None
    video_token_id: int | None
    mm_tokens_per_image: int | None
    vision_hidden_size: int | None
    """Width of the vision projector's input."""
    vision_layer_norm_eps: float | None
    dtype: str | None
    """Of the checkpoint, as spelled in the file."""

    @property
    def generation(self) -> Literal[1, 2, 3, 4]:
        """1, 2, 3 or 4."""
        return GENERATIONS[self.model_type]  # type: ignore[return-value]

    @property
    def norm_plus_one(self) -> bool:
        """Whether RMSNorm multiplies by (1 + w); Gemma 4 multiplies by w."""
        return self.generation < 4

    @property
    def has_qk_norm(self) -> bool:
        """Whether q and k are normed per head."""
        return self.generation >= 3

    @property
    def post_norms(self) -> bool:
        """Whether attention and MLP outputs are normed before the residual is added."""
        return self.generation >= 2

    def parameter_count(self) -> int:
        """Number of elements of all tensors of `weight_shapes()`, so without projectors and towers."""
        return sum(prod(shape) for shape in self.weight_shapes().values())

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of K and V that one token adds to an untrimmed cache with `itemsize` bytes per element."""
        own = (layer for layer in self.layers if layer.kv_source is None)
        return sum(2 * layer.num_key_value_heads * layer.head_dim for layer in own) * itemsize

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor of the text model, in HuggingFace's names without prefix and its shapes.

        Linear weights are [out, in]. A tied `lm_head.weight` is not listed, nor are projectors.
        """
        hidden = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, hidden)}
        if width := self.hidden_size_per_layer_input:
            packed = self.num_hidden_layers * width
            shapes["embed_tokens_per_layer.weight"] = (self.vocab_size_per_layer_input, packed)
            shapes["per_layer_model_projection.weight"] = (packed, hidden)
            shapes["per_layer_projection_norm.weight"] = (width,)
        for index, layer in enumerate(self.layers):
            for name, shape in self._layer_shapes(layer).items():
                shapes[f"layers.{index}.{name}"] = shape
        shapes["norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def _layer_shapes(self, layer: LayerConfig) -> dict[str, tuple[int, ...]]:
        """Name within the layer to shape of each of its tensors."""
        hidden, width = self.hidden_size, layer.intermediate_size
        q_rows = self.num_attention_heads * layer.head_dim
        kv_rows = layer.num_key_value_heads * layer.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q_rows, hidden),
            "self_attn.o_proj.weight": (hidden, q_rows),
            "mlp.gate_proj.weight": (width, hidden),
            "mlp.up_proj.weight": (width, hidden),
            "mlp.down_proj.weight": (hidden, width),
        }
        if layer.kv_source is None:
            shapes["self_attn.k_proj.weight"] = (kv_rows, hidden)
            if not layer.attention_k_eq_v:
                shapes["self_attn.v_proj.weight"] = (kv_rows, hidden)
        if self.post_norms:
            shapes["pre_feedforward_layernorm.weight"] = (hidden,)
            shapes["post_feedforward_layernorm.weight"] = (hidden,)
        if self.has_qk_norm:
            shapes["self_attn.q_norm.weight"] = (layer.head_dim,)
            if layer.kv_source is None:
                shapes["self_attn.k_norm.weight"] = (layer.head_dim,)
        if self.generation == 4:
            shapes["layer_scalar"] = (1,)
        if per_layer := self.hidden_size_per_layer_input:
            shapes["per_layer_input_gate.weight"] = (per_layer, hidden)
            shapes["per_layer_projection.weight"] = (hidden, per_layer)
            shapes["post_per_layer_input_norm.weight"] = (hidden,)
        if experts := self.num_experts:
            shapes["router.proj.weight"] = (experts, hidden)
            shapes["router.scale"] = (hidden,)
            shapes["router.per_expert_scale"] = (experts,)
            shapes["experts.gate_up_proj"] = (experts, 2 * self.moe_intermediate_size, hidden)
            shapes["experts.down_proj"] = (experts, hidden, self.moe_intermediate_size)
            shapes["post_feedforward_layernorm_1.weight"] = (hidden,)
            shapes["post_feedforward_layernorm_2.weight"] = (hidden,)
            shapes["pre_feedforward_layernorm_2.weight"] = (hidden,)
        return shapes
