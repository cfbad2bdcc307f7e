"""The weights as the orchestrator uses them.

q|k|v and gate|up are packed into one matrix each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import LayerConfig
from ..formats.checkpoint import Checkpoint, StoredTable
from ..precision import Array
from .ops import Ops

_TABLES = frozenset({"embed_tokens.weight", "embed_tokens_per_layer.weight"})
Progress = Callable[[int, int], None]
"""Called with (bytes decoded so far, bytes in all) while weights load."""


@dataclass(frozen=True)
class PerLayerWeights:
    """Gemma 4's per-layer embedding inside one layer; P its width."""

    input_gate: Array  # [P, E]
    projection: Array  # [E, P]
    post_norm: Array  # [E]


@dataclass(frozen=True)
class MoeWeights:
    """Gemma 4's experts in one layer; X experts of width F."""

    router_scale: Array  # [E]
    router_proj: Array  # [X, E]
    per_expert_scale: Array  # [X]
    gate_up: Array  # [X, 2F, E]
    down: Array  # [X, E, F]
    post_norm_dense: Array  # [E]; HuggingFace's post_feedforward_layernorm_1
    pre_norm: Array  # [E]; pre_feedforward_layernorm_2
    post_norm: Array  # [E]; post_feedforward_layernorm_2


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Norms are w: RMSNorm multiplies by 1 + w in Gemma 1-3, by w in Gemma 4."""

    input_norm: Array  # [E]
    # [(H + 2 KH) D, E]; without v rows where V is the raw K, without k and v rows where another layer's are read
    qkv: Array
    q_norm: Array | None  # [D]
    k_norm: Array | None  # [D]
    o_proj: Array  # [E, H D]
    post_attention_norm: Array | None  # [E]; Gemma 2-4
    pre_mlp_norm: Array  # [E]; Gemma 1 calls it post_attention_layernorm
    gate_up: Array  # [2F, E]
    down: Array  # [E, F]
    post_mlp_norm: Array | None  # [E]; Gemma 2-4
    layer_scalar: float
    per_layer: PerLayerWeights | None
    moe: MoeWeights | None


@dataclass(frozen=True)
class Weights:
    """All weights of the text model, and the vision projector's where the checkpoint has one."""

    embed_tokens: Array | StoredTable  # [V, E]; stays in its file where the head does not need it
    head: Array  # [V, E]
    layers: tuple[LayerWeights, ...]
    norm: Array  # [E]
    embed_per_layer: StoredTable | None  # [V, L P], stays in its file: only rows are read
    per_layer_projection: Array | None  # [L P, E]
    per_layer_projection_norm: Array | None  # [P]
    projection: Array | None  # [vision, E] as it multiplies
    projection_norm: Array | None  # [vision]


def load_weights(checkpoint: Checkpoint, ops: Ops, progress: Progress | None = None) -> Weights:
    """The checkpoint's weights, rounded to the working dtype and uploaded.

    CheckpointError for a tensor that cannot be read.
    """
    return _Loader(checkpoint, ops, progress).load()


def weight_elements(checkpoint: Checkpoint, ops: Ops) -> int:
    """How many numbers `load_weights` decodes."""
    return sum(math.prod(checkpoint.shape(name)) for name in _decoded(checkpoint, ops))


def _decoded(checkpoint: Checkpoint, ops: Ops) -> list[str]:
    """Names of the tensors that do not stay in their file."""
    looked_up_only = ops.takes_stored_tables and not checkpoint.config.tie_word_embeddings
    stored = _TABLES if looked_up_only else {"embed_tokens_per_layer.weight"}
    return [name for name in checkpoint.config.weight_shapes() if name not in stored]


