"""The decoder of every Gemma: what a layer is, in which order, over packed tokens.

Notation: N tokens, M kept tokens, E hidden_size, H / KH query / KV heads, D head_dim, F intermediate_size, P
hidden_size_per_layer_input, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from ..reference import ReferenceOps
from .kv_cache import LayerKV
from .rope import Rope
from .weights import LayerWeights, MoeWeights, Weights

Hook = Callable[[int, Array], Array | None]
Mask = Any
"""What `ops.mask` made of key ranges."""


class Step(Protocol):
    """What the layers need to know of the tokens of one forward pass, in arrays of the ops.

    narrow: only the kept tokens go on after the last layer that writes K and V; `kept` of what follows is true then.
    """

    narrow: bool

    def rope(self, layer: LayerConfig, *, kept: bool) -> Rope:
        """Rotary tables and each token's row of them."""

    def slots(self, kv: LayerKV) -> Array:
        """[N]: the row of each token's K and V among the B · capacity of a layer's cache."""

    def mask(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> Mask:
        """Which keys each token sees, as `ops.attend` takes it."""

    def bias(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> Array | None:
        """[B or 1, H or 1, S, T] in place of the layer's own mask, or None."""

    def take_kept(self, x: Array) -> Array:
        """[M, …]: the kept rows of x [N, …]."""


class Decoder:
    """Embedding, layers and head of one model over one set of ops."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: ReferenceOps | KernelOps) -> None:
        self.config, self.weights, self.ops = config, weights, ops
        self.plus_one = config.norm_plus_one
        # After this layer nothing writes K or V: only tokens whose output is asked for go on.
        self.last_kv_layer = max(i for i, layer in enumerate(config.layers) if layer.kv_source is None)

    def embed(self, input_ids: Array) -> Array:
        """x [N, E]: embedding rows of input_ids [N], on the host or placed by `ops.index`, times sqrt(E)."""
        return self.ops.embed(input_ids, self.weights.embed_tokens, scale=self.config.hidden_size**0.5)

    def logits(self, hidden: Array) -> Array:
        """[M, V] of hidden [M, E], which the final norm has passed."""
        return self.ops.logits(hidden, self.weights.head, softcap=self.config.final_logit_softcapping)

    def forward(
        self,
        x: Array,
        ids: NDArray[np.int64] | None,
        step: Step,
        layers_kv: Sequence[LayerKV | None],
        hook: Hook | None,
    ) -> Array:
        """Last hidden state [M, E] of the kept tokens, after the final norm; K and V of all tokens go to `layers_kv`.

        x [N, E] is the layer-0 input, which is overwritten; ids [N] are looked up for per-layer embeddings.
        hook(i, x [N, E]) is called with each layer's output (i = 0 with the layer-0 input, i + 1 after layer i); what
        it returns replaces x.
        Only without a hook may rows be dropped, so with one the kept rows must be all.
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        per_layer = self._per_layer_inputs(x, ids) if self.config.hidden_size_per_layer_input else None
        x = self._hooked(hook, 0, x)
        h = ops.rms_norm(x, self.weights.layers[0].input_norm, eps=eps, plus_one=self.plus_one)
        for i, (layer, w) in enumerate(zip(self.config.layers, self.weights.layers, strict=True)):
            kv = layers_kv[i if layer.kv_source is None else layer.kv_source]
            assert kv is not None
            kept = step.narrow and i >= self.last_kv_layer
            if step.narrow and i == self.last_kv_layer:
                q_width = self.config.num_attention_heads * layer.head_dim
                self._project(layer, w, h, w.qkv[q_width:], step.rope(layer, kept=False), step, heads=0, kv=kv)
                x, h = step.take_kept(x), step.take_kept(h)
                per_layer = None if per_layer is None else step.take_kept(per_layer)
                q = self._project(layer, w, h, w.qkv[:q_width], step.rope(layer, kept=True), step, kv=None)
            else:
                own = kv if layer.kv_source is None else None
                q = self._project(layer, w, h, w.qkv, step.rope(layer, kept=kept), step, kv=own)
            attended = ops.linear(self._attend(layer, q, step, kv, kept=kept), w.o_proj)
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
        step: Step,
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
            slots=None if kv is None else step.slots(kv),
            k_eq_v=layer.attention_k_eq_v,
        )

    def _attend(self, layer: LayerConfig, q: Array, step: Step, kv: LayerKV, *, kept: bool) -> Array:
        """Attention output [N, H D] of q [N, H, D]."""
        out = self.ops.attend(
            q,
            kv.k,
            kv.v,
            mask=step.mask(layer, kv, kept=kept),
            scale=self.config.scale,
            softcap=self.config.attn_logit_softcapping,
            bias=step.bias(layer, kv, kept=kept),
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
        ops, eps = self.ops, self.config.rms_norm_eps
        assert isinstance(ops, ReferenceOps)  # there are no kernels for experts yet, see require_kernels
        experts, weights = ops.route(
            x, scale=moe.router_scale, proj=moe.router_proj, per_expert_scale=moe.per_expert_scale,
            top_k=self.config.top_k_experts, eps=eps,
        )  # fmt: skip
        routed = ops.moe(ops.rms_norm(x, moe.pre_norm, eps=eps), experts, weights, gate_up=moe.gate_up, down=moe.down)
        both, _ = self._add_norm(ops.rms_norm(dense, moe.post_norm_dense, eps=eps), routed, moe.post_norm, None)
        return both

    def _per_layer_inputs(self, x: Array, ids: NDArray[np.int64] | None) -> Array:
        """[N, L, P]: (norm(projection of the layer-0 input / sqrt(E)) + embedding of the token · sqrt(P)) / sqrt(2)."""
        ops, w, config = self.ops, self.weights, self.config
        assert isinstance(ops, ReferenceOps)  # as for experts
        assert ids is not None and w.embed_per_layer is not None and w.per_layer_projection is not None
        shape = (len(x), config.num_hidden_layers, config.hidden_size_per_layer_input)
        token = ops.embed(ids, w.embed_per_layer, scale=config.hidden_size_per_layer_input**0.5)
        context = ops.linear(x, w.per_layer_projection)
        context *= context.dtype.type(config.hidden_size**-0.5)
        ops.precision.round_in_place(context)
        context = ops.rms_norm(context.reshape(shape), w.per_layer_projection_norm, eps=config.rms_norm_eps)
        context += token.reshape(shape)
        ops.precision.round_in_place(context)
        context *= context.dtype.type(2**-0.5)
        ops.precision.round_in_place(context)
        return context

    @staticmethod
    def _hooked(hook: Hook | None, index: int, x: Array) -> Array:
        replaced = None if hook is None else hook(index, x)
        return x if replaced is None else replaced
