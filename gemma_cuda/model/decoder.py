"""The decoder of every Gemma: what a layer is, in which order, over packed tokens.

Notation: N tokens, M output tokens, E hidden_size, H / KH query / KV heads, D head_dim, F intermediate_size, P
hidden_size_per_layer_input, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig
from ..precision import Array
from .kv_storage import LayerKV
from .ops import Gemma4Ops, Mask, Ops
from .rope import Rope
from .weights import LayerWeights, MoeWeights, Weights

Hook = Callable[[int, Array], Array | None]


class ForwardContext(Protocol):
    """The tokens of one forward pass as the layers see them, in arrays of the ops.

    prunes: after the last KV-writing layer only output tokens continue; layers from there on ask with pruned=True.
    """

    prunes: bool

    def rope(self, layer: LayerConfig, *, pruned: bool) -> Rope:
        """Rotary tables and each token's row of them."""

    def slot_mapping(self, kv: LayerKV) -> Array:
        """[N]: the slot of each token's K and V among the B · capacity slots of a layer's cache."""

    def mask(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> Mask:
        """The keys that each token sees, as `Ops.attend` takes them."""

    def bias(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> Array | None:
        """[B or 1, H or 1, S, T] in place of the layer's own mask, or None."""

    def prune_to_outputs(self, x: Array) -> Array:
        """[M, …]: the output rows of x [N, …]."""


class Decoder:
    """Embedding, layers and head of one model over one set of ops."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self.config, self.weights, self.ops = config, weights, ops
        self.plus_one = config.norm_plus_one
        # After this layer nothing writes K or V: only output tokens continue.
        self.last_kv_layer = max(i for i, layer in enumerate(config.layers) if layer.kv_source is None)

    def embed(self, input_ids: Array) -> Array:
        """x [N, E]: embedding rows of input_ids [N], on the host or as of `Ops.index`, times sqrt(E)."""
        return self.ops.embed(input_ids, self.weights.embed_tokens, scale=self.config.hidden_size**0.5)

    def logits(self, hidden: Array) -> Array:
        """[M, V] of hidden [M, E], which the final norm has normed."""
        return self.ops.logits(hidden, self.weights.head, softcap=self.config.final_logit_softcapping)

    def forward(
        self,
        x: Array,
        ids: NDArray[np.int64] | None,
        context: ForwardContext,
        layers_kv: Sequence[LayerKV | None],
        hook: Hook | None,
    ) -> Array:
        """Last hidden state [M, E] of the output tokens, after the final norm; K and V of all go to `layers_kv`.

        x [N, E] is the layer-0 input, which is overwritten; ids [N] are looked up for per-layer embeddings.
        hook(i, x [N, E]) is called with each layer's output (i = 0 with the layer-0 input, i + 1 after layer i); the
        array that it may return replaces x. A hook sees all tokens, so with one the context must not prune.
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        per_layer = self._per_layer_inputs(x, ids) if self.config.hidden_size_per_layer_input else None
        x = self._hooked(hook, 0, x)
        h = ops.rms_norm(x, self.weights.layers[0].input_norm, eps=eps, plus_one=self.plus_one)
        for i, (layer, w) in enumerate(zip(self.config.layers, self.weights.layers, strict=True)):
            kv = layers_kv[i if layer.kv_source is None else layer.kv_source]
            assert kv is not None
            pruned = context.prunes and i >= self.last_kv_layer
            if context.prunes and i == self.last_kv_layer:
                q_width = self.config.num_attention_heads * layer.head_dim
                self._project(layer, w, h, w.qkv[q_width:], context.rope(layer, pruned=False), context, heads=0, kv=kv)
                x, h = context.prune_to_outputs(x), context.prune_to_outputs(h)
                per_layer = None if per_layer is None else context.prune_to_outputs(per_layer)
                q = self._project(layer, w, h, w.qkv[:q_width], context.rope(layer, pruned=True), context, kv=None)
            else:
                own = kv if layer.kv_source is None else None
                q = self._project(layer, w, h, w.qkv, context.rope(layer, pruned=pruned), context, kv=own)
            attended = ops.linear(self._attend(layer, q, context, kv, pruned=pruned), w.o_proj)
            x, h = self._add_norm(x, attended, w.post_attention_norm, w.pre_mlp_norm)

            branch = self._mlp(w, h)
            if w.moe is not None:
                branch = self._with_experts(w.moe, x, branch)
            last = i + 1 == len(self.weights.layers)
            next_norm = self.weights.norm if last else self.weights.layers[i + 1].input_norm
            post_norm = w.post_mlp_norm
            if w.per_layer is not None:
                assert per_layer is not None
                x, _ = self._add_norm(x, branch, post_norm, None)
                gated = ops.geglu(ops.linear(x, w.per_layer.input_gate), per_layer[:, i])
                branch, post_norm = ops.linear(gated, w.per_layer.projection), w.per_layer.post_norm
            x, h = self._add_norm(x, branch, post_norm, next_norm, w.layer_scalar)
            if hook is not None and (replaced := self._hooked(hook, i + 1, x)) is not x:
                x, h = replaced, ops.rms_norm(replaced, next_norm, eps=eps, plus_one=self.plus_one)
        return h

    def _project(
        self,
        layer: LayerConfig,
        w: LayerWeights,
        h: Array,
        weight: Array,
        rope: Rope,
        context: ForwardContext,
        *,
        kv: LayerKV | None,
        heads: int | None = None,
    ) -> Array:
        """q [N, H, D] of h [N, E]; with `kv` their K and V are written, too; heads 0: only these."""
        return self.ops.qk_norm_rope(
            self.ops.linear(h, weight),
            heads=self.config.num_attention_heads if heads is None else heads,
            cos=rope.cos,
            sin=rope.sin,
            positions=rope.positions,
            eps=self.config.rms_norm_eps,
            q_weight=w.q_norm,
            k_weight=w.k_norm,
            plus_one=self.plus_one,
            v_norm=self.config.generation == 4,
            k_cache=None if kv is None else kv.k.reshape(-1, *kv.k.shape[2:]),
            v_cache=None if kv is None else kv.v.reshape(-1, *kv.v.shape[2:]),
            slots=None if kv is None else context.slot_mapping(kv),
            k_eq_v=layer.attention_k_eq_v,
        )

    def _attend(self, layer: LayerConfig, q: Array, context: ForwardContext, kv: LayerKV, *, pruned: bool) -> Array:
        """Attention output [N, H D] of q [N, H, D]."""
        out = self.ops.attend(
            q,
            kv.k,
            kv.v,
            mask=context.mask(layer, kv, pruned=pruned),
            scale=self.config.scale,
            softcap=self.config.attn_logit_softcapping,
            bias=context.bias(layer, kv, pruned=pruned),
        )
        return out.reshape(len(out), self.config.num_attention_heads * layer.head_dim)

    def _add_norm(
        self, x: Array, branch: Array, post_weight: Array | None, pre_weight: Array | None, layer_scalar: float = 1.0
    ) -> tuple[Array, Array]:
        """(x', h): the residual stream with a (normed) branch added, and what the next branch reads."""
        return self.ops.add_norm(
            x,
            branch,
            post_weight=post_weight,
            pre_weight=pre_weight,
            eps=self.config.rms_norm_eps,
            plus_one=self.plus_one,
            layer_scalar=layer_scalar,
        )

    def _mlp(self, w: LayerWeights, h: Array) -> Array:
        return self.ops.linear(self.ops.gated(h, w.gate_up), w.down)

    def _with_experts(self, moe: MoeWeights, x: Array, dense: Array) -> Array:
        """norm(dense MLP) + norm(routed experts); both branches read x, the residual stream before the MLP."""
        ops, eps = cast(Gemma4Ops, self.ops), self.config.rms_norm_eps
        experts, weights = ops.route(
            x, scale=moe.router_scale, proj=moe.router_proj, per_expert_scale=moe.per_expert_scale,
            top_k=self.config.top_k_experts, eps=eps,
        )  # fmt: skip
        routed = ops.moe(ops.rms_norm(x, moe.pre_norm, eps=eps), experts, weights, gate_up=moe.gate_up, down=moe.down)
        both, _ = self._add_norm(ops.rms_norm(dense, moe.post_norm_dense, eps=eps), routed, moe.post_norm, None)
        return both

    def _per_layer_inputs(self, x: Array, ids: NDArray[np.int64] | None) -> Array:
        """[N, L, P] of the layer-0 input x [N, E] and the tokens' ids [N]."""
        w, config = self.weights, self.config
        assert ids is not None and w.embed_per_layer is not None and w.per_layer_projection is not None
        token = self.ops.embed(ids, w.embed_per_layer, scale=config.hidden_size_per_layer_input**0.5)
        return cast(Gemma4Ops, self.ops).per_layer_inputs(
            x, token, projection=w.per_layer_projection, norm=w.per_layer_projection_norm, eps=config.rms_norm_eps
        )

    @staticmethod
    def _hooked(hook: Hook | None, index: int, x: Array) -> Array:
        replaced = None if hook is None else hook(index, x)
        return x if replaced is None else replaced