class _Loader:
    def __init__(self, checkpoint: Checkpoint, ops: Ops, progress: Progress | None) -> None:
        self.checkpoint, self.config, self.ops, self.precision = checkpoint, checkpoint.config, ops, ops.precision
        self.progress = progress
        self.total = sum(map(checkpoint.nbytes, _decoded(checkpoint, ops)))
        self.done = 0

    def load(self) -> Weights:
        config = self.config
        if config.tie_word_embeddings:
            table = self.read_matrix("embed_tokens.weight")
            head = self.ops.upload_matrix(table)
            embed: Array | StoredTable = self.ops.upload_table(table, head)
        else:
            head = self.matrix("lm_head.weight")
            if self.ops.takes_stored_tables:
                embed = self.checkpoint.table("embed_tokens.weight")
            else:
                embed = self.ops.upload_table(self.read_matrix("embed_tokens.weight"), None)
        layers = tuple(self.layer(i, layer) for i, layer in enumerate(config.layers))
        per_layer = bool(config.hidden_size_per_layer_input)
        projection, projection_norm = self.projector()
        return Weights(
            embed_tokens=embed,
            head=head,
            layers=layers,
            norm=self.norm("norm.weight"),
            embed_per_layer=self.checkpoint.table("embed_tokens_per_layer.weight") if per_layer else None,
            per_layer_projection=self.matrix("per_layer_model_projection.weight") if per_layer else None,
            per_layer_projection_norm=self.norm("per_layer_projection_norm.weight") if per_layer else None,
            projection=projection,
            projection_norm=projection_norm,
        )

    def layer(self, index: int, layer: LayerConfig) -> LayerWeights:
        config, p = self.config, f"layers.{index}."
        own_kv = layer.kv_source is None
        qkv = [p + "self_attn.q_proj.weight"]
        if own_kv:
            qkv += [p + f"self_attn.{x}_proj.weight" for x in ("k" if layer.attention_k_eq_v else "kv")]
        pre_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
        return LayerWeights(
            input_norm=self.norm(p + "input_layernorm.weight"),
            qkv=self.matrix(*qkv),
            q_norm=self.norm(p + "self_attn.q_norm.weight") if config.has_qk_norm else None,
            k_norm=self.norm(p + "self_attn.k_norm.weight") if config.has_qk_norm and own_kv else None,
            o_proj=self.matrix(p + "self_attn.o_proj.weight"),
            post_attention_norm=self.norm(p + "post_attention_layernorm.weight") if config.post_norms else None,
            pre_mlp_norm=self.norm(p + f"{pre_mlp}.weight"),
            gate_up=self.matrix(p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"),
            down=self.matrix(p + "mlp.down_proj.weight"),
            post_mlp_norm=self.norm(p + "post_feedforward_layernorm.weight") if config.post_norms else None,
            layer_scalar=float(self.read_matrix(p + "layer_scalar")[0]) if config.generation == 4 else 1.0,
            per_layer=self.per_layer(p) if config.hidden_size_per_layer_input else None,
            moe=self.moe(p) if config.num_experts else None,
        )

    def per_layer(self, p: str) -> PerLayerWeights:
        return PerLayerWeights(
            input_gate=self.matrix(p + "per_layer_input_gate.weight"),
            projection=self.matrix(p + "per_layer_projection.weight"),
            post_norm=self.norm(p + "post_per_layer_input_norm.weight"),
        )

    def moe(self, p: str) -> MoeWeights:
        return MoeWeights(
            router_scale=self.read_matrix(p + "router.scale"),
            router_proj=self.read_matrix(p + "router.proj.weight"),
            per_expert_scale=self.read_matrix(p + "router.per_expert_scale"),
            gate_up=self.read_matrix(p + "experts.gate_up_proj"),
            down=self.read_matrix(p + "experts.down_proj"),
            post_norm_dense=self.norm(p + "post_feedforward_layernorm_1.weight"),
            pre_norm=self.norm(p + "pre_feedforward_layernorm_2.weight"),
            post_norm=self.norm(p + "post_feedforward_layernorm_2.weight"),
        )

    def projector(self) -> tuple[Array | None, Array | None]:
        """Gemma 3 stores [vision, E] and norms with weight; Gemma 4 a Linear [E, vision] after a weightless norm."""
        if "multi_modal_projector.mm_input_projection_weight" in self.checkpoint:
            norm = self.read_matrix("multi_modal_projector.mm_soft_emb_norm.weight")
            return self.read_matrix("multi_modal_projector.mm_input_projection_weight"), norm + norm.dtype.type(1)
        if "embed_vision.embedding_projection.weight" in self.checkpoint:
            return self.read_matrix("embed_vision.embedding_projection.weight").T, None
        return None, None

    def matrix(self, *names: str) -> Array:
        """The tensors, stacked along their first axis, as the ops multiply with them."""
        return self.ops.upload_matrix(self.read_matrix(*names))

    def read_matrix(self, *names: str) -> Array:
        """The tensors, stacked along their first axis."""
        shapes = [self.checkpoint.shape(name) for name in names]
        rows = sum(shape[0] for shape in shapes)
        out = np.empty((rows, *shapes[0][1:]), self.precision.compute)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            part = out[start : start + shape[0]]
            self.read(name, part)
            self.precision.round_in_place(part)
            start += shape[0]
        return out

    def norm(self, name: str) -> Array:
        """w of an RMSNorm; GGUF stores 1 + w."""
        weight = np.empty(self.checkpoint.shape(name), self.precision.compute)
        self.read(name, weight)
        if self.checkpoint.norm_plus_one_baked:
            weight -= 1
        return self.ops.upload_norm(self.precision.round(weight))

    def read(self, name: str, out: Array) -> None:
        self.checkpoint.read_into(name, out)
        self.done += self.checkpoint.nbytes(name)
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)
